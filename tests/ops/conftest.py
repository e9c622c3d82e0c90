"""Every kernel variant that this machine runs, and outputs poisoned with nan before a kernel fills them."""

from collections.abc import Iterator

import pytest
import torch

from petkit.ops import _library


@pytest.fixture(params=_library.available_kernels())
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _library.backend()["cpu_kernels"]
    _library.use_kernels(request.param)
    yield request.param
    _library.use_kernels(before)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    # In this mode torch fills fresh memory with nan (255 for uint8): an element that no kernel writes shows.
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
