"""Measure what recording the entropy adds to a decoding step of a real model.

    python benchmarks/tracker_cost.py MODEL --save benchmarks/results/tracker.json

Every step is timed in its two parts, the model's forward pass with its cache and the tracker's call on the
logits that came out, so that the machine's noise meets both alike; the share is of their medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from petkit.methods.edrm.writers import LanguageModel, load_language_model
from petkit.rollout.entropy import EntropyTracker

STEPS = 64
PROMPT = "Tom has 3 apples and buys 4 more. How many apples does he have?"


@torch.inference_mode()
def share(model: LanguageModel, batch: int) -> dict[str, Any]:
    """The tracker's share of a step."""
    ids = torch.tensor([model.tokenizer(PROMPT)["input_ids"]] * batch)
    tracker, cache, given = EntropyTracker(), None, ids
    forward, tracked = [], []
    for _ in range(STEPS):
        start = time.perf_counter()
        output = model.model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
        middle = time.perf_counter()
        logits, cache = output.logits[:, -1], output.past_key_values
        tracker(ids, logits)
        tracked.append(time.perf_counter() - middle)
        forward.append(middle - start)
        given = logits.argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, given], dim=1)
    # The first steps read the prompt and warm up.
    step, cost = statistics.median(forward[4:]), statistics.median(tracked[4:])
    return {"threads": torch.get_num_threads(), "batch": batch, "share": cost / (step + cost)}


def main() -> None:
    """Measure at one and two threads, with one row and with sixteen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    model = load_language_model(options.model)
    rows = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch in (1, 16):
            rows.append(share(model, batch))
            print(f"{threads} threads, batch {batch}: {rows[-1]['share']:.2%} of a step")
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    result = {"parameters": parameters, "steps": STEPS, "cpu": platform.processor(), "rows": rows}
    if options.save:
        options.save.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
