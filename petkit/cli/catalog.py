"""The literal table of systems: what `petkit list methods` prints and which configuration a command reads."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from petkit.errors import ConfigError

if TYPE_CHECKING:
    from petkit.configuration import Config

# Of the letters of two commands: they share their verbs, so that `train x` is as near as 0.75 to `train nat`.
NEAR_COMMAND = 0.8


@dataclass(frozen=True)
class Method:
    """One system: its folder in petkit/methods, its command, its configuration class and its paper.

    Where several systems share a command, the recipe's key `kind` tells them apart; the first is meant by a
    recipe without it.
    """

    name: str
    command: str
    configuration: str
    summary: str
    paper: str
    kind: str | None = None

    @property
    def shown_command(self) -> str:
        """The command as people look for it: `distill (kind: vision)`."""
        return self.command if self.kind is None else f"{self.command} (kind: {self.kind})"


METHODS = (
    Method(
        "binary_adapter",
        "train adapter",
        "BinaryAdapterConfig",
        "adapters of 1, 2, 4 or 8 bits a weight in a frozen model",
        "Jie, Wang, Deng. Revisiting the parameter efficiency of adapters from the perspective of precision "
        "redundancy. ICCV 2023, arXiv:2307.16867",
    ),
    Method(
        "crf_tagger",
        "train tagger",
        "TaggerConfig",
        "tags for words: a BiLSTM or a transformers encoder with a softmax or a CRF",
        "Lample et al. Neural architectures for named entity recognition. NAACL 2016, arXiv:1603.01360",
    ),
    Method(
        "edrm",
        "route run",
        "RouterConfig",
        "answers directly, plainly or step by step, by the entropy of the first tokens",
        "When Do LLMs Reason? A Dynamical Systems View via Entropy Phase Transitions. arXiv:2605.22873",
    ),
    Method(
        "nart_crf",
        "train nat",
        "TranslatorConfig",
        "translation of all tokens at once, with a CRF over the vocabulary, and its teacher",
        "Sun, Li, Wang, He, Lin, Deng. Fast structured decoding for sequence models. NeurIPS 2019, "
        "arXiv:1910.11555",
    ),
    Method(
        "tropd",
        "distill",
        "DistillConfig",
        "on-policy distillation within a trust region, and its baselines",
        "Trust region on-policy distillation. arXiv:2606.01249",
        kind="text",
    ),
    Method(
        "vision_distillation",
        "distill",
        "VisionDistillationConfig",
        "logits and features of an image classifier, learnt by adapters in another one",
        "Hinton, Vinyals, Dean. Distilling the knowledge in a neural network. 2015, arXiv:1503.02531",
        kind="vision",
    ),
)


def method_of(command: str, kind: str | None = None) -> Method:
    """The system behind a command.

    Args:
        command: the words after `petkit`, such as "train adapter".
        kind: of the recipe, where systems share the command; None takes the first of them.

    Raises:
        ConfigError: no command of that name reads a recipe, or none of that kind.
    """
    return _of_kind(_methods_of(command), kind, "--kind")


def method_for(
    command: str,
    files: Sequence[Path],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Method:
    """The system that a recipe is for, by its key `kind` where systems share the command.

    Args:
        command: the words after `petkit`.
        files: the recipe's files.
        overrides: texts of `--set`.
        environment: as of `petkit.configuration.resolve`.

    Raises:
        ConfigError: no such command or kind, or a file that is no recipe.
    """
    from petkit.configuration import peek

    methods = _methods_of(command)
    found = peek("kind", files, overrides, environment) if len(methods) > 1 else None
    return methods[0] if found is None else _of_kind(methods, found.value, found.origin)


def _methods_of(command: str) -> list[Method]:
    found = [method for method in METHODS if method.command == command]
    if not found:
        raise ConfigError(unknown_command(command))
    return found


def unknown_command(command: str, origin: str = "") -> str:
    """What is said of a command that reads no recipe.

    Args:
        command: the words after `petkit`.
        origin: who named it, such as `names.yaml`; empty for the command line.
    """
    from petkit.configuration.messages import nearest, place

    known = list(dict.fromkeys(method.command for method in METHODS))
    near = nearest(command, known, NEAR_COMMAND)
    if near:
        return f"unknown command {command!r}{place(origin)}; did you mean {near!r}?"
    return f"no command {command!r} reads a recipe{place(origin)}; there are: {', '.join(known)}"


def is_command(command: str) -> bool:
    """Whether a command reads a recipe."""
    return any(method.command == command for method in METHODS)


def _of_kind(methods: Sequence[Method], kind: object, origin: str) -> Method:
    kinds = {method.kind: method for method in methods}
    if kind is None or kind in kinds:
        return methods[0] if kind is None else kinds[str(kind)]
    from petkit.configuration.messages import nearest, not_a_choice

    known = [str(one) for one in kinds if one is not None]
    if not known:
        raise ConfigError(f"petkit {methods[0].command} has no kinds of recipes: leave {origin} out")
    near = nearest(str(kind), known)
    hint = f"; did you mean {near}?" if near else ""
    raise ConfigError(not_a_choice(("kind",), kind, known, origin) + hint)


def whole_command(command: str) -> str:
    """A verb with the name that reads its settings, such as `route run` for `route`.

    Args:
        command: the words after `petkit`.

    Returns:
        The words themselves where no name is missing, or more than one would do.
    """
    found = [method.command for method in METHODS if method.command.startswith(f"{command} ")]
    return found[0] if len(found) == 1 else command


def configuration_of(command: str, kind: str | None = None) -> type[Config]:
    """The configuration class of a command; imports the method's torch-free config module."""
    return load_configuration(method_of(command, kind))


def load_configuration(method: Method) -> type[Config]:
    """The configuration class of a system; imports its torch-free config module."""
    module = importlib.import_module(f"petkit.methods.{method.name}.config")
    found: type[Config] = getattr(module, method.configuration)
    return found
