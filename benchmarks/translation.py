"""Train a teacher and its students on parallel sentences, and measure quality, latency and throughput.

    python benchmarks/parallel_catalogues.py --language de data /usr/share/locale unpacked
    python benchmarks/translation.py train --data data --runs runs    # hours; goes on where it was stopped
    python benchmarks/translation.py measure --data data --runs runs --save FILE.json

The students learn from the teacher's translations; both CRFs begin as the trained nart, and so does
nart-longer, which learns as long as they do. Every system is measured on the whole test split; latencies are
taken sentence by sentence in turn, so that whatever else the machine does meets all systems alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from petkit.data.parallel import SentencePair, read_pairs
from petkit.methods.nart_crf.decoding import Translator
from petkit.methods.nart_crf.evaluation import corpus_scores
from petkit.methods.nart_crf.stored import load_translator, translator_of

RECIPE = Path(__file__).with_suffix(".yaml")
SECOND = ("start=RUNS/nart", "training.epochs=4", "training.learning_rate=5e-4")
# Epochs and peak learning rate of each model, in the order in which they need each other.
STAGES: dict[str, list[str]] = {
    "teacher": ["--teacher"],
    "nart": ["training.epochs=10"],
    # What the CRFs' epochs give without a CRF.
    "nart-longer": [*SECOND],
    "nart-crf": ["model.kind=nart-crf", *SECOND],
    "nart-dcrf": ["model.kind=nart-dcrf", *SECOND],
}
CRFS = ("nart-crf", "nart-dcrf")
STUDENTS = ("nart", "nart-longer", *CRFS)
RESAMPLES = 1000
WARM_UP = 5


@dataclass(frozen=True)
class System:
    """A way to translate that is measured."""

    name: str
    translator: Translator


def main() -> None:
    """Train, or measure."""
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    if arguments.action == "train":
        train(arguments)
    else:
        measure(arguments)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("train", "measure"))
    parser.add_argument("--data", type=Path, required=True, help="folder of train, valid and test.jsonl")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the artifacts")
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timed", type=int, default=200, help="test sentences whose latency is taken")
    parser.add_argument("--candidates", nargs="*", type=int, default=[9], help="lengths that students try")
    parser.add_argument("--save", type=Path)
    return parser.parse_args()


def train(arguments: argparse.Namespace) -> None:
    """Train what is not there yet; a run that was stopped goes on from its last checkpoint."""
    for name in arguments.stages:
        folder = arguments.runs / name
        if (folder / "petkit.json").exists():
            print(f"{name}: there already")
            continue
        command = [sys.executable, "-m", "petkit", "train", "nat", str(RECIPE), "-o", str(folder), "--resume"]
        command += ["--threads", str(arguments.threads)]
        for key, file in (("train", "train"), ("validation", "valid"), ("test", "test")):
            command += ["--set", f"data.{key}={arguments.data / file}.jsonl"]
        command += ["--set", f"teacher.model={arguments.runs / 'teacher'}"]
        for one in STAGES[name]:
            value = one.replace("RUNS", str(arguments.runs))
            command += [value] if one.startswith("--") else ["--set", value]
        subprocess.run(command, check=True)


def measure(arguments: argparse.Namespace) -> None:
    """Measure every system, print a line for each, save all."""
    pairs = read_pairs(arguments.data / "test.jsonl")
    systems = list(found(arguments.runs, arguments.candidates))
    rows: list[dict[str, Any]] = []
    kept: dict[str, list[str]] = {}
    for system in systems:
        kept[system.name], row = quality(system, pairs)
        rows.append(row)
        print(
            f"{system.name:28} BLEU {row['bleu']['value']:5.1f} chrF {row['chrf']['value']:5.1f}", flush=True
        )
    times = latencies(systems, [pair.source for pair in pairs[: arguments.timed]])
    for row in rows:
        row["latency_ms"] = summary(times[row["system"]])
        row["times_as_fast"] = float(np.median(times["teacher, beam 4"] / times[row["system"]]))
    content = {
        "settings": {"threads": arguments.threads, "timed": arguments.timed, "test": len(pairs)},
        "models": {name: model_facts(arguments.runs / name) for name in STAGES},
        "rows": rows,
        "overhead_ms": overheads(times),
        "paired": list(paired(kept, [pair.target for pair in pairs])),
    }
    if arguments.save:
        arguments.save.write_text(json.dumps(content, indent=2) + "\n")


def found(runs: Path, candidates: Sequence[int]) -> Iterator[System]:
    """The teacher greedy and by beam search; each student alone, with candidates, and rescored."""
    stored = load_translator(runs / "teacher")
    for beam in (1, 4):
        decode = stored.config.decode.model_copy(update={"beam": beam})
        yield System(f"teacher, beam {beam}", translator_of(stored, decode))
    for name in STUDENTS:
        student = load_translator(runs / name)
        yield System(name, translator_of(student))
        for count in candidates:
            for rescore in (None, str(runs / "teacher")):
                changed = {"candidates": count, "rescore": rescore}
                decode = student.config.decode.model_copy(update=changed)
                how = "rescored" if rescore else "by itself"
                yield System(f"{name}, {count} {how}", translator_of(student, decode))


def quality(system: System, pairs: list[SentencePair]) -> tuple[list[str], dict[str, Any]]:
    """Translations of the test split, with their scores and the rate at which they came."""
    started = time.perf_counter()
    texts = system.translator.texts(system.translator.translate([pair.source for pair in pairs], 64))
    seconds = time.perf_counter() - started
    scores = corpus_scores(texts, [pair.target for pair in pairs], RESAMPLES)
    row = {
        "system": system.name,
        "bleu": {"value": scores.bleu, "interval": scores.bleu_interval},
        "chrf": {"value": scores.chrf, "interval": scores.chrf_interval},
        "signature": scores.signature,
        "sentences_per_second": len(pairs) / seconds,
        "repeats": sum(map(repeats, texts)) / len(texts),
    }
    return texts, row


def repeats(text: str) -> int:
    """Words that repeat the word before them."""
    words = text.split()
    return sum(a == b for a, b in itertools.pairwise(words))


def latencies(systems: list[System], sources: list[str]) -> dict[str, np.ndarray]:
    """Milliseconds of each sentence by each system, the systems in turn."""
    times: dict[str, list[float]] = {system.name: [] for system in systems}
    for place, source in enumerate([*sources[:WARM_UP], *sources]):
        for system in systems:
            started = time.perf_counter()
            system.translator.texts(system.translator.translate([source], 1))
            if place >= WARM_UP:
                times[system.name].append(1000 * (time.perf_counter() - started))
    return {name: np.array(values) for name, values in times.items()}


def summary(values: np.ndarray) -> dict[str, float]:
    """Median and upper ends."""
    return dict(zip(("median", "p90", "p99"), np.percentile(values, (50, 90, 99)).tolist(), strict=True))


def overheads(times: dict[str, np.ndarray]) -> dict[str, float]:
    """What a CRF adds to the same sentence, in the median."""
    return {name: float(np.median(times[name] - times["nart"])) for name in CRFS}


def paired(kept: dict[str, list[str]], references: list[str]) -> Iterator[dict[str, Any]]:
    """Differences in BLEU between neighbours of the paper's order, on the same resamples of sentences."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    order = [*STUDENTS, "teacher, beam 4"]
    counts = {name: sentence_counts(metric, kept[name], references) for name in order}
    draws = np.random.default_rng(0).integers(0, len(references), (RESAMPLES, len(references)))
    for low, high in itertools.pairwise(order):
        values = np.array(
            [bleu(metric, counts[high][rows]) - bleu(metric, counts[low][rows]) for rows in draws]
        )
        ends = np.percentile(values, (2.5, 97.5)).tolist()
        whole = bleu(metric, counts[high]) - bleu(metric, counts[low])
        yield {"better": high, "than": low, "bleu": whole, "interval": ends}


def sentence_counts(metric: Any, texts: list[str], references: list[str]) -> np.ndarray:
    """What BLEU sums over sentences."""
    return np.array(metric._extract_corpus_statistics(texts, [references]))


def bleu(metric: Any, counts: np.ndarray) -> float:
    """BLEU of summed counts."""
    return float(metric._compute_score_from_stats(counts.sum(0).tolist()).score)


def model_facts(folder: Path) -> dict[str, Any]:
    """Steps, bytes and rate of a run."""
    result = json.loads((folder / "result.json").read_text())
    return {
        name: result[name]
        for name in ("kind", "steps", "bytes", "trainable_parameters", "examples_per_second")
    }


if __name__ == "__main__":
    main()
