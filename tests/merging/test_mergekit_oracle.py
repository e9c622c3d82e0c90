"""The same files merged by mergekit, where PETKIT_MERGEKIT names a folder that it was installed into.

    pip install --no-deps --target SITE mergekit==0.1.5 immutables
    PETKIT_MERGEKIT=SITE pytest tests/merging/test_mergekit_oracle.py

mergekit runs in a process of its own and never in petkit's.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

SITE = os.environ.get("PETKIT_MERGEKIT", "")
pytestmark = [
    pytest.mark.skipif(not SITE, reason="PETKIT_MERGEKIT does not name a folder with mergekit"),
    pytest.mark.slow,
]

HIDDEN, WIDE, LAYERS, HEADS, VOCABULARY = 16, 24, 3, 2, 20
# Both sum float32 numbers of about 1, in other orders.
TOLERANCE = 1e-6
# Takes files and folders in turn: starting costs mergekit more than merging does.
MERGEKIT = """
import sys
from mergekit.scripts.run_yaml import main
for recipe, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    sys.argv[0] = "mergekit-yaml"
    main([recipe, folder, "--no-copy-tokenizer", "--no-write-model-card"], standalone_mode=False)
"""
PETKIT = """
import sys
from petkit.cli.main import run
for recipe, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    code = run(["merge", recipe, "-o", folder])
    if code: sys.exit(code)
"""
# Method, parameters of the merge, and of each model.
CASES = {
    "linear": ("linear", "{}", "weight: 0.7"),
    "linear, not normalised": ("linear", "{normalize: false}", "weight: [0.2, 0.9]"),
    "task arithmetic": ("task_arithmetic", "{lambda: 0.8}", "weight: 0.7"),
    "ties": ("ties", "{density: 0.3}", "weight: [0.2, 0.9]"),
    "ties, by filters": (
        "ties",
        "{density: 0.5, normalize: false}",
        "weight: [{filter: mlp, value: 0.3}, {value: 1.0}]",
    ),
    "sce": ("sce", "{select_topk: 0.5}", ""),
    "breadcrumbs": ("breadcrumbs", "{density: 0.5, gamma: 0.05}", "weight: 0.7"),
    "breadcrumbs and ties": ("breadcrumbs_ties", "{density: 0.5, gamma: 0.05}", "weight: 0.7"),
    "model stock": ("model_stock", "{}", ""),
    "slerp": ("slerp", "{t: 0.4}", ""),
    "slerp along the layers": ("slerp", "{t: [0, 0.5, 1]}", ""),
}


def shapes():
    found = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        place = f"model.layers.{layer}."
        found |= {f"{place}self_attn.{one}_proj.weight": (HIDDEN, HIDDEN) for one in "qkvo"}
        found |= {f"{place}mlp.{one}_proj.weight": (WIDE, HIDDEN) for one in ("gate", "up")}
        found[f"{place}mlp.down_proj.weight"] = (HIDDEN, WIDE)
        found |= {f"{place}{one}_layernorm.weight": (HIDDEN,) for one in ("input", "post_attention")}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def save(folder, tensors):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "intermediate_size": WIDE, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
        "tie_word_embeddings": False, "torch_dtype": "float32", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def recipe(folder, method, whole, own):
    listed = [(f"m{i}", f"{{{own}}}") for i in range(3)]
    if method == "slerp":
        listed = [("base", "{}"), ("m0", "{}")]
    models = "".join(f"  - {{model: {folder}/{name}, parameters: {own}}}\n" for name, own in listed)
    base = "" if method == "linear" else f"base_model: {folder}/base\n"
    return f"merge_method: {method}\n{base}parameters: {whole}\ndtype: float32\nmodels:\n{models}"


def run(code, pairs, path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PETKIT_MERGEKIT")
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [path, environment.get("PYTHONPATH")]))
    words = [str(one) for pair in pairs for one in pair]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """The folder in which each case was merged by both."""
    assert Path(SITE, "mergekit").is_dir(), f"PETKIT_MERGEKIT must be a folder with mergekit, got {SITE}"
    folder = tmp_path_factory.mktemp("oracle")
    source = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=source) for name, shape in shapes().items()}
    save(folder / "base", base)
    for i in range(3):
        shifts = {name: 0.1 * torch.randn(one.shape, generator=source) for name, one in base.items()}
        save(folder / f"m{i}", {name: one + shifts[name] for name, one in base.items()})
    recipes = []
    for number, case in enumerate(CASES.values()):
        recipes.append(folder / f"{number}.yml")
        recipes[-1].write_text(recipe(folder, *case))
    for name, code, path in (("mergekit", MERGEKIT, SITE), ("petkit", PETKIT, "")):
        (folder / name).mkdir()
        run(code, [(one, folder / name / one.stem) for one in recipes], path)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_mergekits(merged, case):
    number = str(list(CASES).index(case))
    theirs, ours = (load_file(merged / one / number / "model.safetensors") for one in ("mergekit", "petkit"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)
    base = load_file(merged / "base/model.safetensors")
    assert any(not torch.equal(one, base[name]) for name, one in ours.items())
