"""`petkit quantize`: a 32-bit adapter becomes a packed one; what each matrix lost, and where the bytes go."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from petkit.cli import common, output
from petkit.errors import ConfigError, GateError

if TYPE_CHECKING:
    from petkit.artifacts import Artifact, Check
    from petkit.quantization.artifact import Quantized
    from petkit.quantization.config import QuantizationConfig
    from petkit.quantization.errors import OutputError
    from petkit.quantization.inputs import Inputs
    from petkit.quantization.ledger import Ledger

CALIBRATION_BATCHES = 8
BATCH_SIZE = 16


def command(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="Artifact with 32-bit adapters, or PEFT LoRA folder.")
    ],
    folder: common.OutputOption,
    bits: Annotated[int, typer.Option("--bits", metavar="N", help="Bits per weight: 1, 2, 4 or 8.")] = 1,
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="nearest, or least_squares.")
    ] = "nearest",
    codebook: Annotated[
        str | None, typer.Option("--codebook", metavar="NAME", help="normal_l1 (default) or petl_vit.")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option("--rounds", metavar="N", help="least_squares: choose codes anew N times (default 0)."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="own|RECIPE|FOLDER",
            help="Fit on, and compare logits on: the artifact's own data, a recipe's, or a folder.",
        ),
    ] = None,
    base: common.BaseOption = None,
    calibration_batches: Annotated[
        int | None, typer.Option("--calibration-batches", metavar="N", min=1, help="Default 8.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="N", min=1, help="Default 16.")
    ] = None,
    seed: common.SeedOption = None,
    max_error: Annotated[
        float | None,
        common.limit(
            "--max-error",
            0.0,
            None,
            "Exit with 3 when a matrix has a larger relative error (of its outputs, with --data).",
        ),
    ] = None,
    device: common.DeviceOption = "auto",
    threads: common.ThreadsOption = None,
    dry_run: common.DryRunFlag = False,
    overwrite: common.OverwriteFlag = False,
    as_json: common.JsonFlag = False,
) -> None:
    """Quantise a trained 32-bit adapter without further training; head and base stay as they are."""
    from petkit.artifacts.source import read_source
    from petkit.artifacts.writer import check_output
    from petkit.methods.binary_adapter.recorded import check_sections
    from petkit.quantization.artifact import adapter_matrices
    from petkit.training import device as devices

    settings = _settings(bits=bits, method=method, codebook=codebook, rounds=rounds)
    amount = _amount(data, batches=calibration_batches, batch_size=batch_size, seed=seed)
    if base is not None and data is None:
        raise ConfigError("--base needs --data: without it no model is loaded")
    if folder.resolve() == adapter.resolve():
        raise ConfigError(f"--output {folder} is the adapter itself, whose 32-bit weights would be lost")
    check_output(folder, overwrite)
    devices.configure(threads, deterministic=False)
    chosen = devices.resolve_device(device)
    with tempfile.TemporaryDirectory() as scratch:
        source = read_source(adapter, Path(scratch))
        check_sections(source.manifest, adapter)
        count = len(adapter_matrices(source))
        inputs = None if data is None else _inputs(source, data, amount, chosen, base)
        job = _Job(settings, source, folder, inputs)
        if dry_run:
            job.print_plan(count, as_json)
        else:
            job.run(max_error, overwrite, as_json)


def _settings(**flags: object) -> QuantizationConfig:
    from petkit.configuration import resolve
    from petkit.quantization.config import QuantizationConfig

    return resolve(QuantizationConfig, (), (), flags, {}).config


def _amount(data: str | None, **given: int | None) -> dict[str, int]:
    if data is None and any(value is not None for value in given.values()):
        raise ConfigError("--calibration-batches, --batch-size and --seed need --data: add it, or drop them")
    defaults = {"batches": CALIBRATION_BATCHES, "batch_size": BATCH_SIZE, "seed": 0}
    return defaults | {name: value for name, value in given.items() if value is not None}


def _inputs(source: Artifact, data: str, amount: Mapping[str, int], device: Any, base: str | None) -> Inputs:
    from petkit.cli.eval import data_config
    from petkit.quantization.inputs import load_inputs

    section = data_config(source, None if data == "own" else data, ()).data
    return load_inputs(source, section, device=device, base=base, **amount)


@dataclass(frozen=True)
class _Job:
    """What was asked for, resolved."""

    settings: QuantizationConfig
    source: Artifact
    folder: Path
    inputs: Inputs | None

    def print_plan(self, matrices: int, as_json: bool) -> None:
        """Say what would be done."""
        plan = {
            "status": "plan",
            "settings": self.settings.model_dump(mode="json"),
            "base": self.source.manifest.base.id,
            "matrices": matrices,
            "calibration_batches": len(self.inputs.calibration) if self.inputs else 0,
            "folder": str(self.folder),
        }
        rows = [
            (name, json.dumps(value) if isinstance(value, dict) else value) for name, value in plan.items()
        ]
        output.print_result(output.table(("", ""), rows), plan, as_json)

    def run(self, max_error: float | None, overwrite: bool, as_json: bool) -> None:
        """Quantise, write, read back, compare, print."""
        from petkit.artifacts import atomic_write, exit_code, staged_artifact, write_checks, write_json
        from petkit.quantization.artifact import (
            artifact_ledger,
            gate_checks,
            quantize_artifact,
            write_quantized,
        )
        from petkit.quantization.card import quantization_card

        moments = self.inputs.second_moments() if self.inputs else None
        quantized = quantize_artifact(self.source, self.settings, moments)
        full = self.inputs.full_model_bytes() if self.inputs else _recorded_bytes(self.source.folder)
        with staged_artifact(self.folder, overwrite) as stage:
            reread, checks = write_quantized(quantized, stage)
            lost = None
            if self.inputs is not None:
                lost, same = _compare(quantized, reread, self.inputs)
                checks.append(same)
            checks += gate_checks(quantized.errors, max_error)
            ledger = artifact_ledger(reread, full)
            result = self._result(quantized, ledger, lost, checks)
            write_checks(stage, checks)
            write_json(stage / "result.json", result)
            card = quantization_card(reread.manifest, self.settings, quantized.errors, ledger, lost)
            atomic_write(stage / "README.md", card.encode("utf-8"))
        output.print_result(
            _text(result, checks, self.folder), {**result, "folder": str(self.folder)}, as_json
        )
        if exit_code(checks):
            failed = next(check for check in checks if not check.ok)
            raise GateError(f"{failed.name}: {failed.detail} (see checks.json in {self.folder})")

    def _result(
        self, quantized: Quantized, ledger: Ledger, lost: OutputError | None, checks: Sequence[Check]
    ) -> dict[str, Any]:
        from petkit.artifacts.checks import checks_json

        outputs = None
        if lost is not None and self.inputs is not None:
            outputs = {**lost.payload(), "held_out": self.inputs.held_out}
        return {
            "status": "completed" if all(check.ok for check in checks) else "gate_failed",
            "settings": self.settings.model_dump(mode="json"),
            "base": self.source.manifest.base.id,
            "source_sha256": self.source.manifest.tensors_sha256,
            "errors": [error.payload() for error in quantized.errors],
            "outputs": outputs,
            "bytes": ledger.summary(),
            "ledger": [entry.payload() for entry in ledger.entries],
            "checks": checks_json(checks)["checks"],
        }


def _compare(quantized: Quantized, reread: Artifact, inputs: Inputs) -> tuple[OutputError, Check]:
    """Compare logits of the 32-bit model, of the quantised one in memory, and of the artifact read back."""
    from petkit.quantization.errors import output_error
    from petkit.training.outcome import compare_logits

    reference = inputs.logits()
    inputs.become(quantized)
    in_memory = inputs.logits()
    return output_error(reference, in_memory), compare_logits(in_memory, inputs.logits_of(reread.folder))


def _recorded_bytes(folder: Path) -> int | None:
    """Float32 bytes of the whole model, as the run that trained the adapter recorded them."""
    try:
        recorded = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return int(recorded["bytes"]["full_model_fp32"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _text(result: Mapping[str, Any], checks: Sequence[Check], folder: Path) -> str:
    """Tables of errors and bytes, then one line for each comparison."""
    from petkit.quantization.ledger import size_against
    from petkit.report.tables import Table, bytes_text

    columns = {"matrix": "name", "relative error": "relative_error", "cosine": "cosine", "SQNR (dB)": "sqnr"}
    if result["outputs"]:
        columns["output error"] = "output_error"
    errors = Table(
        tuple(columns),
        tuple(tuple(row[key] for key in columns.values()) for row in result["errors"]),
        title="What each matrix lost",
    )
    sizes = Table(
        ("module", "codes", "shift, scale", "float32", "bytes"),
        (
            *(
                tuple(row[key] for key in ("module", "codes", "scales", "dense", "bytes"))
                for row in result["ledger"]
            ),
            ("names, shapes, padding", None, None, None, result["bytes"]["header_bytes"]),
        ),
        title="Where the bytes are",
    )
    tty = sys.stdout.isatty()
    total = result["bytes"]
    lines = [f"{folder}: {total['bytes']:,} bytes ({bytes_text(total['bytes'])})"]
    lines[0] += f", {size_against(total['ratio_to_float32'], 'in float32')}"
    if total["ratio_to_full_model"]:
        lines[0] += f", {size_against(total['ratio_to_full_model'], 'the whole model')}"
    if result["outputs"]:
        lines.append(_outputs_text(result["outputs"]))
    lines += [f"{'ok' if check.ok else 'FAILED'}: {check.name}: {check.detail}" for check in checks]
    return "\n\n".join([errors.render(tty=tty), sizes.render(tty=tty), "\n".join(lines)])


def _outputs_text(outputs: Mapping[str, Any]) -> str:
    what = "held-out inputs" if outputs["held_out"] else "the calibration inputs"
    return (
        f"logits on {what}: KL {outputs['kl']:.3g} nats, {outputs['top1_agreement']:.1%} of "
        f"{outputs['count']:,} predictions unchanged"
    )
