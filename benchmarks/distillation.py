"""Every objective of `petkit distill` from the same start with the same budget, for docs/distill.md.

.venv/bin/python benchmarks/distillation.py run WORK --seeds 0 1 2
.venv/bin/python benchmarks/distillation.py tables WORK --save benchmarks/results/distillation.json
.venv/bin/python benchmarks/distillation.py plots WORK --save docs/images/distillation.png

WORK holds what benchmarks/distillation_models.py made. A run that is finished is not run again, and one that
was stopped goes on from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).with_suffix(".yaml")
STARTS = ("near", "far")
# A step whose gradient is so many times the run's median is a spike.
SPIKE = 5.0
# Of the curves: each point is a mean of so many steps; and what is drawn, with the axis's label.
WINDOW = 10
# Of what is sampled, the beginning and the end are means of so many steps.
LAST = 20
# What is measured before and after a run, along greedy answers to the validation's questions.
MEASURES = ("reward", "forward_kl", "reverse_kl")
PANELS = {
    "reward": "reward",
    "reverse_kl": "reverse KL to the teacher (nats)",
    "gradient_norm": "gradient norm",
}


@dataclass(frozen=True)
class Variant:
    """An objective with its settings."""

    settings: Mapping[str, Any] = field(default_factory=dict)

    def flags(self) -> Iterator[str]:
        """As `petkit distill` takes them."""
        for key, value in self.settings.items():
            yield from ("--set", f"{key}={value}")


def objective(kind: str, **more: Any) -> Variant:
    """An objective of a kind."""
    return Variant({"objective.kind": kind, **{f"objective.{key}": value for key, value in more.items()}})


GUIDED = {"guidance.responses": "live"}
# Of 47 characters the 8 likeliest are what the 64 likeliest of 150,000 tokens are.
FEW = {"top_k": 8}
ONE_BIT = {
    "student.tuning": "adapter",
    "adapter.bits": 1,
    "adapter.bottleneck": 16,
    "adapter.targets": "[q,k,v,o,mlp]",
    "training.learning_rate": 2e-4,
}
FAST = {"training.learning_rate": 1e-4}
VARIANTS = {
    "opd": objective("opd"),
    "gkd": objective("gkd"),
    "fkl": objective("fkl", **FEW),
    "eopd": objective("eopd", **FEW),
    "reopold": objective("reopold"),
    "tropd": objective("tropd", **FEW),
    "tropd-clip": objective("tropd", outlier="clip"),
    "tropd-mask": objective("tropd", outlier="mask"),
    "tropd-expected": objective("tropd", trust="expected", **FEW),
    "tropd-guided": Variant({**objective("tropd", **FEW).settings, **GUIDED}),
}
# For language models with a usual vocabulary, see benchmarks/distillation_smollm2.py.
LARGER = {
    "tropd-64": objective("tropd"),
    "opd-fast": Variant({**objective("opd").settings, **FAST}),
    "tropd-64-fast": Variant({**objective("tropd").settings, **FAST}),
    "opd-1bit": Variant({**objective("opd").settings, **ONE_BIT}),
    "tropd-1bit": Variant({**objective("tropd").settings, **ONE_BIT}),
}


def folder_of(work: Path, variant: str, start: str, seed: int) -> Path:
    """Where a run goes."""
    return work / "runs" / f"{variant}-{start}-{seed}"


def run(
    recipe: Path,
    work: Path,
    variants: Sequence[str],
    starts: Sequence[str],
    seeds: Sequence[int],
    threads: int,
) -> None:
    """Carry out the runs that are not finished, one after the other."""
    for seed in seeds:
        for start in starts:
            for name in variants:
                folder, variant = folder_of(work, name, start, seed), {**VARIANTS, **LARGER}[name]
                if not (folder / "result.json").exists():
                    distil(recipe, work, folder, variant, start, ("--seed", seed, "--threads", threads))


def distil(
    recipe: Path, work: Path, folder: Path, variant: Variant, start: str, more: Sequence[object]
) -> None:
    """One run of `petkit distill`."""
    own = {
        "student.model.name": work / start,
        "teacher.model": work / "teacher",
        "data.train": work / "train.jsonl",
        "data.validation": work / "validation.jsonl",
    }
    settings = [part for key, value in own.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "petkit", "distill", recipe, "-o", folder, "--resume"]
    command += [*settings, *variant.flags(), *more]
    print(*command, flush=True)
    subprocess.run([str(one) for one in command], check=True)


def summary(folder: Path, variant: Variant) -> dict[str, Any]:
    """What one run was, and its figures."""
    result = json.loads((folder / "result.json").read_text("utf-8"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    norms = [row["gradient_norm"] for row in rows if "gradient_norm" in row]
    median = statistics.median(norms)
    return {
        "seed": result["seed"],
        "settings": dict(variant.settings),
        "before": {name: result["before"][name] for name in MEASURES},
        **{name: result["after"][name] for name in MEASURES},
        "sampled_reward_first": some(rows, "reward", slice(LAST)),
        **{f"sampled_{name}": some(rows, name, slice(-LAST, None)) for name in ("reward", "entropy")},
        "gradient_median": median,
        "gradient_largest": max(norms),
        "spikes": sum(norm > SPIKE * median for norm in norms),
        "steps": result["steps"],
    }


def some(rows: Sequence[Mapping[str, Any]], name: str, steps: slice) -> float:
    """Mean of a number over some of the steps that have it."""
    return statistics.fmean([row[name] for row in rows if name in row][steps])


def tables(work: Path, starts: Sequence[str], save: Path | None) -> None:
    """Means and standard deviations over seeds, as Markdown and JSON."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for start in starts:
        for name, variant in {**VARIANTS, **LARGER}.items():
            folders = sorted((work / "runs").glob(f"{name}-{start}-[0-9]"))
            runs = [summary(folder, variant) for folder in folders if (folder / "result.json").exists()]
            if runs:
                found.setdefault(start, {})[name] = runs
    for start, rows in found.items():
        print(f"\n{start}\n")
        print("| objective | reward | forward KL | reverse KL | median gradient | largest | spikes |")
        print("|---|---|---|---|---|---|---|")
        begin = next(iter(rows.values()))[0]["before"]
        print(f"| before | {' | '.join(shown(begin[name], name) for name in MEASURES)} | | | |")
        for variant, runs in rows.items():
            cells = [spread(runs, name) for name in (*MEASURES, "gradient_median", "gradient_largest")]
            print(f"| {variant} | {' | '.join(cells)} | {sum(one['spikes'] for one in runs)} |")
    if save is not None:
        save.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def spread(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    """A mean and, of several runs, a standard deviation."""
    values = [float(one[name]) for one in runs]
    mean = statistics.fmean(values)
    if len(values) == 1:
        return shown(mean, name)
    return f"{shown(mean, name)} ± {shown(statistics.stdev(values), name)}"


def shown(value: float, name: str) -> str:
    """As the table has it: rewards in percent."""
    return f"{value:.1%}" if name == "reward" else f"{value:.2f}"


def curve(folders: Sequence[Path], name: str) -> list[tuple[int, float]]:
    """A number of metrics.jsonl over the steps: means of windows, over all seeds."""
    found: dict[int, list[float]] = {}
    for folder in folders:
        for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            if name in row:
                found.setdefault((row["step"] - 1) // WINDOW, []).append(row[name])
    return [((place + 1) * WINDOW, statistics.fmean(values)) for place, values in sorted(found.items())]


def plots(work: Path, variants: Sequence[str], starts: Sequence[str], save: Path) -> None:
    """A picture for each start, whose name is put behind the file's: reward, KL and gradients by step."""
    from petkit.report import figures
    from petkit.report.plots import draw_curve

    for start in starts:
        figure, panels = figures.new_figure(len(PANELS))
        for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
            for index, variant in enumerate(variants):
                folders = sorted((work / "runs").glob(f"{variant}-{start}-[0-9]"))
                points = curve(folders, name)
                if points:
                    draw_curve(axes, variant, points, index)
            if name == "gradient_norm":
                axes.set_yscale("log")
            figures.finish(axes, "optimiser step", label, columns=3, legend=name == "reward")
        print(figures.save(figure, save.with_stem(f"{save.stem}-{start}")))


def main() -> None:
    """Run, print what was found, or draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=("run", "tables", "plots"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=[*VARIANTS, *LARGER])
    parser.add_argument("--starts", nargs="+", default=list(STARTS), help="folders of WORK with students")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", type=Path)
    own = parser.parse_args()
    if own.part == "run":
        run(own.recipe, own.work.resolve(), own.variants, own.starts, own.seeds, own.threads)
    elif own.part == "tables":
        tables(own.work.resolve(), own.starts, own.save)
    else:
        plots(own.work.resolve(), own.variants, own.starts, own.save or Path("distillation.png"))


if __name__ == "__main__":
    main()
