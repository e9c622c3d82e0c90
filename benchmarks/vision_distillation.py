"""What a teacher's logits and features add to few labels, for docs/distill.md.

.venv/bin/python benchmarks/vision_distillation.py WORK --seeds 0 1 2 3 4 --save FILE

The teacher is the artifact of the recipe adapter-demo: a ViT-S/14 with 1-bit adapters that saw 1,000 labelled
pictures of Fashion-MNIST at 56 pixels. Students are the same frozen model at 28 pixels, a quarter of the
patches, with 1-bit adapters of their own, and see 200 of the pictures. All arms have the same start, batches
and steps. A run that is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy.stats import t as student_t

LABELS, EPOCHS = 200, 20
ARMS: dict[str, dict[str, Any]] = {
    "labels alone": {},
    "logits": {"alpha": 0.5},
    "logits, T = 1": {"alpha": 0.5, "temperature": 1},
    "features": {"alpha": 0.0, "feature_weight": 1.0},
    "logits and features": {"alpha": 0.5, "feature_weight": 1.0},
}
SHARED = {"data.train_size": LABELS, "training.epochs": EPOCHS, "training.checkpoint_every": EPOCHS}


def petkit(*words: object) -> None:
    """Run a command of petkit."""
    subprocess.run([sys.executable, "-m", "petkit", *map(str, words)], check=True)


def student(work: Path, name: str, seed: int, threads: int) -> dict[str, Any]:
    """Train one student, unless it is there, and give its figures."""
    folder = work / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{seed}"
    if not (folder / "result.json").exists():
        settings: dict[str, object] = {**SHARED}
        for key, value in ARMS[name].items():
            settings[f"distillation.{key}"] = value
        verb: tuple[str, ...] = ("distill", "distill-vision-demo")
        if ARMS[name]:
            settings["teacher.model"] = work / "teacher"
        else:
            verb = ("train", "adapter", "adapter-demo")
            settings["model.image_size"] = 28
        flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        petkit(*verb, "-o", folder, *flags, "--seed", seed, "--threads", threads, "--overwrite")
    return figures(json.loads((folder / "result.json").read_text("utf-8")))


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a run."""
    teacher = result.get("teacher", {})
    return {
        "accuracy": result["accuracy"],
        "n": result["n"],
        "teacher": teacher.get("accuracy"),
        "agreement": teacher.get("agreement"),
        "steps": result["steps"],
        "images_per_second": result["images_per_second"]["train"],
    }


def half_width(values: list[float]) -> float:
    """Of a 95 % interval of the mean, by Student's t."""
    freedom = len(values) - 1
    return float(student_t.ppf(0.975, freedom)) * statistics.stdev(values) / len(values) ** 0.5


def main() -> None:
    """Run all arms in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", type=Path)
    own = parser.parse_args()
    work = own.work.resolve()
    if not (work / "teacher" / "result.json").exists():
        petkit(
            "train", "adapter", "adapter-demo", "-o", work / "teacher", "--threads", own.threads, "--resume"
        )
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    for seed in own.seeds:
        for name in ARMS:
            found[name].append(student(work, name, seed, own.threads))
    base = [run["accuracy"] for run in found["labels alone"]]
    print("| learns from | test accuracy | more than labels alone | as the teacher |\n|---|---:|---:|---:|")
    for name, runs in found.items():
        values = [run["accuracy"] for run in runs]
        more = [one - other for one, other in zip(values, base, strict=True)]
        gain = "" if name == "labels alone" else f"{statistics.fmean(more):+.1%} ± {half_width(more):.1%}"
        same = [run["agreement"] for run in runs if run["agreement"] is not None]
        alike = f"{statistics.fmean(same):.1%}" if same else ""
        print(f"| {name} | {statistics.fmean(values):.1%} ± {half_width(values):.1%} | {gain} | {alike} |")
    if own.save is not None:
        facts = {"threads": own.threads, "seeds": own.seeds, "labels": LABELS, "epochs": EPOCHS}
        own.save.write_text(json.dumps({**facts, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
