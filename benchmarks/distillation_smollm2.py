"""SmolLM2-135M-Instruct as a teacher of one task and, pruned in depth, as its student, for distillation.py.

.venv/bin/python benchmarks/distillation_smollm2.py WORK --base smol --questions QUESTIONS
.venv/bin/python benchmarks/distillation.py run WORK --recipe benchmarks/distillation_smollm2.yaml \
    --starts student --variants opd tropd-64 opd-fast tropd-64-fast opd-1bit tropd-1bit --seeds 0

`smol` is the model as docs/edrm.md saves it, QUESTIONS what benchmarks/distillation_models.py wrote. The task
is sums of three or four digits (chain_sum of reasoning-gym), answered through their partial sums. The teacher
learns it from written answers, by LoRA in float32 that is then merged into the weights. The student is the
teacher without the layers that it misses the least, one at a time, and learns from written answers for a
little while, as it must after losing them. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from distillation_models import written
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

RECIPE = Path(__file__).parent.parent / "petkit" / "recipes" / "chat-lora-1bit.yaml"
TRAIN, TEST = 6_000, 100
STEPS = {"teacher": 400, "student": 60}
# Of one digit each: what a model of this size learns in minutes.
DIGITS = re.compile(r"\d([+-]\d)+=")
# Shorter than the message that the model's own template puts before a conversation without one.
SYSTEM = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))["data"]["system"]
# Of 30 layers so many go, found by the loss of so many conversations.
PRUNED, JUDGES = 6, 24
SETTINGS: dict[str, Any] = {
    "adapter.bits": 32,
    "adapter.dropout": 0.0,
    "data.max_length": 128,
    "training.batch_size": 8,
    "training.gradient_accumulation": 1,
    "training.epochs": 1,
    "training.warmup_epochs": 0.02,
    "training.select": "last",
}


def questions(source: Path, work: Path) -> None:
    """Prompts for `petkit distill`, and conversations to learn the task from."""
    (work / "chat").mkdir(parents=True, exist_ok=True)
    for name, place, count in (("train", "train", TRAIN), ("test", "validation", TEST)):
        rows = [json.loads(line) for line in (source / f"{name}.jsonl").read_text("utf-8").splitlines()]
        rows = [row for row in rows if DIGITS.fullmatch(row["question"])][:count]
        write(work / f"{place}.jsonl", rows)
        write(work / "chat" / f"{name}.jsonl", [conversation(row) for row in rows])


def conversation(row: Mapping[str, str]) -> dict[str, Any]:
    """A question and its written answer."""
    turns = {"system": SYSTEM, "user": row["question"], "assistant": written(dict(row), explained=True)}
    return {"messages": [{"role": role, "content": text} for role, text in turns.items()]}


def write(file: Path, rows: list[Any]) -> None:
    """Write JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def prune(teacher: Path, chats: Path, folder: Path) -> None:
    """A copy of a model without the layers whose absence, one at a time, costs the least."""
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    rows = [json.loads(line)["messages"] for line in chats.read_text("utf-8").splitlines()[:JUDGES]]
    layers = list(model.model.layers)
    costs = [answer_loss(without(model, layers, {i}), tokenizer, rows) for i in range(len(layers))]
    gone = sorted(range(len(layers)), key=costs.__getitem__)[:PRUNED]
    print(f"without layers {sorted(gone)}", flush=True)
    without(model, layers, set(gone)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def without(model: Any, layers: list[nn.Module], gone: set[int]) -> Any:
    """The model with those of its layers that are not gone."""
    kept = [layer for i, layer in enumerate(layers) if i not in gone]
    for i, layer in enumerate(kept):
        layer.self_attn.layer_idx = i
    model.model.layers = nn.ModuleList(kept)
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[: len(kept)]
    return model


@torch.no_grad()
def answer_loss(model: Any, tokenizer: Any, rows: list[Any]) -> float:
    """Negative log-likelihood of the answers, in nats a token."""
    total, count = 0.0, 0
    for turns in rows:
        prompt, whole = (
            tokenizer.apply_chat_template(part, add_generation_prompt=begun, return_dict=False)
            for part, begun in ((turns[:-1], True), (turns, False))
        )
        logits = model(input_ids=torch.tensor([whole])).logits[0, len(prompt) - 1 : -1]
        answer = torch.tensor(whole[len(prompt) :])
        total += float(nn.functional.cross_entropy(logits, answer, reduction="sum"))
        count += len(answer)
    return total / count


def tune(work: Path, base: Path, name: str, threads: int) -> None:
    """Learn the task by LoRA, and put it into the weights."""
    adapter, model = work / f"{name}-adapter", work / name
    own = {"model.name": base, "data.path": work / "chat", "training.max_steps": STEPS[name], **SETTINGS}
    if not (adapter / "result.json").exists():
        petkit("train", "adapter", RECIPE, "-o", adapter, "--threads", threads, "--resume", *flags(own))
    if not (model / "petkit.json").exists():
        merge = work / f"{name}-merge.yaml"
        merge.write_text(f"merge_method: passthrough\nmodels:\n  - model: {base}+{adapter}\n", "utf-8")
        petkit("merge", merge, "-o", model)


def flags(settings: Mapping[str, Any]) -> Iterator[str]:
    """As petkit takes them."""
    for key, value in settings.items():
        yield from ("--set", f"{key}={value}")


def petkit(*arguments: object) -> None:
    """Run a command of petkit."""
    command = [sys.executable, "-m", "petkit", *map(str, arguments)]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    """Make the questions and both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    own = parser.parse_args()
    work, base, pruned = own.work.resolve(), own.base.resolve(), own.work.resolve() / "pruned"
    questions(own.questions, work)
    torch.set_num_threads(own.threads)
    tune(work, base, "teacher", own.threads)
    if not (pruned / "config.json").exists():
        prune(work / "teacher", work / "chat" / "train.jsonl", pruned)
    tune(work, pruned, "student", own.threads)


if __name__ == "__main__":
    main()
