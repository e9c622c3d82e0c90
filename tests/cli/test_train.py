from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from petkit.artifacts import open_run
from petkit.cli.train import measured

Petkit = Callable[..., Any]
TENSORS = "adapter_packed.safetensors"


def write_recipe(path: Path, **changes: Any) -> Path:
    """A recipe of a few steps, with `section__key=value` set; None removes a key."""
    content: dict[str, Any] = {
        "output": str(path.parent / "run"),
        "model": {"name": "timm/test_vit", "pretrained": False, "image_size": 32},
        "adapter": {"bottleneck": 4},
        "data": {"train_size": 40, "test_size": 20},
        "training": {"epochs": 2, "batch_size": 10, "warmup_epochs": 1},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if not key:
            content[section] = value
        elif value is None:
            content[section].pop(key, None)
        else:
            content.setdefault(section, {})[key] = value
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.yaml")


def test_resuming_a_run_that_never_began_begins_it(petkit: Petkit, tmp_path: Path) -> None:
    flags = ["-o", tmp_path / "run", "--max-steps", "1", "--threads", "1", "--device", "cpu"]
    result = petkit("train", "adapter", "adapter-smoke", *flags, "--resume")
    assert result.code == 0, result.err
    assert "there is nothing to resume, the run begins at the first step" in result.err


def test_a_run_prints_one_object_and_leaves_the_artifact(
    petkit: Petkit, recipe: Path, tmp_path: Path
) -> None:
    result = petkit("train", "adapter", recipe, "--json")
    assert result.code == 0, result.err
    payload = json.loads(result.out)
    assert (payload["schema_version"], payload["status"]) == (1, "completed")
    assert payload["folder"] == str(tmp_path / "run")
    assert "adapters at 6 modules: blocks.*.adaptformer (6)" in result.err
    left = {path.name for path in (tmp_path / "run").iterdir()}
    expected = "petkit.json config.yaml trainer_state.json metrics.jsonl result.json checks.json README.md"
    assert left >= {TENSORS, *expected.split(), "plots", "report.html", "checkpoint-8"}
    assert (tmp_path / "run" / "plots" / "training.png").exists()


@pytest.mark.parametrize("file", ["checks.json", "README.md", "result.json"])
def test_a_full_disk_at_the_end_leaves_checkpoints_and_no_artifact(
    petkit: Petkit, recipe: Path, tmp_path: Path, full_disk: Callable[[str], None], file: str
) -> None:
    full_disk(file)
    result = petkit("train", "adapter", recipe, "--quiet")
    assert (result.code, result.out) == (1, "")
    place = tmp_path / "run" / file
    told = f"cannot write {place}: No space left on device; nothing was left under that name"
    assert result.err == f"error: {told}\n"
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"metrics.jsonl", "checkpoint-4", "checkpoint-8"}


def test_text_output_names_the_accuracy_and_quiet_says_nothing_else(petkit: Petkit, recipe: Path) -> None:
    result = petkit("train", "adapter", recipe, "--quiet", "--max-steps", 3)
    assert result.code == 0
    assert result.err == ""
    assert "stopped by max_steps" in result.out
    assert "3 of 8" in result.out
    assert "95 % interval" in result.out


def test_a_large_perplexity_has_no_exponent() -> None:
    result = {"accuracy": None, "perplexity": 11380.4, "loss": 9.34, "n": 5063}
    assert measured(result) == "perplexity 11,380, loss 9.3400, n 5,063 tokens"


def test_verbose_lists_every_module(petkit: Petkit, recipe: Path) -> None:
    result = petkit("train", "adapter", recipe, "-v", "--dry-run")
    assert "adapter at blocks.5.adaptformer (64 -> 64)" in result.err


def test_flags_beat_the_recipe(petkit: Petkit, recipe: Path, tmp_path: Path) -> None:
    target = tmp_path / "other"
    arguments = ["--seed", 7, "--output", target, "--max-steps", 2, "--set", "adapter.bits=2"]
    assert petkit("train", "adapter", recipe, *arguments).code == 0
    resolved = yaml.safe_load((target / "config.yaml").read_text())
    assert (resolved["seed"], resolved["adapter"]["bits"], resolved["training"]["max_steps"]) == (7, 2, 2)
    again = petkit("train", "adapter", target / "config.yaml", "-o", tmp_path / "again")
    assert again.code == 0, again.err
    assert (tmp_path / "again" / TENSORS).read_bytes() == (target / TENSORS).read_bytes()


@pytest.mark.parametrize(
    ("asked", "flags", "precision"),
    [
        ("fp32", ["--dtype", "bfloat16"], "bf16"),
        ("bf16", ["--dtype", "float32"], "fp32"),
        ("fp32", ["--set", "training.precision=fp32", "--dtype", "bfloat16"], "bf16"),
        ("bf16", [], "bf16"),
    ],
)
def test_dtype_sets_the_precision(
    petkit: Petkit, tmp_path: Path, asked: str, flags: list[str], precision: str
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", training__precision=asked)
    assert petkit("train", "adapter", recipe, "--max-steps", 1, *flags).code == 0
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert resolved["training"]["precision"] == precision


def test_max_time_is_a_success(petkit: Petkit, recipe: Path) -> None:
    result = petkit("train", "adapter", recipe, "--max-time", "0.01s", "--json")
    assert result.code == 0
    assert json.loads(result.out)["stopped"] == "max_time"


def test_a_dry_run_prints_the_plan_and_leaves_nothing(petkit: Petkit, recipe: Path, tmp_path: Path) -> None:
    result = petkit("train", "adapter", recipe, "--dry-run")
    assert result.code == 0
    for part in (
        "timm/test_vit",
        "blocks.*.adaptformer (6)",
        "40 train, 20 test; 10 classes",
        "8 (4 an epoch",
        "MiB",
    ):
        assert part in result.out
    payload = json.loads(petkit("train", "adapter", recipe, "--dry-run", "--json").out)
    assert (payload["status"], payload["steps"]["total"]) == ("plan", 8)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [["--dry-run"], []])
def test_a_warm_up_that_never_ends_is_told(petkit: Petkit, tmp_path: Path, flags: list[str]) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", training__warmup_epochs=2)
    result = petkit("train", "adapter", recipe, "--quiet", *flags)
    assert result.code == 0
    assert result.err == (
        "warning: training.warmup_epochs 2 is all of training.epochs 2: the learning rate only rises, and "
        "training.min_learning_rate has no effect\n"
    )


def test_a_warm_up_longer_than_the_run_is_refused(petkit: Petkit, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", training__warmup_epochs=3)
    result = petkit("train", "adapter", recipe)
    assert (result.code, result.out) == (2, "")
    assert (
        "training.warmup_epochs must be at most epochs 2, got 3: the learning rate would never" in result.err
    )


def image_folder(root: Path, bad: bool = False, unseen: bool = False) -> Path:
    for split, classes in (("train", "ab"), ("test", "abc" if unseen else "ab")):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(folder / f"{number}.png")
    if bad:
        (root / "test" / "a" / "9.png").write_bytes(b"\x89PNG no picture")
    return root


# name -> (recipe changes, flags, exit code, words of the message)
BAD: dict[str, tuple[dict[str, Any], list[str], int, str]] = {
    "unknown key": ({"adapter__bit": 1}, [], 2, "did you mean adapter.bits?"),
    "invalid bits": (
        {"adapter__bits": 3},
        [],
        2,
        "adapter.bits must be 1, 2, 4, 8 or 32, got 3 (recipe.yaml",
    ),
    "no selection": (
        {"training__evaluate_every_steps": 5},
        [],
        2,
        "training.evaluate_every_steps has no effect with training.select last",
    ),
    "no effect": ({"adapter__targets": ["q"]}, [], 2, "adapter.targets has no effect"),
    "no model": ({"model__name": None}, [], 2, "model.name is required"),
    "unknown model": ({"model__name": "timm/no_such_vit"}, [], 2, "timm/no_such_vit"),
    "no such family": ({"model__name": "keras/x"}, [], 2, "model.name must be timm/NAME"),
    "image size": ({"model__image_size": 33}, [], 2, "multiple of the patch size 16"),
    "no target": (
        {"adapter__method": "lora", "adapter__targets": ["nowhere"]},
        [],
        2,
        "matches no linear map",
    ),
    "no sample": ({"data__sample": "cifar"}, [], 2, "data.sample must be"),
    "no path": ({"data__format": "vtab"}, [], 2, "data.path"),
    "path is nothing": ({"data__format": "vtab", "data__path": "/no/such"}, [], 2, "/no/such"),
    "too few examples": ({"data__train_size": 4000}, [], 2, "data.train_size"),
    "batch too large": (
        {"training__batch_size": 64},
        [],
        2,
        "training.batch_size x processes must be at most",
    ),
    "micro-batches": (
        {"training__gradient_accumulation": 11},
        [],
        2,
        "training.gradient_accumulation must be",
    ),
    "no output": ({"output": "/proc/petkit"}, [], 2, "cannot make output folder /proc/petkit: "),
    "rates": ({"training__min_learning_rate": 1.0}, [], 2, "training.min_learning_rate must be at most"),
    "duration": ({}, ["--max-time", "2 days"], 2, "training.max_time must be a positive duration"),
    "no device": ({}, ["--device", "cuda:7"], 4, "--device cuda:7 must name a CUDA device that is here"),
    "odd device": ({}, ["--device", "tpu"], 2, "--device must be auto, cpu, cuda"),
    "odd override": ({}, ["--set", "training.epochs"], 2, "--set must be KEY=VALUE"),
    "wrong task": ({"task": "causal_lm"}, [], 2, "data.format must be chat for task causal_lm"),
    "both": ({}, ["--resume", "--overwrite"], 2, "--overwrite and --resume exclude each other"),
    "nothing to resume": ({}, ["--resume=nowhere"], 2, "nothing to resume from, leave --resume out"),
    "pickle": ({"model__weights": "x.pth", "model__pretrained": None}, [], 5, "pickle"),
    "not cached": (
        {"model__name": "timm/vit_base_patch16_224", "model__pretrained": None},
        ["--offline"],
        6,
        "cache",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_dry_run_ends_as_the_real_run_would(
    petkit: Petkit, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    changes, flags, code, words = BAD[case]
    (tmp_path / "x.pth").write_bytes(b"\x80\x04.")
    if "model__weights" in changes:
        changes = {**changes, "model__weights": str(tmp_path / "x.pth")}
    recipe = write_recipe(tmp_path / "recipe.yaml", **changes)
    dry = petkit("train", "adapter", recipe, *flags, "--dry-run", "--json")
    real = petkit("train", "adapter", recipe, *flags, "--json")
    assert (dry.code, dry.err, dry.out) == (code, real.err, "")
    assert (real.code, real.out) == (code, "")
    assert words in real.err
    assert real.err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "run" / TENSORS).exists()


@pytest.mark.parametrize(
    ("how", "words"),
    [({"bad": True}, "9.png is not a readable image"), ({"unseen": True}, "none of the 2 that were trained")],
)
def test_bad_data_ends_both_alike(petkit: Petkit, tmp_path: Path, how: dict[str, bool], words: str) -> None:
    data = image_folder(tmp_path / "images", **how)
    changes = {"data__format": "image_folder", "data__path": str(data), "data__train_size": None,
               "data__test_size": None, "training__batch_size": 4}  # fmt: skip
    recipe = write_recipe(tmp_path / "recipe.yaml", **changes)
    for flags in (["--dry-run"], []):
        result = petkit("train", "adapter", recipe, *flags)
        assert result.code == 2
        assert words in result.err
    if "bad" in how:
        skipping = petkit("train", "adapter", recipe, "--skip-bad")
        assert skipping.code == 0, skipping.err
        assert "9.png" in skipping.err
        assert "n 8" in skipping.out


def test_a_full_folder_is_refused_by_both_and_overwrite_replaces_it(petkit: Petkit, recipe: Path) -> None:
    assert petkit("train", "adapter", recipe, "--max-steps", 1).code == 0
    for flags in ([], ["--dry-run"]):
        result = petkit("train", "adapter", recipe, *flags)
        assert result.code == 2
        assert "is not empty: choose another, --resume or --overwrite" in result.err
    assert petkit("train", "adapter", recipe, "--overwrite", "--dry-run").code == 0
    assert petkit("train", "adapter", recipe, "--overwrite", "--max-steps", 2).code == 0


def test_overwrite_leaves_foreign_folders_alone(petkit: Petkit, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for flags in (["--dry-run"], []):
        assert petkit("train", "adapter", recipe, "--overwrite", *flags).code == 2
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_a_second_run_into_one_folder_is_refused(petkit: Petkit, recipe: Path, tmp_path: Path) -> None:
    with open_run(tmp_path / "run"):
        for flags in (["--dry-run"], [], ["--overwrite"]):
            result = petkit("train", "adapter", recipe, *flags)
            assert result.code == 2
            assert "in use" in result.err


def test_resume_goes_on_from_the_newest_or_the_named_checkpoint(
    petkit: Petkit, recipe: Path, tmp_path: Path
) -> None:
    assert petkit("train", "adapter", recipe, "-o", tmp_path / "whole").code == 0
    whole = (tmp_path / "whole" / TENSORS).read_bytes()
    assert petkit("train", "adapter", recipe, "--max-steps", 5).code == 0
    assert (tmp_path / "run" / TENSORS).read_bytes() != whole
    newest = petkit("train", "adapter", "--resume", recipe)
    assert newest.code == 0, newest.err
    assert (tmp_path / "run" / TENSORS).read_bytes() == whole
    assert "training 8/8" in newest.err
    finished = json.loads((tmp_path / "run" / "result.json").read_text())
    assert petkit("train", "adapter", "--resume", recipe).code == 0
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    assert again["images_per_second"]["train"] == finished["images_per_second"]["train"] > 0
    named = ["--resume", tmp_path / "whole" / "checkpoint-4", "-o", tmp_path / "named"]
    assert petkit("train", "adapter", recipe, *named).code == 0
    assert (tmp_path / "named" / TENSORS).read_bytes() == whole
    drift = petkit("train", "adapter", recipe, "--resume", "--seed", 1, "--dry-run")
    assert drift.code == 2
    assert "seed: 0 -> 1" in drift.err


def test_a_run_that_died_before_its_first_checkpoint_begins_again(
    petkit: Petkit, recipe: Path, tmp_path: Path
) -> None:
    assert petkit("train", "adapter", recipe, "-o", tmp_path / "whole").code == 0
    folder = tmp_path / "run"
    (folder / ".checkpoint-4.0badc0de.partial").mkdir(parents=True)
    (folder / ".petkit.lock").write_text("process 1 on elsewhere")
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert "choose another, --resume or --overwrite" in petkit("train", "adapter", recipe).err
    for flags in (["--dry-run"], []):
        result = petkit("train", "adapter", recipe, "--resume", *flags)
        assert result.code == 0, result.err
        assert f"{folder} holds no checkpoint yet: its run begins again at the first step\n" in result.err
    assert (folder / TENSORS).read_bytes() == (tmp_path / "whole" / TENSORS).read_bytes()
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--overwrite"]])
def test_a_run_that_died_before_its_first_step_may_be_called_again(
    petkit: Petkit, recipe: Path, tmp_path: Path, flags: list[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".petkit.lock").write_text("")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    result = petkit("train", "adapter", recipe, "--max-steps", 1, *flags)
    assert result.code == 0, result.err


@pytest.mark.parametrize("name", ["thesis.tex", "petkit.json", "checkpoint-4/state.json"])
def test_resume_does_not_begin_again_over_what_is_no_beginning(
    petkit: Petkit, recipe: Path, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    result = petkit("train", "adapter", recipe, "--resume", "--quiet")
    assert (result.code, result.out) == (2, "")
    assert "--resume needs a complete checkpoint" in result.err
    assert file.read_text() == "{}"


def test_the_summary_names_several_processes(petkit: Petkit, recipe: Path, tmp_path: Path) -> None:
    from petkit.cli.train import result_rows

    assert petkit("train", "adapter", recipe, "--max-steps", 1).code == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "processes" not in dict(result_rows(result, tmp_path))
    assert dict(result_rows({**result, "processes": 2}, tmp_path))["processes"] == "2"


def test_a_report_that_cannot_be_drawn_ends_nothing(
    petkit: Petkit, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("petkit.report.html.write_report", broken)
    result = petkit("train", "adapter", recipe, "--max-steps", 1)
    assert result.code == 0
    assert "no report.html: RuntimeError: no fonts" in result.err


# From here on: whole processes, as users start them.

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
SLOW_STEPS = {"training__epochs": 500, "training__checkpoint_steps": 3, "training__max_steps": 40,
              "training__checkpoint_every": 500, "adapter__dropout": 0.3}  # fmt: skip


def start(*arguments: Any, module: str = "petkit") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    """Wait until metrics.jsonl holds that many lines."""
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 4, 17])
def test_killed_and_resumed_gives_the_same_bytes(petkit: Petkit, tmp_path: Path, step: int) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", **SLOW_STEPS)
    assert petkit("train", "adapter", recipe, "-o", tmp_path / "whole").code == 0
    process = start("train", "adapter", recipe, "-o", tmp_path / "killed")
    wait_for_step(process, tmp_path / "killed", step)
    process.kill()
    process.communicate()
    resumed = petkit("train", "adapter", recipe, "-o", tmp_path / "killed", "--resume")
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "killed" / TENSORS).read_bytes() == (tmp_path / "whole" / TENSORS).read_bytes()
    assert not list((tmp_path / "killed").glob(".checkpoint*"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_first(petkit: Petkit, tmp_path: Path, number: int, code: int) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", **{**SLOW_STEPS, "training__checkpoint_steps": 1000})
    process = start("train", "adapter", recipe, "--json")
    wait_for_step(process, tmp_path / "run", 2)
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, ""), errors
    assert "after saving" in errors
    assert "Traceback" not in errors
    resumed = petkit("train", "adapter", recipe, "--resume")
    assert resumed.code == 0, resumed.err
    assert petkit("train", "adapter", recipe, "-o", tmp_path / "whole").code == 0
    assert (tmp_path / "run" / TENSORS).read_bytes() == (tmp_path / "whole" / TENSORS).read_bytes()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun(*arguments: Any) -> subprocess.Popen[str]:
    launcher = ["--nproc-per-node", 2, "--master-port", free_port(), "-m", "petkit"]
    return start(*launcher, *arguments, module="torch.distributed.run")


def accelerate(processes: int, *arguments: Any) -> subprocess.Popen[str]:
    # The flag means "several processes" on machines without a GPU too; they then take gloo.
    several = ["--multi_gpu"] if processes > 1 else ["--cpu"]
    flags = [*several, "--num_processes", processes, "--num_machines", 1, "--mixed_precision", "no"]
    flags += ["--dynamo_backend", "no", "--main_process_port", free_port(), "-m", "petkit"]
    return start(*flags, *arguments, module="accelerate.commands.launch")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_equal_one_with_twice_the_batch(petkit: Petkit, tmp_path: Path, launcher: str) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml", adapter__dropout=0.0, adapter__bits=32, training__epochs=3
    )
    one = petkit("train", "adapter", recipe, "-o", tmp_path / "one", "--set", "training.batch_size=20")
    assert one.code == 0, one.err
    arguments = ["train", "adapter", recipe, "-o", tmp_path / "two", "--json", "--device", "cpu"]
    process = torchrun(*arguments) if launcher == "torchrun" else accelerate(2, *arguments)
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert json.loads(out)["processes"] == 2
    # The order of float32 sums differs, and AdamW divides by the root of tiny second moments.
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    # Only the first process speaks.
    assert errors.count("adapters at 6 modules") == 1


@pytest.mark.slow
def test_accelerate_launch_runs_the_same_command(petkit: Petkit, recipe: Path, tmp_path: Path) -> None:
    assert petkit("train", "adapter", recipe, "-o", tmp_path / "alone").code == 0
    process = accelerate(1, "train", "adapter", recipe)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert (tmp_path / "run" / TENSORS).read_bytes() == (tmp_path / "alone" / TENSORS).read_bytes()


@pytest.mark.slow
def test_a_launched_run_passes_its_exit_code_on(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", adapter__bits=3)
    process = torchrun("train", "adapter", recipe)
    _, errors = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "adapter.bits must be 1, 2, 4, 8 or 32, got 3" in errors


@pytest.mark.slow
def test_a_closed_pipe_does_not_fail_the_run(recipe: Path, tmp_path: Path) -> None:
    process = start("train", "adapter", recipe, "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        errors = process.stderr.read()
    assert process.wait(timeout=120) == 0, errors
    assert (tmp_path / "run" / "result.json").exists()
