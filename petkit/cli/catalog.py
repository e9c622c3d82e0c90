"""The literal table of systems: what `petkit list methods` prints and which configuration a command reads."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from petkit.errors import ConfigError

if TYPE_CHECKING:
    from petkit.configuration import Config


@dataclass(frozen=True)
class Method:
    """One system: its folder in petkit/methods, its command, its configuration class and its paper."""

    name: str
    command: str
    configuration: str
    summary: str
    paper: str


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
    ),
)


def method_of(command: str) -> Method:
    """The system behind a command.

    Args:
        command: the words after `petkit`, such as "train adapter".

    Raises:
        ConfigError: no command of that name reads a recipe.
    """
    for method in METHODS:
        if method.command == command:
            return method
    known = ", ".join(method.command for method in METHODS)
    raise ConfigError(f"no command {command!r} reads a recipe; there are: {known}")


def whole_command(command: str) -> str:
    """A verb with the name that reads its settings, such as `route run` for `route`.

    Args:
        command: the words after `petkit`.

    Returns:
        The words themselves where no name is missing, or more than one would do.
    """
    found = [method.command for method in METHODS if method.command.startswith(f"{command} ")]
    return found[0] if len(found) == 1 else command


def configuration_of(command: str) -> type[Config]:
    """The configuration class of a command; imports the method's torch-free config module."""
    method = method_of(command)
    module = importlib.import_module(f"petkit.methods.{method.name}.config")
    found: type[Config] = getattr(module, method.configuration)
    return found
