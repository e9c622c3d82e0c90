"""Experiments: variants of one recipe, each over several seeds, resumable, as one table, plot and page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from petkit.benchmarks.explained import check_settings, validate
from petkit.configuration import Config
from petkit.configuration.reader import load_with_duplicates
from petkit.errors import InputError

# Unquantised adapters, which the lines of `plot: bits` are judged by.
REFERENCE = "32 bit"
SHIPPED = Path(__file__).resolve().parent.parent / "recipes" / "experiments"


def _change(text: str) -> str:
    if not re.match(r"\s*\w+(\.\w+)*\s*=", text):
        raise ValueError(f"must be KEY=VALUE, such as training.epochs=3, got {text!r}")
    return text


Change = Annotated[str, AfterValidator(_change)]


class QuantizeConfig(Config):
    """Makes a variant from another one's trained adapters instead of training."""

    source: str
    """Name of the variant, which must come earlier and hold 32-bit adapters."""

    bits: Literal[1, 2, 4, 8]
    """Bits per weight."""

    method: Literal["nearest", "least_squares"] = "nearest"
    """As in `petkit quantize`."""


class VariantConfig(Config):
    """One row of the experiment's table."""

    name: str = Field(min_length=1)
    """Label in the table and the plots."""

    set: tuple[Change, ...] = ()
    """Changes of the recipe, as for `--set`."""

    quantize: QuantizeConfig | None = None
    """Quantise another variant after its training."""

    @property
    def folder(self) -> str:
        """The name as a folder name."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-").lower()

    @property
    def bits(self) -> int | None:
        """Bits per weight, from `quantize` or from `set`; None when neither says."""
        if self.quantize is not None:
            return self.quantize.bits
        values = dict(text.replace(" ", "").split("=", 1) for text in self.set)
        bits = values.get("adapter.bits", "")
        return int(bits) if bits.isdecimal() else None

    @property
    def line(self) -> str:
        """Whose line of `plot: bits` the variant is a point of."""
        if self.quantize is not None:
            return "PTQ" if self.quantize.method == "nearest" else "PTQ, refitted"
        return REFERENCE if self.bits == 32 else "QAT"

    @model_validator(mode="after")
    def _one_way(self) -> VariantConfig:
        if self.set and self.quantize is not None:
            raise ValueError("must have either set or quantize, got both")
        return self


class ExperimentConfig(Config):
    """A recipe, its variants and how often each is repeated."""

    recipe: str
    """Name of a shipped recipe, or path of a recipe file beside the experiment."""

    seeds: int = Field(default=3, ge=1)
    """Runs per variant, with seeds 0, 1, ..."""

    set: tuple[Change, ...] = ()
    """Changes of the recipe that all variants share, as for `--set`."""

    noise: tuple[float, ...] = ()
    """Relative noise levels at which every trained variant is evaluated as well."""

    plot: Literal["bytes", "variants", "bits"] = "bytes"
    """What accuracy is drawn against: the bytes of what was trained; the variants' names, where bytes are
    equal; or bits per weight, which each trained variant must set, with one line each for adapters trained at
    those bits (QAT), quantised after training (PTQ) and refitted."""

    variants: tuple[VariantConfig, ...]
    """Rows of the table, in order; at least one."""

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        problems = [] if self.variants else ["variants must hold at least one variant, got none"]
        trained: set[str] = set()
        folders: set[str] = set()
        for number, variant in enumerate(self.variants):
            key, source = f"variants[{number}]", variant.quantize and variant.quantize.source
            if variant.folder in folders:
                problems.append(f"{key}.name must differ from those before it, got {variant.name!r} again")
            folders.add(variant.folder)
            if source is None:
                trained.add(variant.name)
            elif source not in trained:
                problems.append(f"{key}.quantize.source must be a variant trained before it, got {source!r}")
            if self.plot == "bits" and variant.bits is None:
                problems.append(f"{key}.set must set adapter.bits for plot: bits, got {list(variant.set)}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


def shipped_experiments() -> dict[str, str]:
    """Name and one-line summary of every experiment inside the package."""
    return {
        path.stem: path.read_text().partition("\n")[0].lstrip("# ") for path in sorted(SHIPPED.glob("*.yaml"))
    }


def load_experiment(name: str) -> tuple[ExperimentConfig, Path]:
    """Read an experiment.

    Args:
        name: of a shipped experiment, or the path of a YAML file.

    Returns:
        The experiment and the path of the recipe that it varies.

    Raises:
        InputError: there is no such file or shipped name.
        ConfigError: keys or values of the experiment, or of what it sets in the recipe; one line for each.
    """
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else SHIPPED / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(shipped_experiments())
        raise InputError(f"experiment must be a YAML file or one of {known}, got {name!r}")
    loaded = load_with_duplicates(path)
    config = validate(ExperimentConfig, loaded)
    beside = path.parent / config.recipe
    recipe = beside if beside.is_file() else SHIPPED.parent / f"{config.recipe}.yaml"
    if not recipe.is_file():
        raise InputError(
            f"recipe must be a file beside {path.name} or a shipped recipe, got {config.recipe!r}"
        )
    check_settings(loaded, recipe, config.set, [(variant.name, variant.set) for variant in config.variants])
    return config, recipe
