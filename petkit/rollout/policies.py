"""Language models as policies: responses sampled from each expert, and how likely others find them."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from petkit.data.jsonl import strict_rows
from petkit.data.tokens import padding_token
from petkit.errors import InputError, PetkitError
from petkit.merging.analysis.neighbourhood import Cell, Response, estimate
from petkit.merging.companions import check_tokenizers
from petkit.merging.slices import stream_key
from petkit.models.config import ModelConfig
from petkit.models.loaded import LoadedModel
from petkit.models.loading import load_model
from petkit.ops.token_statistics import token_statistics
from petkit.rollout.config import SamplingConfig
from petkit.rollout.sampling import sample

KEYS = ("prompt", "question")


@dataclass(frozen=True)
class Prompt:
    """A prompt of a domain.

    Args:
        text: of it.
        domain: that it is from.
        response: an answer that is given; None where experts are to write theirs.
        model: the expert that wrote it.
    """

    text: str
    domain: str
    response: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How experts answer.

    Args:
        max_new_tokens: tokens of a response at most.
        samples: responses of each expert to each prompt.
        seed: of the draws.
        batch_size: responses written together.
        chat_template: put prompts by the merged model's chat template, where it has one.
    """

    max_new_tokens: int = 128
    samples: int = 1
    seed: int = 0
    batch_size: int = 8
    chat_template: bool = True


@dataclass
class _Sampled:
    """A response of an expert, as ids."""

    prompt: int
    expert: str
    prompt_ids: list[int]
    ids: list[int]
    log_prob: float = 0.0


def read_prompts(path: Path, experts: Sequence[str]) -> list[Prompt]:
    """Read a JSONL file of prompts.

    Args:
        path: the file: rows of `prompt` or `question`, `domain` (default: the file's name), and perhaps a
            `response` with the `model` that wrote it; other keys are passed over.
        experts: names that `model` may have.

    Returns:
        The prompts in order.

    Raises:
        InputError: the file cannot be read, or lines are faulty; the message names them.
    """

    def parse(row: dict[str, Any]) -> Prompt:
        given = [key for key in KEYS if key in row]
        if len(given) != 1:
            raise ValueError(f"expected one of prompt and question, got {' and '.join(given) or 'neither'}")
        texts = {key: row.get(key) for key in (given[0], "domain", "response", "model")}
        for key, value in texts.items():
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise ValueError(f"{key} must be a text that is not empty, got {value!r:.60}")
        response, model = texts["response"], texts["model"]
        if (response is None) != (model is None):
            raise ValueError("response and model go together: model is the expert that wrote the response")
        if model is not None and model not in experts:
            raise ValueError(f"model must be one of {', '.join(experts)}, got {model!r:.60}")
        return Prompt(str(texts[given[0]]), str(texts["domain"] or path.stem), response, model)

    found = [prompt for _, prompt in strict_rows(path, parse)]
    if not found:
        raise InputError(f"{path} must hold at least one prompt, got none")
    return found


def divergences(
    experts: Mapping[str, str],
    merged: Mapping[str, str],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, dict[tuple[str, str], Cell | None]]:
    """Estimate KL(expert || merged) on each domain; one model is in memory at a time.

    Args:
        experts: model folders by name.
        merged: likewise, at least one.
        prompts: of all domains.
        sampling: how experts answer.
        advance: told how many more responses are written or scored; each counts once for its expert and once
            for each merged model.

    Returns:
        By merged model, the estimate for each expert and domain.

    Raises:
        InputError: models of other vocabularies.
        PetkitError: a model cannot be loaded, or gives no distribution.
    """
    check_tokenizers([Path(folder) for folder in (*experts.values(), *merged.values())])
    first = next(iter(merged.values()))
    tokenizer = _load(first).tokenizer
    sampled: list[_Sampled] = []
    for name, folder in experts.items():
        loaded = _load(folder)
        own = _respond(name, loaded, tokenizer, prompts, sampling)
        for one in own:
            one.log_prob = log_prob(loaded.model, one.prompt_ids, one.ids, folder)
            advance(1)
        sampled += own
        del loaded
        gc.collect()
    found = {}
    for name, folder in merged.items():
        model = _load(folder).model
        responses: dict[tuple[str, str], list[Response]] = {
            (expert, domain): []
            for expert in experts
            for domain in dict.fromkeys(one.domain for one in prompts)
        }
        for one in sampled:
            ratio = one.log_prob - log_prob(model, one.prompt_ids, one.ids, folder)
            responses[one.expert, prompts[one.prompt].domain].append(
                Response(one.prompt, len(one.ids), ratio)
            )
            advance(1)
        found[name] = {key: estimate(own) for key, own in responses.items()}
        del model
        gc.collect()
    return found


def response_count(experts: Sequence[str], prompts: Sequence[Prompt], sampling: Sampling) -> int:
    """How many responses there will be of all experts."""
    given = sum(one.response is not None for one in prompts)
    return given + (len(prompts) - given) * len(experts) * sampling.samples


def log_prob(model: nn.Module, prompt: Sequence[int], response: Sequence[int], name: str) -> float:
    """The log-probability of a response.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        prompt: ids, at least one.
        response: ids, at least one.
        name: of the model, for messages.

    Returns:
        The sum over the response's tokens, in nats.

    Raises:
        PetkitError: the logits are no distribution.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([[*prompt, *response]], device=device)
    # Logits of the prompt are of no use, and a vocabulary is wide.
    kept = len(response) + 1
    options = (
        {"logits_to_keep": kept} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    )
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids, use_cache=False, **options).logits[0, -kept:-1]
        found = token_statistics(logits.contiguous(), ids[0, -len(response) :]).log_prob
    assert found is not None
    total = float(found.double().sum())
    if total != total:
        raise PetkitError(f"the logits of {name} must be finite for a divergence, got nan or inf")
    return total


def _load(folder: str) -> LoadedModel:
    loaded = load_model(ModelConfig(name=folder), "causal_lm")
    loaded.model.eval()
    return loaded


def _respond(
    name: str, loaded: LoadedModel, tokenizer: Any, prompts: Sequence[Prompt], sampling: Sampling
) -> list[_Sampled]:
    """The responses of one expert: those that are given, and those that it draws."""
    encoded = [_encoded(one.text, tokenizer, sampling.chat_template) for one in prompts]
    found = [
        _Sampled(place, name, encoded[place], _plain(one.response, tokenizer))
        for place, one in enumerate(prompts)
        if one.response is not None and one.model == name
    ]
    open_places = [place for place, one in enumerate(prompts) if one.response is None]
    asked = [(place, draw) for place in open_places for draw in range(sampling.samples)]
    rows = sample(
        loaded.model,
        [encoded[place] for place, _ in asked],
        [stream_key(sampling.seed, f"{name}/{place}", draw) >> 1 & (2**62 - 1) for place, draw in asked],
        SamplingConfig(max_new_tokens=sampling.max_new_tokens, batch_size=sampling.batch_size),
        padding_token(tokenizer),
    )
    pairs = zip(asked, rows, strict=True)
    return found + [_Sampled(place, name, encoded[place], list(row.tokens)) for (place, _), row in pairs]


def _encoded(text: str, tokenizer: Any, chat_template: bool) -> list[int]:
    if chat_template and getattr(tokenizer, "chat_template", None):
        message = [{"role": "user", "content": text}]
        rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(text)["input_ids"]
    if not ids:
        raise InputError(f"the prompt {text!r:.60} has no token")
    return list(ids)


def _plain(text: str, tokenizer: Any) -> list[int]:
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise InputError(f"the response {text!r:.60} has no token")
    return ids
