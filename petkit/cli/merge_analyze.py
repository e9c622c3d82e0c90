"""`petkit merge analyze CONFIG.yaml -o FOLDER`: what models changed, and how far they agree."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petkit.cli import common, output
from petkit.cli.grouped import grouped
from petkit.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from petkit.merging.analysis.folders import Compared
    from petkit.rollout.policies import Prompt, Sampling

POLICY_PANEL = "Policies and gains"


@dataclass(frozen=True)
class Policies:
    """What is asked of language models, and how."""

    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="JSONL of prompt (or question) and domain: how far --merged is from each expert on each.",
            rich_help_panel=POLICY_PANEL,
        ),
    ] = None
    own_experts: Annotated[
        list[str] | None,
        typer.Option(
            "--expert",
            metavar="DOMAIN=MODEL",
            help="A domain's own expert, where it is not of the same name; may be repeated.",
            rich_help_panel=POLICY_PANEL,
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            metavar="N",
            min=1,
            help="Of a response (default 128).",
            rich_help_panel=POLICY_PANEL,
        ),
    ] = None
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            metavar="N",
            min=1,
            help="Responses to each prompt (default 1).",
            rich_help_panel=POLICY_PANEL,
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            min=1,
            help="Responses written together (default 8).",
            rich_help_panel=POLICY_PANEL,
        ),
    ] = None
    plain: Annotated[
        bool,
        typer.Option(
            "--plain-prompts", help="Put prompts without a chat template.", rich_help_panel=POLICY_PANEL
        ),
    ] = False
    scores: Annotated[
        list[str] | None,
        typer.Option(
            "--scores",
            metavar="MODEL=FILE",
            help="JSONL of id and score: of base, of every expert, and of merged models; repeated.",
            rich_help_panel=POLICY_PANEL,
        ),
    ] = None

    @property
    def files(self) -> list[Path]:
        """What is read besides the models."""
        scores = _pairs(self.scores or (), "--scores", "MODEL=FILE").values()
        return [*map(Path, scores), *([self.prompts] if self.prompts else [])]

    def check(self, models: Compared) -> None:
        """Refuse what has no effect, or cannot have one."""
        if self.prompts is not None and not models.merged:
            raise ConfigError(
                "--prompts needs --merged FOLDER, the model whose distance from the experts is measured"
            )
        given = {
            "--expert": self.own_experts,
            "--max-new-tokens": self.max_new_tokens,
            "--samples": self.samples,
            "--batch-size": self.batch_size,
            "--plain-prompts": self.plain,
        }
        for flag, value in given.items():
            if value and self.prompts is None:
                raise ConfigError(f"{flag} has no effect without --prompts")

    def sampling(self, seed: int) -> Sampling:
        """How experts answer."""
        from petkit.rollout.policies import Sampling

        return Sampling(
            self.max_new_tokens or 128, self.samples or 1, seed, self.batch_size or 8, not self.plain
        )


@grouped
def analyze(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file in mergekit's format, with base_model.")
    ],
    folder: common.OutputOption,
    policies: Policies,
    merged: Annotated[
        list[str] | None,
        typer.Option("--merged", metavar="FOLDER", help="A merged model to look at too; may be repeated."),
    ] = None,
    eta: Annotated[
        float,
        typer.Option("--eta", metavar="X", min=0, help="A weight changed where |w - w0| > X max(|w|, |w0|)."),
    ] = 1e-3,
    dimensions: Annotated[
        int, typer.Option("--dimensions", metavar="N", help="Of the random projection, a power of 2.")
    ] = 256,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Of projection, samples and bootstrap.")
    ] = 0,
    threads: common.ThreadsOption = None,
    overwrite: common.OverwriteFlag = False,
    as_json: common.JsonFlag = False,
) -> None:
    """Compare what models changed: footprints, directions and signs; with a report of heat maps."""
    from petkit.artifacts.writer import check_output
    from petkit.merging.config import read_merge_config
    from petkit.merging.recognition import check_apart, check_whole

    asked = read_merge_config(config)
    check_whole(asked, "analyze")
    check_apart(asked, config, folder, [*map(Path, merged or ()), *policies.files])
    check_output(folder, overwrite)

    from petkit.merging.analysis.folders import compared
    from petkit.training import device as devices

    devices.configure(threads, deterministic=False)
    models = compared(asked, merged or ())
    policies.check(models)
    # What is cheap comes first, so that its faults are found before hours of work.
    gains = _gains(policies, models, seed)
    prompts = _prompts(policies, models)
    weights, seconds = _weights(models, eta, dimensions, seed)
    neighbourhood = _neighbourhood(policies, models, prompts, seed) if prompts else None
    result: dict[str, Any] = {
        "status": "completed",
        "base": models.base,
        "models": models.records,
        "seed": seed,
        "seconds": seconds,
        "weights": weights,
        "neighbourhood": neighbourhood,
        "gains": gains,
    }
    _write(folder, overwrite, result)
    output.print_result(_tables(result, folder), {**result, "folder": str(folder)}, as_json)


def _gains(policies: Policies, models: Compared, seed: int) -> dict[str, Any] | None:
    from petkit.configuration.messages import nearest
    from petkit.merging.analysis.gains import gains_of_files

    if not policies.scores:
        return None
    files = {name: Path(file) for name, file in _pairs(policies.scores, "--scores", "MODEL=FILE").items()}
    known = {"base", *models.experts, *models.merged}
    for name in files.keys() - known:
        near = nearest(name, known)
        if near is not None:
            raise ConfigError(f"--scores {name}={files[name]}: no model {name}; did you mean {near}?")
    return gains_of_files(files, list(models.experts), seed)


def _prompts(policies: Policies, models: Compared) -> list[Prompt]:
    from petkit.configuration.messages import nearest
    from petkit.rollout.policies import read_prompts

    if policies.prompts is None:
        return []
    prompts = read_prompts(policies.prompts, list(models.experts))
    domains = {one.domain for one in prompts}
    for domain, expert in _pairs(policies.own_experts or (), "--expert", "DOMAIN=MODEL").items():
        for name, known, what in ((domain, domains, "domain"), (expert, set(models.experts), "model")):
            if name not in known:
                near = nearest(name, known)
                hint = f"; did you mean {near}?" if near else f"; there are {', '.join(sorted(known))}"
                raise ConfigError(f"--expert {domain}={expert}: no {what} {name}{hint}")
    return prompts


def _weights(models: Compared, eta: float, dimensions: int, seed: int) -> tuple[dict[str, Any], float]:
    from petkit.merging.analysis.folders import measure_folders
    from petkit.merging.analysis.streamed import Settings

    started = time.perf_counter()
    found = measure_folders(
        models,
        Settings(eta, dimensions, seed),
        lambda total: output.progress("weights", total, "bytes"),
    )
    for one in found["whole"]["models"]:
        if not one["footprint"]:
            output.warn(f"{one['model']} changed no weight of {models.base} by more than {eta:g} of it")
    return found, time.perf_counter() - started


def _neighbourhood(
    policies: Policies, models: Compared, prompts: Sequence[Prompt], seed: int
) -> dict[str, Any]:
    from petkit.merging.analysis.neighbourhood import neighbours, own_experts
    from petkit.rollout.policies import divergences, response_count

    sampling = policies.sampling(seed)
    domains = list(dict.fromkeys(one.domain for one in prompts))
    given = _pairs(policies.own_experts or (), "--expert", "DOMAIN=MODEL")
    own = own_experts(domains, list(models.experts), given)
    for domain in domains:
        if domain not in own:
            output.warn(
                f"domain {domain} has no expert of its own, so no neighbours: add --expert {domain}=MODEL"
            )
    total = response_count(list(models.experts), prompts, sampling) * (1 + len(models.merged))
    with output.progress("policies", total, "responses") as advance:
        found = divergences(models.experts, models.merged, prompts, sampling, advance)
    by_merged = {}
    for name, cells in found.items():
        there = {key: cell for key, cell in cells.items() if cell is not None}
        by_merged[name] = {
            "cells": [
                {"expert": expert, "domain": domain, **asdict(cell)}
                for (expert, domain), cell in there.items()
            ],
            "neighbours_per_token": neighbours(cells, own, "per_token"),
            "neighbours_per_sequence": neighbours(cells, own, "per_sequence"),
        }
    return {
        "experts": list(models.experts),
        "domains": domains,
        "own_experts": own,
        "sampling": asdict(sampling),
        "merged": by_merged,
    }


def _pairs(given: Sequence[str], flag: str, form: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in given:
        name, separator, value = one.partition("=")
        if not separator or not name or not value:
            raise ConfigError(f"{flag} must be {form}, got {one!r}")
        if name in found:
            raise ConfigError(f"{flag} {name}=... is given twice")
        found[name] = value
    return found


def _write(folder: Path, overwrite: bool, result: Mapping[str, Any]) -> None:
    from petkit.artifacts import staged_artifact, write_json
    from petkit.report.merging import write_merging_page

    with staged_artifact(folder, overwrite) as stage:
        stage.mkdir()
        write_json(stage / "analysis.json", result)
        summary = {key: result[key] for key in ("status", "base", "models", "seed", "seconds")}
        write_json(stage / "result.json", summary)
        write_merging_page(stage, result)


def _tables(result: Mapping[str, Any], folder: Path) -> RenderableType:
    from petkit.report import merging

    tables = [merging.model_table(result["weights"]), merging.pair_table(result["weights"])]
    if result["neighbourhood"]:
        tables += merging.divergence_tables(result["neighbourhood"])
    if result["gains"]:
        tables.append(merging.gains_table(result["gains"]))
    parts: list[RenderableType] = []
    for one in tables:
        # Titles and notes within a table are broken at its width.
        parts += [one.title] if one.title else []
        parts += [replace(one, title="", note="").rich(), *([one.note] if one.note else []), ""]
    return output.stacked(*parts, f"report: {folder / 'report.html'}")
