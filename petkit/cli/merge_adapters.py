"""`petkit merge` where the YAML lists adapters: planned, merged, quantised, written, read back, checked."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petkit.cli import output
from petkit.errors import ConfigError, GateError

if TYPE_CHECKING:
    from petkit.artifacts import Artifact, Check, Manifest
    from petkit.merging.adapter_plan import AdapterPlan
    from petkit.merging.adapters import MergedAdapter
    from petkit.merging.config import MergeConfig

COMMAND = "merge"
BITS = (1, 2, 4, 8, 32)


@dataclass(frozen=True)
class Wanted:
    """What the flags ask for.

    Args:
        folder: to write.
        rank: of the result; None for the exact merge's.
        bits: of a weight; None keeps 32.
        seed: of methods that draw, where it was given.
        shard_gigabytes: where it was given.
        check_logits: whether it was asked for.
        threads: of torch.
        dry_run: print the plan only.
        overwrite: replace what is in the folder.
        as_json: print one object.
    """

    folder: Path
    rank: int | None
    bits: int | None
    seed: int | None
    shard_gigabytes: float | None
    check_logits: bool
    threads: int | None
    dry_run: bool
    overwrite: bool
    as_json: bool


def refuse(rank: int | None, bits: int | None) -> None:
    """Refuse flags for adapters where whole models are merged.

    Raises:
        ConfigError: names the flag.
    """
    for flag, value in (("--rank", rank), ("--bits", bits)):
        if value is not None:
            raise ConfigError(f"{flag} has no effect on whole models, since it is for adapters: leave it out")


def run(config: MergeConfig, read_as: Mapping[str, Any], wanted: Wanted) -> None:
    """Merge adapters to an adapter.

    Args:
        config: what is asked for.
        read_as: the configuration's data, for the record.
        wanted: the flags.

    Raises:
        GateError: the result equals its base, or reads back as something else.
        PetkitError: whatever else stops the merge, by kind.
    """
    from petkit.merging.adapted import read_named
    from petkit.merging.adapter_plan import carry_out_adapters, check_settings, plan_adapters
    from petkit.methods.binary_adapter.recorded import check_sections
    from petkit.training import device as devices

    devices.configure(wanted.threads, deterministic=False)
    check_settings(config, wanted.rank, wanted.seed)
    _check_flags(wanted)
    adapters = [read_named(source.model) for source in config.slices[0].sources]
    for adapter in adapters:
        check_sections(adapter.manifest, adapter.folder)
    plan = plan_adapters(config, adapters, wanted.rank, wanted.seed or 0)
    _check_base(config, adapters[0])
    if wanted.dry_run:
        content = _plan(config, plan, wanted)
        output.print_result(output.table(("", ""), _plan_rows(content)), content, wanted.as_json)
        return
    with output.progress("merge", len(plan.sites), "sites") as advance:
        merged = carry_out_adapters(plan, advance)
    job = _Job(config, _recorded(read_as, wanted), plan, merged, wanted)
    result, checks = job.write()
    output.print_result(job.text(result, checks), {**result, "folder": str(wanted.folder)}, wanted.as_json)
    for check in checks:
        if not check.ok:
            raise GateError(f"{check.name}: {check.detail} (see checks.json in {wanted.folder})")


def _check_flags(wanted: Wanted) -> None:
    if wanted.bits is not None and wanted.bits not in BITS:
        raise ConfigError(f"--bits must be one of {', '.join(map(str, BITS))}, got {wanted.bits}")
    if wanted.shard_gigabytes is not None:
        raise ConfigError("--shard-size has no effect on adapters, which are one file: leave it out")
    if wanted.check_logits:
        raise ConfigError("--check-logits is for whole models, an adapter has no logits: leave it out")


def _check_base(config: MergeConfig, adapter: Artifact) -> None:
    if config.base is None:
        return
    from petkit.merging.bases import base_sha256, check_named
    from petkit.merging.sources import open_model

    base = config.base

    def digest() -> str:
        output.log(f"hashing the weights of {base}")
        with open_model(base) as model:
            return base_sha256(model, adapter.manifest, {})

    check_named(base, adapter.manifest, str(adapter.folder), digest)


def _recorded(read_as: Mapping[str, Any], wanted: Wanted) -> dict[str, Any]:
    flags = {"rank": wanted.rank, "bits": wanted.bits, "seed": wanted.seed}
    return {"merge": {**read_as, **{name: value for name, value in flags.items() if value is not None}}}


def _plan(config: MergeConfig, plan: AdapterPlan, wanted: Wanted) -> dict[str, Any]:
    shapes = [(*one.tensor.slices.shape, plan.rank_of(one)) for one in plan.sites]
    numbers = sum((rows + columns) * rank for rows, columns, rank in shapes)
    ranks = [rank for _, _, rank in shapes]
    return {
        "status": "plan",
        "kind": "adapter",
        "method": plan.method.name,
        "base": plan.adapters[0].manifest.base.id,
        "models": [source.model for source in config.slices[0].sources],
        "sites": len(plan.sites),
        "rank": max(ranks),
        "exact": plan.is_exact and wanted.rank is None and wanted.bits in (None, 32),
        "bits": wanted.bits or 32,
        "parameters": numbers,
        "bytes": numbers * (wanted.bits or 32) // 8,
        "averaged": sorted(plan.others),
        "folder": str(wanted.folder),
    }


def _plan_rows(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("output", plan["folder"]),
        ("method", plan["method"]),
        ("adapters", "\n".join(plan["models"])),
        ("base", plan["base"]),
        ("sites", f"{plan['sites']:,}, the widest of rank {plan['rank']:,}"),
        ("exact", "yes" if plan["exact"] else "no: errors are reported"),
        ("averaged", ", ".join(plan["averaged"]) or "nothing"),
        ("to write", f"{plan['bytes']:,} bytes of {plan['bits']}-bit matrices"),
    ]


@dataclass(frozen=True)
class _Job:
    """A merge that is done in memory."""

    config: MergeConfig
    recorded: Mapping[str, Any]
    plan: AdapterPlan
    merged: MergedAdapter
    wanted: Wanted

    @property
    def bits(self) -> int:
        """Of a weight of the result."""
        return self.wanted.bits or 32

    def write(self) -> tuple[dict[str, Any], list[Check]]:
        """Write the artifact, read it back and check it."""
        from petkit.artifacts import atomic_write, staged_artifact, write_checks, write_json
        from petkit.merging.adapter_checks import adapter_checks

        with staged_artifact(self.wanted.folder, self.wanted.overwrite) as stage:
            reread, checks, matrices = self._packed(stage) if self.bits < 32 else self._whole(stage)
            checks += adapter_checks(self.plan, self.merged, reread)
            result = self._result(reread, checks, matrices)
            write_checks(stage, checks)
            write_json(stage / "result.json", result)
            atomic_write(stage / "README.md", self._card(reread.manifest, result).encode("utf-8"))
        return result, checks

    def _whole(self, stage: Path) -> tuple[Artifact, list[Check], list[dict[str, Any]]]:
        from petkit.artifacts import read_artifact, write_artifact

        write_artifact(
            stage, manifest=self._manifest(), config=self.recorded, packed={}, dense=self.merged.dense
        )
        return read_artifact(stage), [], []

    def _packed(self, stage: Path) -> tuple[Artifact, list[Check], list[dict[str, Any]]]:
        """Quantise what `_whole` writes, so that the lineage names both steps."""
        from petkit.quantization.artifact import quantize_artifact, write_quantized
        from petkit.quantization.config import QuantizationConfig

        settings = QuantizationConfig(bits=self.bits, method="least_squares")  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as scratch:
            source, _, _ = self._whole(Path(scratch) / "merged")
            quantized = quantize_artifact(source, settings)
            reread, checks = write_quantized(quantized, stage)
        return reread, checks, [error.payload() for error in quantized.errors]

    def _manifest(self) -> Manifest:
        from petkit.artifacts import step

        done = step(COMMAND, self.recorded, _inputs(self.plan.adapters))
        return self.merged.manifest.model_copy(update={"lineage": (done,)})

    def _result(
        self, reread: Artifact, checks: Sequence[Check], matrices: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        from petkit.artifacts.checks import checks_json
        from petkit.merging.adapter_checks import bits_errors, rank_error

        per_site, in_all = bits_errors(self.merged, reread) if self.bits < 32 else ({}, 0.0)
        return {
            "status": "completed" if all(check.ok for check in checks) else "gate_failed",
            "kind": "adapter",
            "method": self.config.method,
            "base": self.merged.manifest.base.id,
            "models": [source.model for source in self.config.slices[0].sources],
            "inputs": _inputs(self.plan.adapters),
            "seed": self.wanted.seed,
            "rank": self.merged.manifest.adapter["bottleneck"],
            "bits": self.bits,
            "rank_error": rank_error(self.merged),
            "bits_error": in_all,
            "sites": [
                {
                    "site": one.name,
                    "ranks": list(one.ranks),
                    "rank": len(one.pair.down),
                    "rank_error": one.error,
                    "bits_error": per_site.get(one.name, 0.0),
                }
                for one in self.merged.sites
            ],
            "matrices": list(matrices),
            "averaged": sorted(self.merged.others),
            "bytes": reread.tensor_file.stat().st_size,
            "checks": checks_json(checks)["checks"],
        }

    def _card(self, manifest: Manifest, result: Mapping[str, Any]) -> str:
        from petkit.artifacts.card import write_card

        rows = [
            ("method", self.config.method),
            ("adapters", ", ".join(result["models"])),
            ("widest rank", f"{result['rank']:,}"),
            ("relative error of the rank", f"{result['rank_error']:.4f}"),
            ("relative error of the bits", f"{result['bits_error']:.4f}"),
            ("tensors averaged", ", ".join(result["averaged"]) or "none"),
        ]
        title = f"Merge of {len(result['models'])} adapters, {self.bits} bit"
        about = "Adapters merged by petkit, without base weights. It holds the adapter, not the base model."
        return write_card(manifest, title, about, rows)

    def text(self, result: Mapping[str, Any], checks: Sequence[Check]) -> Any:
        """What is printed: errors by site where there are any, then the whole."""
        rows = [
            ("adapter", str(self.wanted.folder)),
            ("status", result["status"]),
            ("method", result["method"]),
            ("base", result["base"]),
            ("sites", f"{len(result['sites']):,}, the widest of rank {result['rank']:,}"),
            ("rank error", f"{result['rank_error']:.3g} of the exact merge's norm"),
            ("bits error", f"{result['bits_error']:.3g} at {self.bits} bits"),
            ("averaged", ", ".join(result["averaged"]) or "nothing"),
            ("bytes", f"{result['bytes']:,}"),
            *((check.name, ("ok: " if check.ok else "FAILED: ") + check.detail) for check in checks),
        ]
        whole = output.table(("", ""), rows)
        lossy = result["rank_error"] > 0 or result["bits_error"] > 0
        if not lossy:
            return whole
        columns = ("site", "of ranks", "rank", "rank error", "bits error")
        sites = [
            (
                one["site"],
                " + ".join(map(str, one["ranks"])),
                one["rank"],
                float(one["rank_error"]),
                float(one["bits_error"]),
            )
            for one in result["sites"]
        ]
        return output.stacked(output.table(columns, sites, title="What each site lost"), whole)


def _inputs(adapters: Sequence[Artifact]) -> dict[str, str]:
    """SHA-256 of the tensors of each adapter, of PEFT's own file where it is one."""
    found = {}
    for adapter in adapters:
        manifest = adapter.manifest
        own = manifest.lineage[-1].inputs if manifest.lineage else {}
        foreign = None if (adapter.folder / "petkit.json").exists() else own.get("adapter_model.safetensors")
        digest = foreign or manifest.tensors_sha256
        if digest:
            found[str(adapter.folder)] = digest
    return found
