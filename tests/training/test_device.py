from collections.abc import Iterator

import pytest
import torch

from petkit.errors import ConfigError, MissingError
from petkit.training.device import configure, resolve_device


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["gpu", "cpu:0", "cuda:x", "cuda:-1", "", "CUDA"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="auto, cpu, cuda or cuda:INDEX"):
        resolve_device(name)


def test_the_processor_is_always_here() -> None:
    assert resolve_device("cpu").type == "cpu"


def test_a_missing_gpu_is_no_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(MissingError, match=r"got 0 device\(s\): use --device cpu") as caught:
        resolve_device("cuda:1")
    assert caught.value.exit_code == 4


def test_a_launcher_gives_each_process_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("auto") == torch.device("cuda", 1)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)


def test_threads_and_determinism_reach_torch() -> None:
    configure(1, True)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        configure(0, False)


def test_more_threads_than_cores_are_told(caplog: pytest.LogCaptureFixture) -> None:
    before = torch.get_num_threads()
    try:
        configure(10_000, deterministic=False)
    finally:
        torch.set_num_threads(before)
    assert "--threads 10000 is more than the" in caplog.text
