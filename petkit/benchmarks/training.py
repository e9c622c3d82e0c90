"""`petkit bench training`: what 1-bit adapters add to a training step, against 32-bit ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from petkit.benchmarks.harness import Case, measure, peak_extra_bytes
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import insert
from petkit.models.loading import load_model
from petkit.report.tables import Table

MODEL = ModelConfig(name="timm/vit_small_patch16_224", pretrained=False)


def make_step(bits: int, batch: int) -> Callable[[], float]:
    """A whole optimiser step of AdaptFormer, h = 32, on a random ViT-S and random images."""
    model = load_model(MODEL, "image_classification", 10).model
    config = AdapterConfig(method="adaptformer", bits=bits, bottleneck=32)  # type: ignore[arg-type]
    insert(model, config, torch.Generator().manual_seed(0))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(batch) % 10

    def step() -> float:
        loss = cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def run(batch: int, threads: Sequence[int], seconds: float) -> dict[str, Any]:
    """Time and memory of a step with 1-bit adapters and with 32-bit ones.

    Args:
        batch: images per step.
        threads: torch thread counts to measure at.
        seconds: time per measurement.

    Returns:
        JSON-ready values; ratios above 1 mean that 1-bit adapters are the cheaper ones.
    """
    steps = {bits: make_step(bits, batch) for bits in (1, 32)}
    for step in steps.values():
        step()
    memory = {bits: peak_extra_bytes(step) for bits, step in steps.items()}
    case = Case(f"training step, ViT-S, batch {batch}", steps[1], {"32-bit adapters": steps[32]})
    outcomes = [measure(case, count, bandwidth=1.0, seconds=seconds, least_rounds=5) for count in threads]
    return {
        "outcomes": [outcome.to_dict() for outcome in outcomes],
        "extra_bytes": {str(bits): size for bits, size in memory.items()},
    }


def table(payload: dict[str, Any]) -> Table:
    """The result for people."""
    extra = payload["extra_bytes"]
    memory = extra["1"] / extra["32"] if extra["1"] and extra["32"] else None
    return Table.from_records(
        [
            {
                "case": outcome["case"],
                "threads": outcome["threads"],
                "time 1 bit / 32 bit": 1 / outcome["peers"]["32-bit adapters"]["ratio"],
                "memory 1 bit / 32 bit": memory,
            }
            for outcome in payload["outcomes"]
        ]
    )
