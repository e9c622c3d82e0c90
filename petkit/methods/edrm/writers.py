"""Who writes the answers that a router chooses between: a model in this process, or one behind a server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from petkit.artifacts.whole_model import is_whole
from petkit.data.tokens import padding_token
from petkit.errors import ConfigError, InputError
from petkit.methods.edrm.config import RouterConfig
from petkit.models.config import ModelConfig
from petkit.models.loading import load_adapted, load_model
from petkit.rollout.entropy import Trajectory
from petkit.rollout.sampler import Written, generate
from petkit.rollout.stops import Stops

Progress = Callable[..., None]
Keep = Callable[[Trajectory], bool]


@dataclass(frozen=True)
class Prompt:
    """A question as it is put in one mode.

    Args:
        name: of the question, as messages have it.
        messages: the conversation.
        thinking: whether the model may think first; templates that do not know it pass it over.
    """

    name: str
    messages: tuple[Mapping[str, str], ...]
    thinking: bool = False


class Begun(Protocol):
    """The beginning of an answer."""

    @property
    def trajectory(self) -> Trajectory:
        """Uncertainty of its tokens."""

    @property
    def cost(self) -> int:
        """Tokens that were decoded."""

    @property
    def finished(self) -> bool:
        """Whether the answer ended in it."""


BegunT = TypeVar("BegunT", bound=Begun)


class Writer(Protocol[BegunT]):
    """Answers prompts; answers are pairs of text and tokens decoded."""

    @property
    def name(self) -> str:
        """What the model is called."""

    @property
    def sha256(self) -> str:
        """What a router is bound to."""

    @property
    def measured_by(self) -> str:
        """What kept outcomes are bound to: the model, and how it was measured."""

    def check(self, config: RouterConfig) -> None:
        """Refuse settings that this writer cannot follow.

        Raises:
            ConfigError: with the setting and what to do.
        """

    def begin(
        self, prompts: Sequence[Prompt], config: RouterConfig, keep: Keep, batch_size: int, advance: Progress
    ) -> list[BegunT]:
        """Write the first `probe_tokens` of each answer.

        Args:
            prompts: any number.
            config: lengths, and how prompts are put.
            keep: whether an answer that began so is wanted whole; it may then be written at once.
            batch_size: prompts written together at most.
            advance: told how many are begun.
        """

    def finish(
        self,
        prompts: Sequence[Prompt],
        begun: Sequence[BegunT],
        config: RouterConfig,
        batch_size: int,
        advance: Progress,
    ) -> list[tuple[str, int]]:
        """Go on with answers; the tokens include those of the beginnings."""

    def write(
        self, prompts: Sequence[Prompt], config: RouterConfig, batch_size: int, advance: Progress
    ) -> list[tuple[str, int]]:
        """Write whole answers."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model in this process, its tokenizer, and the hash that a router is bound to."""

    name: str
    model: nn.Module
    tokenizer: Any
    sha256: str

    @property
    def measured_by(self) -> str:
        """The weights alone."""
        return self.sha256

    def check(self, config: RouterConfig) -> None:
        """As `Writer` says."""
        if config.chat_template and not getattr(self.tokenizer, "chat_template", None):
            raise ConfigError(
                f"{self.name} has no chat template: --set chat_template=false puts prompts as plain text"
            )
        check_local(self.name, config)

    def begin(
        self, prompts: Sequence[Prompt], config: RouterConfig, keep: Keep, batch_size: int, advance: Progress
    ) -> list[Written]:
        """As `Writer` says; whatever is wanted whole is gone on with later."""
        ids = [self.encode(prompt, config) for prompt in prompts]
        names = [prompt.name for prompt in prompts]
        return self._generate(ids, config.probe_tokens, batch_size, advance, config, names)

    def finish(
        self,
        prompts: Sequence[Prompt],
        begun: Sequence[Written],
        config: RouterConfig,
        batch_size: int,
        advance: Progress,
    ) -> list[tuple[str, int]]:
        """As `Writer` says."""
        return self._go_on(prompts, begun, config, config.probe_tokens, batch_size, advance)

    def write(
        self, prompts: Sequence[Prompt], config: RouterConfig, batch_size: int, advance: Progress
    ) -> list[tuple[str, int]]:
        """As `Writer` says."""
        nothing = [Written((), Trajectory(), False)] * len(prompts)
        return self._go_on(prompts, nothing, config, 0, batch_size, advance)

    def encode(self, prompt: Prompt, config: RouterConfig) -> list[int]:
        """The ids of a prompt, put by the model's chat template unless the settings say otherwise."""
        if not config.chat_template:
            text = "\n".join(message["content"] for message in prompt.messages)
            return list(self.tokenizer(text)["input_ids"])
        rendered = self.tokenizer.apply_chat_template(
            list(prompt.messages),
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=prompt.thinking,
        )
        return list(self.tokenizer(rendered, add_special_tokens=False)["input_ids"])

    def _go_on(
        self,
        prompts: Sequence[Prompt],
        begun: Sequence[Written],
        config: RouterConfig,
        decoded: int,
        batch_size: int,
        advance: Progress,
    ) -> list[tuple[str, int]]:
        open_rows = [row for row, written in enumerate(begun) if not written.finished]
        ids = [[*self.encode(prompts[row], config), *begun[row].tokens] for row in open_rows]
        left = config.max_new_tokens - decoded
        advance(len(prompts) - len(open_rows))
        answered = [len(begun[row].tokens) for row in open_rows]
        more = self._generate(ids, left, batch_size, advance, config, (), answered) if left > 0 else []
        tails = dict(zip(open_rows, more, strict=bool(more)))
        stops = self._stops(config)
        return [self._answer(one, tails.get(row), stops) for row, one in enumerate(begun)]

    def _answer(self, begun: Written, tail: Written | None, stops: Stops) -> tuple[str, int]:
        text = self._text([*begun.tokens, *(tail.tokens if tail else ())])
        return stops.cut(text).strip(), begun.cost + (tail.cost if tail else 0)

    def _stops(self, config: RouterConfig) -> Stops:
        return Stops(config.stop, self._text)

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        limit: int,
        batch_size: int,
        advance: Progress,
        config: RouterConfig,
        names: Sequence[str] = (),
        answered: Sequence[int] = (),
    ) -> list[Written]:
        """What is written after prompts; with names, the uncertainty too."""
        return generate(
            self.model,
            prompts,
            limit,
            padding=padding_token(self.tokenizer),
            batch_size=batch_size,
            tracked=bool(names),
            names=names,
            stops=self._stops(config) if config.stop else None,
            answered=answered,
            advance=advance,
        )


def check_local(name: str, config: RouterConfig) -> None:
    """Refuse settings that have no effect on a model in this process.

    Raises:
        ConfigError: with the settings.
    """
    if config.served != type(config.served)():
        raise ConfigError(f"settings of served have an effect on a model behind a server alone, got {name}")


def load_language_model(
    name: str, device: torch.device | str = "cpu", config: ModelConfig | None = None
) -> LanguageModel:
    """Load a causal language model, or an adapter artifact with its base.

    Args:
        name: as `model.name` of a recipe, or the folder of an artifact.
        device: where to.
        config: further settings of the model.

    Returns:
        The model in evaluation mode. Its hash is that of the weights, with an artifact of base and adapter.

    Raises:
        InputError: an artifact for another task.
        PetkitError: the model cannot be loaded, by kind.
    """
    # A merged or distilled model is a model like any other.
    if (Path(name) / "petkit.json").is_file() and not is_whole(name):
        return _load_artifact(name, device)
    loaded = load_model(config or ModelConfig(name=name), "causal_lm")
    return LanguageModel(name, loaded.model.eval().to(device), loaded.tokenizer, loaded.base_sha256)


def _load_artifact(name: str, device: torch.device | str) -> LanguageModel:
    adapted = load_adapted(name, device)
    task = adapted.artifact.manifest.task
    if task is None or task.type != "causal_lm":
        raise InputError(f"{name} must be a language model's adapter, it is for {task and task.type}")
    both = f"{adapted.base.base_sha256} {adapted.artifact.manifest.tensors_sha256}"
    return LanguageModel(name, adapted.model, adapted.tokenizer, hashlib.sha256(both.encode()).hexdigest())
