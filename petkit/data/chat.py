"""Conversations: JSONL lines of {"messages": [{"role", "content"}]}, learnt on the assistant's tokens."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from petkit.data.tokens import IGNORED
from petkit.errors import InputError

log = logging.getLogger(__name__)

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """A conversation: its messages, and the JSON schemas of the tools that the assistant could call."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


def parse_chat(row: dict[str, Any]) -> Chat:
    """Check one row to learn from.

    Args:
        row: As in `parse_conversation`, an assistant among the messages and not the first.

    Returns:
        The conversation.

    Raises:
        ValueError: A key is missing or of another type, or no assistant speaks.
    """
    chat = parse_conversation(row)
    roles = [message["role"] for message in chat.messages]
    if "assistant" not in roles:
        raise ValueError(
            f"messages must hold one of role assistant to learn from, got the roles {', '.join(roles)}"
        )
    if roles[0] == "assistant":
        raise ValueError("messages must begin with a system or user message, got an assistant's")
    return chat


def parse_conversation(row: dict[str, Any]) -> Chat:
    """Check one row, whether to learn from or to continue.

    Args:
        row: The key `messages`, a list of objects with the strings `role` and `content` (null beside
            `tool_calls`), and perhaps `tools`, a list of JSON schemas or a string that holds one as JSON;
            other keys are ignored.

    Returns:
        The conversation.

    Raises:
        ValueError: A key is missing or of another type.
    """
    messages = row.get("messages")
    if messages is None:
        raise ValueError(f"messages is missing: got the keys {', '.join(map(str, row)) or 'none'}")
    if not isinstance(messages, list):
        raise ValueError(f"messages must be a list of messages, got {type(messages).__name__}")
    if not messages:
        raise ValueError("messages must be a list that is not empty, got an empty one")
    for position, message in enumerate(messages):
        if not _is_message(message):
            raise ValueError(
                f"messages[{position}] must have the strings role and content, got {message!r:.60}"
            )
    return Chat(tuple(messages), _parse_tools(row.get("tools")))


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    # An assistant that calls a tool need not say anything.
    silent = value.get("content") is None and bool(value.get("tool_calls"))
    return silent or isinstance(value.get("content"), str)


def _parse_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Read the tools; some data sets keep them as JSON in a string, since schemas differ in their keys."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(
                f"tools must be a list of JSON schemas, got a string that is none: {error}"
            ) from error
    tools = [] if value is None else value
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"tools must be a list of JSON schemas, or its JSON as a string, got {value!r:.60}")
    return tuple(tools)


def encode_chat(chat: Chat, tokenizer: Any) -> dict[str, list[int]]:
    """Tokenise a conversation with the tokenizer's chat template and mark what the assistant wrote.

    Args:
        chat: Alternating messages, the assistant not first.
        tokenizer: A fast transformers tokenizer with a chat template.

    Returns:
        `input_ids`, and `labels` of the same length: the token itself inside an assistant's turn, its
        end-of-turn token included, and -100 elsewhere.

    Raises:
        ValueError: The template refuses the conversation or leaves its tools out, or renders a turn
            otherwise once later ones follow, so that the tokens a model is asked for and the ones it would
            learn differ.
    """
    text = render_chat(chat, tokenizer)
    spans = [
        _span(tokenizer, chat, turn, text)
        for turn, message in enumerate(chat.messages)
        if message["role"] == "assistant"
    ]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    # A token that straddles the border of a turn begins in the prompt: it is given, not learnt.
    learnt = [any(start <= first < end for start, end in spans) for first, _ in offsets]
    labels = [token if own else IGNORED for token, own in zip(ids, learnt, strict=True)]
    return {"input_ids": list(ids), "labels": labels}


def render_chat(chat: Chat, tokenizer: Any, prompt: bool = False) -> str:
    """Write a conversation as the model's chat template has it.

    Args:
        chat: The conversation.
        tokenizer: A tokenizer with a chat template.
        prompt: End with the beginning of an assistant's turn.

    Returns:
        The text.

    Raises:
        ValueError: The template refuses the conversation, or leaves its tools out.
    """
    text = _render(tokenizer, chat, prompt)
    if chat.tools and text == _render(tokenizer, replace(chat, tools=()), prompt):
        raise ValueError("the model's chat template has no place for tools: remove the key tools")
    return text


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot encode conversations.

    Args:
        tokenizer: The model's tokenizer.

    Raises:
        InputError: It is missing, has no chat template or no character offsets.
    """
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise InputError(
            "data.format chat needs a model whose tokenizer has a chat template: use an instruct model"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"data.format chat needs a fast tokenizer (tokenizer.json), got {type(tokenizer).__name__}"
        )


def cut_chats(examples: Sequence[dict[str, list[int]]], max_length: int) -> list[dict[str, list[int]]]:
    """Cut conversations at the end, and leave out those of which nothing is left to learn.

    Args:
        examples: As encode_chat makes them.
        max_length: Tokens kept.

    Returns:
        The examples that still hold an assistant's token; the log counts what was cut and left out.
    """
    cut = [{name: values[:max_length] for name, values in example.items()} for example in examples]
    kept = [example for example in cut if any(label != IGNORED for label in example["labels"])]
    longer = sum(len(example["input_ids"]) > max_length for example in examples)
    if longer:
        log.warning(
            "%d of %d conversations are longer than %d tokens (data.max_length, or the model's limit) and "
            "were cut; %d of them are left out, having no assistant token within it",
            longer,
            len(examples),
            max_length,
            len(cut) - len(kept),
        )
    return kept


def _render(tokenizer: Any, chat: Chat, prompt: bool = False) -> str:
    import jinja2

    # A template is a program that works on the row: it may fail as any program does.
    failures = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
    try:
        text: str = tokenizer.apply_chat_template(
            list(chat.messages),
            tools=list(chat.tools) or None,
            tokenize=False,
            add_generation_prompt=prompt,
        )
    except failures as error:
        raise ValueError(f"the chat template refuses it: {error}") from error
    return text


def _span(tokenizer: Any, chat: Chat, turn: int, text: str) -> tuple[int, int]:
    """Characters of one assistant's turn: what the template adds to the prompt that a model would be given.

    This needs no `{% generation %}` marks in the template, which most templates lack.
    """
    prompt = _render(tokenizer, replace(chat, messages=chat.messages[:turn]), prompt=True)
    spoken = _render(tokenizer, replace(chat, messages=chat.messages[: turn + 1]))
    shared = _shared_length(spoken, text)
    # Some templates end the whole text, not each turn, with a special token: nothing else may be missing.
    ending = _without_specials(tokenizer, spoken[shared:])
    if not text.startswith(prompt) or shared < len(prompt) or ending:
        raise ValueError(
            "the chat template changes earlier turns when later ones follow: end the row earlier"
        )
    return len(prompt), _end_of_turn(tokenizer, text, len(prompt), shared)


def _shared_length(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _end_of_turn(tokenizer: Any, text: str, start: int, end: int) -> int:
    """Leave out the white space that a template puts after the end-of-turn token: a model stops before it."""
    turn = text[start:end]
    kept = turn.rstrip()
    ends_specially = any(kept.endswith(token) for token in tokenizer.all_special_tokens)
    return start + len(kept) if ends_specially else end


def _without_specials(tokenizer: Any, text: str) -> str:
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return text.strip()
