"""Time and memory of whole merges by petkit and by mergekit, on models with random weights.

    python benchmarks/merging.py WORK --mergekit SITE --save benchmarks/results/merge_processes.json

WORK gets a base and three models of 245 million parameters in bfloat16 (2 GB) once, and twice as many with
--layers 29. SITE is a folder that mergekit 0.1.5 was installed into (pip install --no-deps --target SITE
mergekit==0.1.5 immutables); without it petkit is measured alone. Every merge is a process of its own,
petkit's and mergekit's in turn; times are wall clock, start-up included, memory the largest resident set.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HIDDEN, WIDE, VOCABULARY, HEADS = 1024, 2816, 32000, 16
METHODS = {
    "linear": ("", "{}", "weight: {}"),
    "ties": ("base_model: BASE\n", "{normalize: true}", "weight: {}, density: 0.5"),
}
WEIGHTS = (0.5, 0.3, 0.2)
# Runs a command and says what it took.
CHILD = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
took = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"code": done.returncode, "seconds": took, "user_seconds": used.ru_utime,
                  "peak_mib": used.ru_maxrss / 1024, "tail": done.stdout.decode()[-400:]}))
"""
FLAGS = ("--no-copy-tokenizer", "--no-write-model-card")
MERGEKIT = "import sys; sys.argv[0] = 'mergekit-yaml'; from mergekit.scripts.run_yaml import main; main()"


def main() -> None:
    """Make what is missing, measure, print, save."""
    arguments = parsed()
    models(arguments.work, arguments.layers)
    rows = [row for method in METHODS for row in compared(arguments, method)]
    rows.append(floor(arguments))
    rows.append({"system": "import torch", **ran([sys.executable, "-c", "import torch"], {})})
    for row in rows:
        if row["code"]:
            sys.exit(f"{row['system']} failed: {row['tail']}")
        # It names folders.
        del row["tail"]
        print(json.dumps(row), flush=True)
    if arguments.save:
        settings = {name: getattr(arguments, name) for name in ("layers", "threads", "repeats")}
        arguments.save.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--mergekit", type=Path, help="folder that mergekit was installed into")
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", type=Path)
    return parser.parse_args()


def models(work: Path, layers: int) -> None:
    """Folders of a Llama's tensors: a base, and three that differ from it a little."""
    source = torch.Generator().manual_seed(0)
    base = {name: 0.02 * torch.randn(shape, generator=source) for name, shape in shapes(layers).items()}
    for name in ("base", "m1", "m2", "m3"):
        folder = work / f"{layers}" / name
        if (folder / "config.json").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        shift = 0.0 if name == "base" else 0.002
        tensors = {
            key: (one + shift * torch.randn(one.shape, generator=source)).bfloat16()
            for key, one in base.items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config(layers)))


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        place = f"model.layers.{layer}."
        found |= {f"{place}self_attn.{one}_proj.weight": (HIDDEN, HIDDEN) for one in "qkvo"}
        found |= {f"{place}mlp.{one}_proj.weight": (WIDE, HIDDEN) for one in ("gate", "up")}
        found[f"{place}mlp.down_proj.weight"] = (HIDDEN, WIDE)
        found |= {f"{place}{one}_layernorm.weight": (HIDDEN,) for one in ("input", "post_attention")}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def config(layers: int) -> dict[str, Any]:
    """A Llama of these sizes."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "num_hidden_layers": layers, "intermediate_size": WIDE, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "vocab_size": VOCABULARY, "max_position_embeddings": 2048,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    }  # fmt: skip


def compared(arguments: argparse.Namespace, method: str) -> list[dict[str, Any]]:
    """A row for petkit and one for mergekit, each the medians of their repeats."""
    work = arguments.work / f"{arguments.layers}"
    base, parameters, own = METHODS[method]
    listed = "".join(
        f"  - {{model: {work}/m{i}, parameters: {{{own.format(weight)}}}}}\n"
        for i, weight in enumerate(WEIGHTS, start=1)
    )
    recipe = work / f"{method}.yml"
    head = f"merge_method: {method}\n{base.replace('BASE', str(work / 'base'))}dtype: bfloat16\n"
    recipe.write_text(f"{head}parameters: {parameters}\nmodels:\n{listed}")
    output = work / "out"
    commands = {"petkit": [sys.executable, "-m", "petkit", "merge", str(recipe), "-o", str(output)]}
    if arguments.mergekit:
        commands["mergekit"] = [
            sys.executable,
            "-c",
            MERGEKIT,
            str(recipe),
            str(output),
            "--no-copy-tokenizer",
        ]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    for _ in range(arguments.repeats):
        for name, command in commands.items():
            shutil.rmtree(output, ignore_errors=True)
            os.sync()
            paths = os.pathsep.join(
                filter(
                    None,
                    [str(arguments.mergekit) if name == "mergekit" else "", os.environ.get("PYTHONPATH")],
                )
            )
            row = ran(command, {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(arguments.threads)})
            # The merging itself, its checks included and start-up aside.
            result = output / "result.json"
            merging = json.loads(result.read_text())["seconds"] if result.exists() else row["seconds"]
            found[name].append({**row, "merging_seconds": merging})
    return [{"system": name, "method": method, **medians(rows)} for name, rows in found.items()]


def floor(arguments: argparse.Namespace) -> dict[str, Any]:
    """What reading every input and writing the output takes by `cat`."""
    work = arguments.work / f"{arguments.layers}"
    files = " ".join(f"{work}/{name}/model.safetensors" for name in ("base", "m1", "m2", "m3"))
    command = f"cat {files} > /dev/null; cat {work}/m1/model.safetensors > {work}/copy; sync {work}/copy"
    return {"system": "cat", **medians([ran(["sh", "-c", command], {}) for _ in range(arguments.repeats)])}


def ran(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """One process, measured by another."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    # What was written before is not to be written meanwhile.
    os.sync()
    text = subprocess.run(
        [sys.executable, "-c", CHILD, *command],
        env={**os.environ, **offline, **environment},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    found: dict[str, Any] = json.loads(text)
    return found


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each number; the last words of the last process."""
    numbers = [key for key in ("seconds", "merging_seconds", "user_seconds", "peak_mib") if key in rows[0]]
    return {name: statistics.median(row[name] for row in rows) for name in numbers} | {
        "code": max(row["code"] for row in rows),
        "tail": rows[-1]["tail"],
    }


if __name__ == "__main__":
    main()
