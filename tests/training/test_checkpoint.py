import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from petkit.errors import ArtifactError, ConfigError, PetkitError
from petkit.training import checkpoint
from petkit.training.checkpoint import (
    Progress,
    check_drift,
    checkpoints,
    identity_sha256,
    load,
    newest,
    save,
    saved_settings,
)
from petkit.training.optim import make_optimizer, trainable_parameters


def trained(toy: Any, seed: int = 0) -> tuple[dict[str, nn.Parameter], torch.optim.AdamW]:
    parameters = trainable_parameters(toy.make_model())
    optimizer = make_optimizer(parameters, toy.config())
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    optimizer.step()
    return parameters, optimizer


def test_a_checkpoint_gives_back_every_bit(toy: Any, tmp_path: Path) -> None:
    parameters, optimizer = trained(toy)
    best = {name: torch.full_like(p, 7.0).detach() for name, p in parameters.items()}
    path = save(tmp_path, Progress(5, 1.5, 120, 0.75, 3, best), parameters, optimizer, {"a": 1})
    other = trainable_parameters(toy.make_model())
    fresh = make_optimizer(other, toy.config())
    progress = load(path, other, fresh, {"a": 1})
    assert (progress.step, progress.seconds, progress.metrics_bytes) == (5, 1.5, 120)
    assert (progress.best_score, progress.best_step) == (0.75, 3)
    for name, parameter in parameters.items():
        assert torch.equal(parameter, other[name])
        for kind, value in optimizer.state[parameter].items():
            assert torch.equal(value, fresh.state[other[name]][kind])
        assert progress.best_weights is not None
        assert torch.equal(progress.best_weights[name], best[name])


def test_a_checkpoint_holds_the_adapter_and_its_moments_and_nothing_else(toy: Any, tmp_path: Path) -> None:
    parameters, optimizer = trained(toy)
    path = save(tmp_path, Progress(1), parameters, optimizer, {})
    assert {file.name for file in path.iterdir()} == {
        "weights.safetensors",
        "optimizer.safetensors",
        "state.json",
    }
    assert set(load_file(path / "weights.safetensors")) == set(parameters)
    tensors = sum(p.numel() * p.element_size() for p in parameters.values()) * 3
    assert sum(file.stat().st_size for file in path.iterdir()) < 2 * tensors + 4096


def test_the_newest_two_are_kept(toy: Any, tmp_path: Path) -> None:
    parameters, optimizer = trained(toy)
    for step in (8, 9, 10, 100):
        save(tmp_path, Progress(step), parameters, optimizer, {})
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-10"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "missing", "no state", "state is no JSON", "later version"]
)
def test_newest_passes_over_damaged_checkpoints(
    toy: Any, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    parameters, optimizer = trained(toy)
    good = save(tmp_path, Progress(1), parameters, optimizer, {})
    bad = save(tmp_path, Progress(2), parameters, optimizer, {})
    tensors, state = bad / "weights.safetensors", bad / "state.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif damage == "flipped":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "missing":
        tensors.unlink()
    elif damage == "no state":
        state.unlink()
    elif damage == "state is no JSON":
        state.write_text("{")
    else:
        state.write_text(json.dumps({**json.loads(state.read_text()), "version": 2}))
    assert newest(tmp_path) == good
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "passing over a damaged checkpoint"
    ]
    with pytest.raises(ArtifactError):
        load(bad, parameters, make_optimizer(parameters, toy.config()), {})


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    with pytest.raises(ConfigError, match="afresh with --overwrite"):
        newest(tmp_path)
    with pytest.raises(ConfigError, match="leave --resume out"):
        newest(tmp_path / "absent")


def test_another_model_is_refused(toy: Any, tmp_path: Path) -> None:
    parameters, optimizer = trained(toy)
    path = save(tmp_path, Progress(1), parameters, optimizer, {})
    renamed = {f"x.{name}": parameter for name, parameter in parameters.items()}
    with pytest.raises(ArtifactError, match="trainable parameters of this model"):
        load(path, renamed, optimizer, {})
    wider = {name: nn.Parameter(torch.zeros(2, 2)) for name in parameters}
    with pytest.raises(ArtifactError, match=r"must have shape \(2, 2\)"):
        load(path, wider, optimizer, {})


def test_what_is_only_noted_may_differ(toy: Any, tmp_path: Path) -> None:
    parameters, optimizer = trained(toy)
    noted = {"seed": 1, "reward.sha256": "a"}
    path = save(tmp_path, Progress(1), parameters, optimizer, noted)
    assert path is not None
    assert saved_settings(path) == noted
    for others in ({"reward.sha256": "b"}, {}, {"reward.function": "f.py:g", "reward.timeout": 1}):
        check_drift(path, {"seed": 1, **others})
    with pytest.raises(ConfigError, match=r"got 1 changed \(seed: 1 -> 2\)"):
        check_drift(path, {"seed": 2})


def test_a_full_disk_leaves_the_last_checkpoint(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters, optimizer = trained(toy)
    save(tmp_path, Progress(1), parameters, optimizer, {})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PetkitError, match=r"failed at step 2.*No space left on device") as caught:
        save(tmp_path, Progress(2), parameters, optimizer, {})
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_clean_removes_half_written_checkpoints_only(tmp_path: Path) -> None:
    for name in (".checkpoint-4.abc.partial", "checkpoint-3", "plots"):
        (tmp_path / name).mkdir()
    checkpoint.clean(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "plots"]


def test_the_hash_of_settings_does_not_depend_on_their_order() -> None:
    assert identity_sha256({"a": 1, "b": None}) == identity_sha256({"b": None, "a": 1})
    assert identity_sha256({"a": 1}) != identity_sha256({"a": 2})
