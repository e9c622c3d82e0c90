"""Whether a merged model gains on the items that its experts gain on: the gain-consistency cosine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from petkit.artifacts.strict_json import parse_json
from petkit.data.files import read_text
from petkit.data.jsonl import strict_rows
from petkit.errors import ConfigError, InputError
from petkit.merging.analysis.footprint import cosine

Float = NDArray[np.float64]
BASE = "base"
DRAWS = 2000
CONFIDENCE = 0.95
# Numbers of a block of bootstrap draws.
BLOCK = 1 << 20


@dataclass(frozen=True)
class Scores:
    """What a model got for each item of a test.

    Args:
        origin: the file, for messages.
        by_id: scores.
    """

    origin: str
    by_id: Mapping[str, float]


def read_scores(path: Path) -> Scores:
    """Read the scores of a model.

    Args:
        path: JSONL of {"id", "score"}, or a .json file that holds a list of such; true and false are 1 and 0,
            other keys are passed over.

    Returns:
        The scores.

    Raises:
        InputError: the file cannot be read, a row is faulty, or an id comes twice.
    """
    rows = _json_rows(path) if path.suffix == ".json" else strict_rows(path, _parsed)
    found: dict[str, float] = {}
    for place, (name, score) in rows:
        if name in found:
            raise InputError(f"{place}: the id {name!r} comes twice")
        found[name] = score
    if not found:
        raise InputError(f"{path} must hold at least one score, got none")
    return Scores(str(path), found)


def _json_rows(path: Path) -> list[tuple[str, tuple[str, float]]]:
    try:
        content: Any = parse_json(read_text(path).encode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {str(error)[:200]}") from error
    if not isinstance(content, list):
        raise InputError(f"{path} must hold a list of {{id, score}}, got {type(content).__name__}")
    found = []
    for place, row in enumerate(content):
        try:
            found.append((f"{path}[{place}]", _parsed(row)))
        except ValueError as error:
            raise InputError(f"{path}[{place}]: {error}") from error
    return found


def _parsed(row: Any) -> tuple[str, float]:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str | int) or row["id"] == "":
        raise ValueError(f"expected an object with id and score, got {row!r:.80}")
    score = row.get("score")
    if not isinstance(score, bool | int | float) or not math.isfinite(score):
        raise ValueError(f"score must be a finite number, got {score!r:.60}")
    return str(row["id"]), float(score)


def gain(scores: Float, base: Float) -> Float:
    """What was gained on each item: max(score - the base's, 0).

    Args:
        scores: (items,) of a model.
        base: (items,) of the model before.

    Returns:
        (items,), at least 0.
    """
    return np.maximum(scores - base, 0.0)


def gain_consistency(
    base: Float, experts: Mapping[str, Float], others: Mapping[str, Float], seed: int = 0
) -> dict[str, Any]:
    """Compare where models gain with where any expert does.

    Args:
        base: (items,) scores before fine-tuning.
        experts: (items,) scores of each expert, at least one.
        others: likewise of merged models, or of one that was trained on everything.
        seed: of the bootstrap.

    Returns:
        `items`; `union` with the mean gain and the number of items with one; for every model its mean score,
        mean gain, items gained and lost, the cosine of its gains with the union's, and a 95 % bootstrap
        interval over items, both None where there is no gain.

    Source:
        To Mix or To Merge (2602.12566): g_m(i) = max(a_m(i) - a_base(i), 0), g_union its maximum over the
        experts.
    """
    union = np.max([gain(scores, base) for scores in experts.values()], axis=0)
    rows = []
    for role, group in (("expert", experts), ("merged", others)):
        for name, scores in group.items():
            own = gain(scores, base)
            low, high = _bootstrap(union, own, seed)
            rows.append(
                {
                    "model": name,
                    "role": role,
                    "score": float(scores.mean()),
                    "gain": float(own.mean()),
                    "gained": int((own > 0).sum()),
                    "lost": int((scores < base).sum()),
                    "cosine": cosine(float(union @ own), float(union @ union), float(own @ own)),
                    "low": low,
                    "high": high,
                }
            )
    return {
        "items": len(base),
        "base_score": float(base.mean()),
        "union": {"gain": float(union.mean()), "gained": int((union > 0).sum())},
        "models": rows,
    }


def _bootstrap(union: Float, own: Float, seed: int) -> tuple[float | None, float | None]:
    """Percentiles of the cosine over draws of items; draws without any gain have none."""
    products = np.stack([union * own, union * union, own * own])
    drawing = np.random.Generator(np.random.PCG64(seed))
    count, found = len(union), []
    for start in range(0, DRAWS, rows := max(1, BLOCK // count)):
        chosen = drawing.integers(0, count, (min(rows, DRAWS - start), count))
        dot, first, second = (part[chosen].sum(axis=1) for part in products)
        there = (first > 0) & (second > 0)
        found.append(dot[there] / np.sqrt(first[there] * second[there]))
    cosines = np.concatenate(found)
    if not len(cosines):
        return None, None
    low, high = np.quantile(cosines, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), min(float(high), 1.0)


def gains_of_files(files: Mapping[str, Path], experts: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Read scores and compare gains.

    Args:
        files: by model: `base`, every expert, and any number of others.
        experts: the experts' names.
        seed: of the bootstrap.

    Returns:
        As `gain_consistency`.

    Raises:
        ConfigError: the base's or an expert's scores are missing.
        InputError: a file is faulty, or holds other items than the base's; the message names it and items.
    """
    for name in (BASE, *experts):
        if name not in files:
            raise ConfigError(
                f"scores of the base and of every expert are needed: none are given for {name}, add "
                f"{name}=FILE"
            )
    read = {name: read_scores(path) for name, path in files.items()}
    ids = list(read[BASE].by_id)
    for one in read.values():
        _check_items(read[BASE], one)
    values = {name: np.array([one.by_id[item] for item in ids]) for name, one in read.items()}
    base = values.pop(BASE)
    own = {name: values.pop(name) for name in experts}
    return gain_consistency(base, own, values, seed)


def _check_items(base: Scores, other: Scores) -> None:
    for first, second in ((base, other), (other, base)):
        lacking = [item for item in first.by_id if item not in second.by_id]
        if lacking:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise InputError(
                f"all files of scores must hold the same items: {second.origin} lacks the "
                f"{'items' if len(lacking) > 1 else 'item'} {', '.join(lacking[:3])}{more} of {first.origin}"
            )
