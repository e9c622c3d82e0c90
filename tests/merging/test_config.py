"""mergekit's YAML: what is read, and how each thing that is not is named."""

import pytest

from petkit.errors import ConfigError
from petkit.merging.config import read_merge_config, setting_at, split_adapter

LINEAR = """
merge_method: linear
models:
  - model: a
    parameters: {weight: 0.5}
  - model: b
    parameters: {weight: 1e-1}
dtype: bfloat16
"""


def read(tmp_path, text):
    path = tmp_path / "c.yml"
    path.write_text(text)
    return read_merge_config(path)


def test_models_and_their_weights(tmp_path):
    config = read(tmp_path, LINEAR)
    assert (config.method, config.base, config.dtype, config.is_sliced) == ("linear", None, "bfloat16", False)
    assert [(one.model, one.parameters["weight"]) for one in config.slices[0].sources] == [
        ("a", 0.5),
        ("b", 0.1),
    ]
    assert config.models == ("a", "b")


def test_a_base_among_the_models_is_no_model(tmp_path):
    text = "merge_method: ties\nbase_model: x\nmodels:\n  - model: x\n  - model: a\n"
    config = read(tmp_path, text)
    assert [one.model for one in config.slices[0].sources] == ["a"]
    assert config.models == ("x", "a")


def test_out_dtype_wins(tmp_path):
    assert read(tmp_path, LINEAR + "out_dtype: float16\n").dtype == "float16"


def test_slices(tmp_path):
    text = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 4]}]
"""
    config = read(tmp_path, text)
    assert config.is_sliced
    assert [one.sources[0].layers for one in config.slices] == [(0, 2), (1, 4)]


def test_a_model_and_an_adapter(tmp_path, monkeypatch):
    text = "merge_method: linear\nmodels: [{model: a+b}, {model: {model: {path: a}, lora: {path: c}}}]"
    assert read(tmp_path, text).models == ("a+b", "a+c")
    assert split_adapter("a+b") == ("a", "b")
    assert split_adapter("a") == ("a", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a+b").mkdir()
    assert split_adapter("a+b") == ("a+b", None)
    (tmp_path / "c").mkdir()
    assert split_adapter("a+b+c") == ("a+b", "c")


def test_settings_by_depth_and_by_name():
    assert setting_at(0.5, "x", 0.3) == 0.5
    assert setting_at([0, 1], "x", 0.25) == 0.25
    assert setting_at([0, 1, 0], "x", 0.75) == 0.5
    assert setting_at([1], "x", 1.0) == 1
    filters = [{"filter": "mlp", "value": [0, 1]}, {"filter": "attn", "value": 3}, {"value": 2}]
    assert [setting_at(filters, name, 0.5) for name in ("a.mlp.w", "a.attn.w", "norm")] == [0.5, 3, 2]
    assert setting_at(filters[:2], "norm", 0.5) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [{model: a}]", "merge_method is required"),
        ("merge_method: linear", "either models or slices must be there"),
        (LINEAR + "slices: []", "either models or slices must be there"),
        (LINEAR + "modls: 1", "unknown key modls; did you mean models?"),
        (LINEAR + "tokenizer: {source: base}", "tokenizer is not supported: set tokenizer_source"),
        (LINEAR + "out_dtype: int8", "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        (LINEAR + "dtype: float16", "dtype"),
        ("merge_method: linear\nmodels: []", "models must be a list of at least one"),
        ("merge_method: linear\nmodels: [{modle: a}]", "models[0]: unknown key modle; did you mean model?"),
        ("merge_method: linear\nmodels: [{model: a+b+c}]", "a+b+c must be a model folder, or base+adapter"),
        ("merge_method: linear\nmodels: [{model: a+}]", "a+ must be a model folder, or base+adapter"),
        ("merge_method: linear\nmodels: [{model: {path: a, revision: b}}]", "revision is not supported"),
        ("merge_method: linear\nmodels: [{model: a, parameters: 3}]", "must be a mapping of names to values"),
        (
            "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [2, 1]}]}]",
            "layer_range must be [first, behind the last], got [2, 1]",
        ),
        (
            "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 1]}, "
            "{model: b, layer_range: [0, 2]}]}]",
            "all sources must have as many layers, got [1, 2]",
        ),
    ],
)
def test_what_is_not_read_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert message in str(error.value)
