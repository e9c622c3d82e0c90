"""The prompts of a run: questions as token ids, and the set that training draws from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from petkit.data.questions import Question, read_questions
from petkit.errors import InputError
from petkit.methods.tropd.config import PromptsConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A question as the student is asked it."""

    question: Question
    ids: tuple[int, ...]


class PromptSet:
    """A map-style set of prompts.

    Args:
        prompts: in order.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = list(prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> tuple[int, Prompt]:
        return index, self.prompts[index]

    def collate(self, items: Sequence[tuple[int, Prompt]]) -> list[tuple[int, Prompt]]:
        """A batch: prompts with their numbers."""
        return list(items)

    @property
    def sha256(self) -> str:
        """Of everything in it that decides the training."""
        rows = [[one.question.dataset, one.question.answer, one.ids] for one in self.prompts]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def load_prompts(
    path: str, size: int | None, config: PromptsConfig, tokenizer: Any, longest: int, labelled: bool
) -> PromptSet:
    """Read questions and encode them.

    Args:
        path: of a JSONL file.
        size: use the first so many; None all.
        config: how prompts are put.
        tokenizer: the student's.
        longest: tokens that a prompt may have.
        labelled: whether every question must have an answer.

    Returns:
        The prompts.

    Raises:
        InputError: the file cannot be used, or a prompt is empty or too long; the message names it. With
            data.skip_bad such prompts are left out and counted in the log.
    """
    questions = read_questions(Path(path), config.skip_bad, labelled)[:size]
    if not questions:
        raise InputError(f"{path} must hold at least one question, got none")
    prompts = [Prompt(one, tuple(encode(one, config, tokenizer))) for one in questions]
    bad = [prompt for prompt in prompts if not 1 <= len(prompt.ids) <= longest]
    if bad and not (config.skip_bad and len(bad) < len(prompts)):
        raise InputError(
            f"{path}: {bad[0].question.name} must be 1 to {longest} tokens long, got {len(bad[0].ids)}: the "
            "student's context must hold it and the beginning of a response; set data.skip_bad to leave such "
            "prompts out"
        )
    if bad:
        log.warning(
            "%s: left out %d of %d prompts, which must be 1 to %d tokens long",
            path,
            len(bad),
            len(prompts),
            longest,
        )
    return PromptSet([prompt for prompt in prompts if 1 <= len(prompt.ids) <= longest])


def encode(question: Question, config: PromptsConfig, tokenizer: Any) -> list[int]:
    """Put a question as the student is asked it.

    Args:
        question: with its choices, if it has any.
        config: chat template, system message and suffix.
        tokenizer: the student's.

    Returns:
        Token ids.
    """
    text = question.prompt() + config.suffix
    if config.chat_template and getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": text}]
        if config.system is not None:
            messages.insert(0, {"role": "system", "content": config.system})
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"])
    return list(tokenizer(text, verbose=False)["input_ids"])
