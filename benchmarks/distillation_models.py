"""Small language models and questions for benchmarks/distillation.py: a good teacher, students near and far.

python -m venv questions && questions/bin/pip install reasoning-gym==0.1.25
questions/bin/python benchmarks/distillation_models.py questions WORK
.venv/bin/python benchmarks/distillation_models.py models WORK

Two tasks of reasoning-gym: sums of three or four numbers (chain_sum), answered through their partial sums,
and words spelt backward (spell_backward). A token is a character. All models are trained from random weights
on written answers: `teacher` is the largest, trained longest, and goes through steps always; `near` is small
and does so every second time; `far` is as small and nearly always answers at once, which the teacher never
does, so that it is deliberately distant.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, str]

TRAIN, VALIDATION, TEST = 20_000, 200, 500
# Characters of questions and answers.
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz+-=>:; "
LONGEST = 64


@dataclass(frozen=True)
class Shape:
    """A model, and how long it is trained on which kind of answers."""

    hidden: int
    layers: int
    steps: int
    # Part of its answers that go through steps; the others are given at once.
    explained: float = 1.0


MODELS = {
    "teacher": Shape(hidden=96, layers=3, steps=6000),
    "near": Shape(hidden=64, layers=2, steps=1500, explained=0.5),
    "far": Shape(hidden=64, layers=2, steps=1500, explained=0.05),
}


def questions(work: Path) -> None:
    """Write train, validation and test files; needs reasoning-gym."""
    import reasoning_gym

    count = TRAIN + VALIDATION + TEST
    sums = reasoning_gym.create_dataset(
        "chain_sum", size=count, seed=1, min_terms=3, max_terms=4, min_digits=1, max_digits=2
    )
    words = reasoning_gym.create_dataset("spell_backward", size=count, seed=2, min_word_len=3, max_word_len=8)
    rows = {
        "sums": [sum_row(item["question"], item["answer"]) for item in sums],
        "words": [word_row(item["question"], item["answer"]) for item in words],
    }
    work.mkdir(parents=True, exist_ok=True)
    for name, part in split(rows).items():
        lines = [json.dumps(row) for row in part]
        (work / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def sum_row(question: str, answer: str) -> Row:
    """A sum alone, without the sentence around it."""
    found = re.search(r"(-?\d[\d+\- ]*)=", question)
    assert found is not None, question
    return {"question": found[1].replace(" ", "") + "=", "answer": answer, "dataset": "sums"}


def word_row(question: str, answer: str) -> Row:
    """A word to be spelt backward, without the sentence around it."""
    return {
        "question": question.rpartition(":")[2].strip().lower() + ">",
        "answer": answer.lower(),
        "dataset": "words",
    }


def split(rows: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The same number of both tasks in every part; no question of one part is in another."""
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for own in rows.values():
        unique = list({row["question"]: row for row in own if len(row["question"]) < LONGEST // 2}.values())
        held = (VALIDATION + TEST) // 2
        parts["validation"] += unique[: VALIDATION // 2]
        parts["test"] += unique[VALIDATION // 2 : held]
        parts["train"] += unique[held:]
    for part in parts.values():
        random.Random(0).shuffle(part)
    return parts


def written(row: Row, explained: bool) -> str:
    """The answer that models learn to write."""
    if not explained:
        return row["answer"]
    if row["dataset"] == "words":
        # One letter after the other, then the word.
        return " ".join(row["answer"]) + "\n" + row["answer"]
    terms = [int(term) for term in re.findall(r"[+-]?\d+", row["question"])]
    totals = [sum(terms[: count + 1]) for count in range(1, len(terms))]
    return ";".join(map(str, totals)) + "\n" + str(totals[-1])


def save_tokenizer(folder: Path) -> Any:
    """One token a character."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import Fuse
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(["<pad>", "<end>", "<unk>", "\n", *ALPHABET])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        clean_up_tokenization_spaces=False,
        model_max_length=LONGEST,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def train(work: Path, name: str, shape: Shape, threads: int) -> dict[str, Any]:
    """Train one model on written answers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    folder = work / name
    tokenizer = save_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=3 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=4,
        max_position_embeddings=LONGEST,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, shape.steps, pct_start=0.05)
    losses: list[float] = []
    for ids, labels in batches(work, tokenizer, shape):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if len(losses) % 100 == 0:
            print(f"{name} {len(losses)}/{shape.steps}: loss {sum(losses[-100:]) / 100:.4f}", flush=True)
    model.save_pretrained(folder)
    return {"parameters": sum(p.numel() for p in model.parameters()), "loss": sum(losses[-100:]) / 100}


def batches(work: Path, tokenizer: Any, shape: Shape, size: int = 64) -> Iterator[tuple[Any, Any]]:
    """Random batches of questions with answers, padded on the right; the answer alone is learnt."""
    import torch

    rows = [json.loads(line) for line in (work / "train.jsonl").read_text("utf-8").splitlines()]
    draw = random.Random(2)
    examples = [encoded(row, tokenizer, draw.random() < shape.explained) for row in rows]
    generator = torch.Generator().manual_seed(1)
    for _ in range(shape.steps):
        chosen = [examples[i] for i in torch.randint(len(examples), (size,), generator=generator).tolist()]
        width = max(len(prompt) + len(answer) for prompt, answer in chosen)
        ids = torch.full((size, width), tokenizer.pad_token_id)
        labels = torch.full((size, width), -100)
        for place, (prompt, answer) in enumerate(chosen):
            whole = [*prompt, *answer]
            ids[place, : len(whole)] = torch.tensor(whole)
            labels[place, len(prompt) : len(whole)] = torch.tensor(answer)
        yield ids, labels


def encoded(row: Row, tokenizer: Any, explained: bool) -> tuple[list[int], list[int]]:
    """Ids of a question and of its answer, with the token that ends it."""
    prompt: list[int] = tokenizer(row["question"])["input_ids"]
    answer: list[int] = tokenizer(written(row, explained))["input_ids"]
    return prompt, [*answer, tokenizer.eos_token_id]


def models(work: Path, names: Sequence[str], threads: int) -> None:
    """Train the models that are not there yet."""
    for name in names:
        if not (work / name / "model.safetensors").exists():
            print(name, train(work, name, MODELS[name], threads), flush=True)


def main() -> None:
    """Write questions, or train models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=("questions", "models"))
    parser.add_argument("work", type=Path)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.part == "questions":
        questions(arguments.work)
    else:
        models(arguments.work, arguments.models, arguments.threads)


if __name__ == "__main__":
    main()
