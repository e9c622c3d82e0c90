"""Model folders: the same numbers as in memory, whatever the pieces and shards; damage is named."""

import json
import logging
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from petkit.artifacts.whole_model import read_merged
from petkit.errors import ArtifactError, ConfigError, GateError, InputError, PetkitError, SafetyError
from petkit.merging import folders
from petkit.merging import slices as slices_module
from petkit.merging.config import read_merge_config
from petkit.merging.folders import merge_folders
from petkit.merging.sources import open_model
from petkit.merging.state_dicts import merge_state_dicts


@contextmanager
def silent(_):
    yield lambda count: None


def merge(family, text, *, shard_bytes=10**9, seed=0, name="out", **more):
    path = family.folder / "c.yml"
    path.write_text(text.replace("@", f"{family.folder}/"))
    config, output = read_merge_config(path), family.folder / name
    result = merge_folders(
        config, {"text": text}, output, seed=seed, shard_bytes=shard_bytes, progress=silent, **more
    )
    return output, result


def asked(method, parameters="{}", own="{weight: 1.0}", count=3, more=""):
    models = "".join(f"  - {{model: '@m{i}', parameters: {own}}}\n" for i in range(count))
    return f"merge_method: {method}\nbase_model: '@base'\nparameters: {parameters}\nmodels:\n{models}{more}"


def tensors(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize(
    ("method", "parameters", "own"),
    [
        ("linear", "{}", "{weight: 0.5}"),
        ("task_arithmetic", "{lambda: 0.5}", "{weight: 0.5}"),
        ("ties", "{density: 0.4}", "{weight: 0.5}"),
        ("ties", "{density: 0.4, scope: global}", "{weight: 0.5}"),
        ("dare_ties", "{density: 0.4}", "{weight: 0.5}"),
        ("della", "{density: 0.4}", "{weight: 0.5}"),
        ("sce", "{select_topk: 0.5}", "{}"),
        ("tsv", "{}", "{}"),
    ],
)
@pytest.mark.parametrize("piece", [5, 1 << 20])
def test_folders_are_merged_as_state_dicts_are(half_family, method, parameters, own, piece, monkeypatch):
    monkeypatch.setattr(slices_module, "PIECE", piece)
    folder, result = merge(half_family, asked(method, parameters, own), shard_bytes=300, seed=5)
    given = {"ties": {"density": 0.4}, "dare_ties": {"density": 0.4}, "della": {"density": 0.4}}.get(
        method, {}
    )
    if "global" in parameters:
        given = {**given, "scope": "global"}
    given |= {"task_arithmetic": {"lambda_": 0.5}, "sce": {"select_topk": 0.5}}.get(method, {})
    weights = [0.5] * 3 if "weight" in own else None
    wanted = merge_state_dicts(method, half_family.models, half_family.base, weights, seed=5, **given)
    found = tensors(folder)
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        assert torch.equal(found[name], one), name
    assert (result["status"], result["tensors"], result["copied"]) == ("completed", 10, 1)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert read_merged(folder).method == method


def test_parameters_by_layer_and_name(family):
    weights = "[{filter: attn, value: [0, 1]}, {filter: norm, value: 5}, {value: 1}]"
    text = asked("task_arithmetic", own=f"{{weight: {weights}}}", count=1)
    found = tensors(merge(family, text)[0])
    for name, factor in (
        ("model.layers.0.attn.weight", 0),
        ("model.layers.1.attn.weight", 1 / 3),
        ("model.layers.3.attn.weight", 1),
        ("model.layers.1.mlp.weight", 1),
        ("model.norm.weight", 5),
    ):
        wanted = family.base[name] + factor * (family.models[0][name] - family.base[name])
        torch.testing.assert_close(found[name], wanted)


def test_layers_are_stacked_anew(family):
    text = """
merge_method: passthrough
slices:
  - sources: [{model: '@m0', layer_range: [0, 3]}]
  - sources: [{model: '@m1', layer_range: [1, 4]}]
"""
    (family.folder / "m0/config.json").write_text('{"num_hidden_layers": 4}')
    folder, _ = merge(family, text)
    found = tensors(folder)
    assert {name for name in found if "mlp" in name} == {f"model.layers.{i}.mlp.weight" for i in range(6)}
    for out, (model, layer) in enumerate([(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]):
        wanted = family.models[model][f"model.layers.{layer}.attn.weight"]
        assert torch.equal(found[f"model.layers.{out}.attn.weight"], wanted)
    assert torch.equal(found["model.embed.weight"], family.models[0]["model.embed.weight"])
    assert torch.equal(found["model.norm.weight"], family.models[1]["model.norm.weight"])
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == 6


def test_the_dtype_of_the_result(family):
    (family.folder / "base/config.json").write_text('{"torch_dtype": "float32"}')
    folder, _ = merge(family, asked("linear", more="dtype: bfloat16\n"))
    found = tensors(folder)
    assert {one.dtype for one in found.values()} == {torch.bfloat16, torch.int64}
    assert json.loads((folder / "config.json").read_text()) == {"torch_dtype": "bfloat16"}


def test_a_merge_that_equals_its_base_is_no_success(family):
    with pytest.raises(GateError, match=r"differs from its base: 0 of 10 merged tensors"):
        merge(family, asked("task_arithmetic", own="{weight: 0.0}"))
    assert json.loads((family.folder / "out/result.json").read_text())["status"] == "gate_failed"


def test_tokenizers_that_differ_are_named(family):
    for name, ids in (("base", {"a": 0, "b": 1}), ("m0", {"a": 0, "b": 1}), ("m1", {"a": 1, "b": 0})):
        content = {"model": {"vocab": ids}, "added_tokens": []}
        (family.folder / name / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"base and .*m1 must have one vocabulary, token 'a' is 0 in one and 1"
    ):
        merge(family, asked("linear"))
    folder, _ = merge(family, asked("linear", more="tokenizer_source: base\n"))
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"] == {"a": 0, "b": 1}


def test_nothing_is_left_of_a_merge_that_fails(family):
    family.models[1]["model.norm.weight"][2] = float("inf")
    family.write("m1", family.models[1])
    with pytest.raises(InputError, match=r"m1 must hold finite numbers, model.norm.weight holds nan or inf"):
        merge(family, asked("linear"))
    assert not (family.folder / "out").exists()


def test_an_index_of_shards(family):
    folder, _ = merge(family, asked("linear"), shard_bytes=200, name="sharded")
    index = folder / "model.safetensors.index.json"
    with open_model(folder) as model:
        assert model.entries.keys() == family.base.keys()
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = "../base/model.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(SafetyError, match=r"index.json: each part of the file name"), open_model(folder):
        pass
    content["weight_map"]["model.norm.weight"] = None
    index.write_text(json.dumps(content))
    with (
        pytest.raises(ArtifactError, match=r"index.json is no index of shards: .* got None"),
        open_model(folder),
    ):
        pass
    content["weight_map"]["model.norm.weight"] = "model-00009-of-00001.safetensors"
    index.write_text(json.dumps(content))
    with (
        pytest.raises(ArtifactError, match=r"model-00009-of-00001.safetensors is missing, 1 of the 11"),
        open_model(folder),
    ):
        pass
    other = next(file for name, file in content["weight_map"].items() if name == "model.embed.weight")
    content["weight_map"]["model.norm.weight"] = other
    index.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"says that model.norm.weight is in"), open_model(folder):
        pass


def test_folders_that_are_no_models(tmp_path):
    with (
        pytest.raises(InputError, match=r"expected a model folder, .*nothing is missing"),
        open_model(tmp_path / "nothing"),
    ):
        pass
    with pytest.raises(InputError, match=r"it holds no safetensors file"), open_model(tmp_path):
        pass
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(SafetyError), open_model(tmp_path):
        pass


def test_a_base_among_the_sources_of_a_slice_is_no_model(family):
    text = (
        "merge_method: model_stock\nbase_model: '@base'\nslices:\n  - sources:\n"
        "      - {model: '@base', layer_range: [0, 4]}\n      - {model: '@m0', layer_range: [0, 4]}\n"
        "      - {model: '@m1', layer_range: [0, 4]}\n"
    )
    output, _ = merge(family, text)
    wanted = merge_state_dicts("model_stock", family.models[:2], family.base)
    for name, one in tensors(output).items():
        torch.testing.assert_close(one, wanted[name], rtol=0, atol=0)


def test_slerp_as_mergekit_writes_it(family):
    text = (
        "merge_method: slerp\nbase_model: '@base'\nparameters: {t: 0.25}\nslices:\n  - sources:\n"
        "      - {model: '@base', layer_range: [1, 3]}\n      - {model: '@m0', layer_range: [0, 2]}\n"
    )
    output, result = merge(family, text)
    assert result["models"] == [f"{family.folder}/m0"]
    name, other = "model.layers.0.mlp.weight", "model.layers.1.mlp.weight"
    base = {name: family.base[other]}
    wanted = merge_state_dicts("slerp", [{name: family.models[0][name]}], base, t=0.25)
    torch.testing.assert_close(tensors(output)[name], wanted[name], rtol=0, atol=0)


def test_layers_of_the_base_alone_are_kept(family):
    text = (
        "merge_method: passthrough\nbase_model: '@base'\nslices:\n"
        "  - {sources: [{model: '@base', layer_range: [0, 2]}]}\n"
        "  - {sources: [{model: '@m0', layer_range: [1, 2]}]}\n"
    )
    found = tensors(merge(family, text)[0])
    assert torch.equal(found["model.layers.1.mlp.weight"], family.base["model.layers.1.mlp.weight"])
    assert torch.equal(found["model.layers.2.mlp.weight"], family.models[0]["model.layers.1.mlp.weight"])


def test_what_is_passed_through_is_compared_with_the_base(family):
    _, result = merge(family, "merge_method: passthrough\nbase_model: '@base'\nmodels: [{model: '@m0'}]\n")
    assert result["changed"] == result["tensors"]


def test_templates_by_name_are_no_templates(family):
    with pytest.raises(ConfigError, match="chat_template must be auto, chatml, llama3 or a Jinja template"):
        merge(family, asked("linear", more="chat_template: chatlm\n"))
    folder, _ = merge(family, asked("linear", more="chat_template: chatml\n"), name="named")
    assert "<|im_start|>" in (folder / "chat_template.jinja").read_text()


def test_counters_and_floats_do_not_merge(family):
    family.write("m1", {**family.models[1], "model.norm.weight": torch.ones(6, dtype=torch.int64)})
    with pytest.raises(InputError, match=r"model\.norm\.weight must be of floats in all models or in none"):
        merge(family, asked("linear"))


@pytest.mark.parametrize("method", ["task_arithmetic", "della_linear", "dare_linear"])
def test_weights_that_cancel_are_not_normalised(family, method):
    text = asked(method, "{normalize: true}", count=2).replace("weight: 1.0", "weight: -1.0", 1)
    with pytest.raises(ConfigError, match="sum to 0"):
        merge(family, text)


def test_models_that_are_built_otherwise_are_told(family, caplog):
    for name, heads in (("base", 2), ("m0", 2), ("m1", 4)):
        content = {"model_type": "llama", "num_attention_heads": heads, "_name_or_path": name}
        (family.folder / name / "config.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING, logger="petkit"):
        merge(family, asked("linear", count=2))
    (message,) = [one.message for one in caplog.records]
    assert message.startswith(f"{family.folder}/m1 is not built as {family.folder}/base is")
    assert message.endswith("num_attention_heads 4 against 2")


def test_a_filter_that_meets_nothing_is_named(family, caplog):
    weight = "[{filter: mpl, value: 1}, {filter: mlp, value: 2}, {value: 0.5}]"
    with caplog.at_level(logging.WARNING, logger="petkit"):
        merge(family, asked("linear", own=f"{{weight: {weight}}}"))
    assert "the filter 'mpl' is part of no tensor's name" in caplog.text
    assert "'mlp'" not in caplog.text


def test_a_disk_without_room_is_refused_before_the_merge(family, monkeypatch):
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(PetkitError, match=r"needs [\d,]+ bytes on its disk, 1,000 are free"):
        merge(family, asked("linear"))
    assert not (family.folder / "out").exists()
