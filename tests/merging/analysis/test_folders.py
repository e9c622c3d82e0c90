"""Which models a configuration means, and what they are called."""

from contextlib import contextmanager

import pytest

from petkit.errors import ConfigError
from petkit.merging.analysis.folders import compared, measure_folders, short_names
from petkit.merging.analysis.streamed import Settings, analyze_state_dicts
from petkit.merging.config import read_merge_config


@contextmanager
def silent(_):
    yield lambda count: None


def config(tmp_path, text):
    path = tmp_path / "c.yml"
    path.write_text(text)
    return read_merge_config(path)


def listed(tmp_path, *models, base="base_model: models/base\n"):
    return config(
        tmp_path, f"merge_method: linear\n{base}models:\n" + "".join(f"  - model: {one}\n" for one in models)
    )


def test_folders_give_what_state_dicts_give(half_family):
    folder = half_family.folder
    asked = listed(folder, *(folder / f"m{i}" for i in range(3)), base=f"base_model: {folder}/base\n")
    found = measure_folders(compared(asked), Settings(), silent)
    wanted = analyze_state_dicts({f"m{i}": one for i, one in enumerate(half_family.models)}, half_family.base)
    assert found == wanted


def test_the_base_is_none_of_the_models(tmp_path):
    models = compared(listed(tmp_path, "models/base", "models/a", "models/b"), ["out/merged"])
    assert models.experts == {"a": "models/a", "b": "models/b"}
    assert models.records[-1] == {"name": "merged", "role": "merged", "folder": "out/merged"}


def test_models_of_slices_are_meant_too(tmp_path):
    layers = "".join(
        f"  - sources: [{{model: {one}, layer_range: [0, 2]}}]\n" for one in ("m/a", "m/b", "m/a")
    )
    asked = config(tmp_path, f"merge_method: passthrough\nbase_model: m/base\nslices:\n{layers}")
    assert list(compared(asked).experts) == ["a", "b"]


def test_names_are_as_short_as_can_be():
    found = short_names(["x/one", "y/one", "y/two", "one"])
    assert found == {"x/one": "x/one", "y/one": "y/one", "y/two": "two", "one": "one"}


@pytest.mark.parametrize(
    ("models", "base", "merged", "message"),
    [
        (("a", "b"), "", (), "analyze needs base_model"),
        (("a",), "base_model: base\n", (), r"at least two are needed beside base_model, got 1 \(a\)"),
        (("base",), "base_model: base\n", (), "at least two are needed beside base_model, got 0"),
        (("a", "b"), "base_model: base\n", ("a",), "a is there twice"),
        (("a", "b"), "base_model: base\n", ("m", "m"), "m is there twice"),
    ],
)
def test_models_that_cannot_be_compared(tmp_path, models, base, merged, message):
    with pytest.raises(ConfigError, match=message):
        compared(listed(tmp_path, *models, base=base), merged)
