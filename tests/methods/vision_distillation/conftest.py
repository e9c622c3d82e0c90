from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.methods.vision_distillation import tiny


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices lose time when they are shared among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An artifact for pictures of 48 pixels that are not normalised."""
    return tiny.save_teacher(tmp_path_factory.mktemp("vision") / "teacher")
