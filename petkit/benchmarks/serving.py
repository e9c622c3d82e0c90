"""`petkit bench serving`: one ViT-S with many LoRA adapters resident, against peft's mixed batch."""

from __future__ import annotations

import copy
import importlib.util
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from petkit.artifacts import Base, Manifest, Preprocess, Task, write_artifact
from petkit.benchmarks.harness import Case, measure, peak_extra_bytes
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import insert, pack, remove, set_head
from petkit.models.loaded import LoadedModel, new_head
from petkit.models.loading import load_model
from petkit.report.tables import Table
from petkit.serving.bank import BankModel

log = logging.getLogger(__name__)

# Weights decide neither time nor bytes, so a random ViT-S stands for a trained one.
MODEL = ModelConfig(name="timm/vit_small_patch16_224", pretrained=False)
ADAPTER = AdapterConfig(method="lora", bits=1, bottleneck=8, targets=("qkv",))
CLASSES = 10


def write_adapters(folder: Path, count: int) -> None:
    """Write `count` different artifacts of one random ViT-S; those that are there already are kept."""
    base = load_model(MODEL, "image_classification", CLASSES)
    preprocess = Preprocess(**(base.preprocess or {}))
    task = Task(type="image_classification", classes=tuple(map(str, range(CLASSES))), preprocess=preprocess)
    manifest = Manifest(
        base=Base(id=base.base_id, sha256=base.base_sha256),
        model=MODEL.model_dump(mode="json"),
        adapter=ADAPTER.model_dump(mode="json"),
        task=task,
    )
    for number in range(count):
        target = folder / f"adapter-{number:04d}"
        if target.exists():
            continue
        packed, dense = pack(_with_adapters(base, number))
        write_artifact(target, manifest=manifest, config={}, packed=packed, dense=dense)
        remove(base.model)


def _with_adapters(base: LoadedModel, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    set_head(base.model, new_head(int(base.model.num_features), CLASSES, generator))  # type: ignore[arg-type]
    insert(base.model, ADAPTER, generator)
    return base.model


def run(folder: Path, count: int, batch: int, threads: Sequence[int], seconds: float) -> dict[str, Any]:
    """Load the adapters into a bank, then time one mixed batch against peft.

    Args:
        folder: working folder for the artifacts.
        count: adapters resident.
        batch: images, each naming another adapter.
        threads: torch thread counts to measure at.
        seconds: time per measurement.

    Returns:
        JSON-ready values: cold start, bytes, timings and ratios; peft's are null where it is not installed.
    """
    write_adapters(folder, count)
    bank, started = _empty_bank(), time.perf_counter()
    folders = {path.name: path for path in sorted(folder.iterdir())[:count]}
    extra = peak_extra_bytes(lambda: bank.add_many(folders))
    cold_start = time.perf_counter() - started
    packed_bytes = sum((path / "adapter_packed.safetensors").stat().st_size for path in folders.values())
    names = [name for name, _ in zip(_spread(list(folders)), range(batch), strict=False)]
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    peers, peft_bytes = _peft(count, images, names)
    case = Case(
        f"ViT-S, {batch} images of {len(set(names))} adapters, {count} resident",
        lambda: bank(images, names),
        {"frozen ViT-S, no adapter": _frozen(images), **peers},
    )
    outcomes = [measure(case, count_, bandwidth=1.0, seconds=seconds, least_rounds=5) for count_ in threads]
    return {
        "adapters": count,
        "cold_start_seconds": cold_start,
        "packed_file_bytes": packed_bytes,
        "extra_resident_bytes": extra,
        "bank_bytes": bank.nbytes,
        "peft_adapter_bytes": peft_bytes,
        "outcomes": [outcome.to_dict() for outcome in outcomes],
    }


def _spread(names: list[str]) -> list[str]:
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(1)).tolist()
    return [names[index] for index in order]


def _empty_bank() -> BankModel:
    return BankModel(load_model(MODEL, "image_classification", 1), ADAPTER)


def _frozen(images: Tensor) -> Callable[[], Tensor]:
    model = load_model(MODEL, "image_classification", CLASSES).model.eval()

    @torch.inference_mode()
    def run_frozen() -> Tensor:
        logits: Tensor = model(images)
        return logits

    return run_frozen


def _peft(count: int, images: Tensor, names: list[str]) -> tuple[dict[str, Callable[[], Tensor]], int | None]:
    """The same adapters in peft, in float32, called with `adapter_names`."""
    if importlib.util.find_spec("peft") is None:
        log.warning('peft is not installed: no ratio to it (pip install "petkit[peft]")')
        return {}, None
    from peft import LoraConfig, get_peft_model

    def config() -> LoraConfig:
        return LoraConfig(r=ADAPTER.bottleneck, lora_alpha=8, target_modules=["qkv"], init_lora_weights=False)

    model = get_peft_model(
        copy.deepcopy(load_model(MODEL, "image_classification", CLASSES).model),
        config(),
        adapter_name="adapter-0000",
    )
    _add_layers(model, config(), [f"adapter-{number:04d}" for number in range(1, count)])
    model.eval()
    size = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "lora_" in name)

    @torch.inference_mode()
    def run_peft() -> Tensor:
        logits: Tensor = model(images, adapter_names=names)
        return logits

    return {"peft mixed batch, float32": run_peft}, size


def _add_layers(model: Any, config: Any, names: Sequence[str]) -> None:
    """Add adapters of one configuration layer by layer.

    `add_adapter` walks over all parameters of all adapters at every call, which takes hours for a thousand.
    What is resident afterwards, and what a mixed batch runs, is the same.
    """
    from peft.tuners.lora import LoraLayer

    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for name in names:
        model.peft_config[name] = config
        for layer in layers:
            layer.update_layer(name, config.r, config.lora_alpha, config)


def table(payload: dict[str, Any]) -> Table:
    """The result for people."""
    records: list[dict[str, Any]] = []
    for outcome in payload["outcomes"]:
        ratios = {f"times faster than {name}": timing["ratio"] for name, timing in outcome["peers"].items()}
        records.append({"case": outcome["case"], "threads": outcome["threads"], **ratios})
    mebi = 1 << 20
    peft_bytes = payload["peft_adapter_bytes"]
    note = (
        f"{payload['adapters']} adapters loaded in {payload['cold_start_seconds']:.2f} s; packed files "
        f"{payload['packed_file_bytes'] / mebi:.1f} MiB, bank {payload['bank_bytes'] / mebi:.1f} MiB"
    )
    if peft_bytes is not None:
        note += f", in peft {peft_bytes / mebi:.1f} MiB"
    return Table.from_records(records, note=note)
