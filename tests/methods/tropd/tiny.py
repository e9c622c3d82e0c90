"""Recipes whose runs take a second: random language models of fifteen words, and questions about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from petkit.methods.tropd.config import DistillConfig
from petkit.training.context import RunContext
from tests.serving.text_models import SIZES, WORDS, save_tokenizer

END = 3
QUESTIONS = (
    ("the cat sat", "cat"),
    ("dog ran on the mat", "dog"),
    ("good dog", "good"),
    ("bad", "bad"),
    ("on the mat the cat", "mat"),
    ("user ran", "ran"),
    ("sat", "the"),
    ("good cat good dog", "cat"),
)


def save_model(
    folder: Path,
    seed: int,
    *,
    rows: int | None = None,
    context: int = 64,
    end: int = END,
    end_bias: float = 0.0,
    spread: float = 8.0,
    chat: bool = False,
    words: list[str] | None = None,
    tied: bool = False,
) -> str:
    """A random Llama whose logits lie some nats apart.

    Args:
        folder: where to.
        seed: of the weights.
        rows: of its tables, as many as the tokenizer has tokens or more.
        context: positions.
        end: id that ends a text.
        end_bias: 1 makes the end the likeliest token everywhere.
        spread: factor on the head.
        chat: give the tokenizer a template.
        words: in another order.
        tied: one table for both ends.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    size = save_tokenizer(folder, chat)
    if words is not None:
        text = (folder / "tokenizer.json").read_text()
        content = json.loads(text)
        content["model"]["vocab"] |= {word: 4 + place for place, word in enumerate(words)}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    torch.manual_seed(seed)
    special = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": 0, "tie_word_embeddings": tied}
    config = LlamaConfig(vocab_size=rows or size, max_position_embeddings=context, **SIZES, **special)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(spread)
        if end_bias:
            # Every state has its first number alone, on which the end's row sits.
            model.model.norm.weight.zero_()
            model.model.norm.weight[0] = 1
            model.model.embed_tokens.weight[:, 0] = 50
            model.lm_head.weight[:, 0] = 0
            model.lm_head.weight[end, 0] = 100
    model.save_pretrained(folder)
    return str(folder)


def write_questions(file: Path, rows: Any = QUESTIONS, dataset: str | None = None) -> str:
    """A JSONL file of questions with answers."""
    found = []
    for question, answer in rows:
        row = {"question": question, "answer": answer}
        found.append(row if dataset is None else {**row, "dataset": dataset})
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(file)


def content(output: Path | str, own: str, other: str, train: str, **changes: Any) -> dict[str, Any]:
    """A recipe of four steps; `objective__kind="gkd"` changes one key."""
    found: dict[str, Any] = {
        "output": str(output),
        "student": {"model": {"name": own}},
        "teacher": {"model": other},
        "adapter": {"method": "lora", "bits": 32, "bottleneck": 4, "dropout": 0.0},
        "data": {"train": train},
        "sampling": {"max_new_tokens": 5},
        "samples": 2,
        # With a checkpoint at the end alone, since each waits for the disk.
        "training": {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "checkpoint_every": 50},
    }
    found["training"] |= {"warmup_epochs": 0, "min_learning_rate": 0, "weight_decay": 0}
    for name, value in changes.items():
        *sections, key = name.split("__")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    kind = found.get("objective", {}).get("kind", "tropd")
    outlier = found.get("objective", {}).get("outlier", "fkl")
    if kind in ("fkl", "eopd") or (kind == "tropd" and outlier == "fkl"):
        found.setdefault("objective", {}).setdefault("top_k", 6)
    return found


def context(config: DistillConfig, **more: Any) -> RunContext:
    """Its surroundings."""
    return RunContext(Path(config.output), torch.device("cpu"), **more)


def records(folder: Path | str) -> list[dict[str, Any]]:
    """What metrics.jsonl holds."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


__all__ = ["END", "QUESTIONS", "WORDS", "content", "context", "records", "save_model", "write_questions"]
