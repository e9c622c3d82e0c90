import pytest

from petkit.benchmarks.experiment import load_experiment
from petkit.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("recipe: adapter-smoke", ["variants is required and missing (experiment.yaml:1); add it"]),
        (
            "recipe: adapter-smoke\nvariants: []",
            ["variants must hold at least one variant, got none (experiment.yaml:2)"],
        ),
        (
            "recipe: adapter-smoke\nvariants:\n- {name: a}\n- {name: A}",
            ["variants[1].name must differ from those before it, got 'A' again (experiment.yaml:4)"],
        ),
        (
            "recipe: adapter-smoke\nvarients: []\nseeds: three\n"
            "variants:\n- {name: 8, sett: []}\n- {set: [x]}",
            [
                "seeds must be a whole number, got 'three' (experiment.yaml:3)",
                "variants[0].name must be text (put it in quotes), got 8 (experiment.yaml:5)",
                "unknown key variants[0].sett (experiment.yaml:5); did you mean set?",
                "variants[1].name is required and missing (experiment.yaml:6); add it",
                "variants[1].set[0] must be KEY=VALUE, such as training.epochs=3, got 'x' "
                "(experiment.yaml:6)",
                "unknown key varients (experiment.yaml:2); did you mean variants?",
            ],
        ),
        (
            "recipe: adapter-smoke\nrecipe: b\n"
            "variants:\n- {name: a, quantize: {source: b, bits: 3, qqq: 1}}",
            [
                "duplicate key recipe (experiment.yaml:1 and 2); keep one",
                "variants[0].quantize.bits must be 1, 2, 4 or 8, got 3 (experiment.yaml:4)",
                "unknown key variants[0].quantize.qqq (experiment.yaml:4); variants[0].quantize has source, "
                "bits, method",
            ],
        ),
        (
            "recipe: adapter-smoke\nvariants:\n- {name: a, quantize: {source: b, bits: 1}}",
            ["variants[0].quantize.source must be a variant trained before it, got 'b' (experiment.yaml:3)"],
        ),
        (
            "recipe: adapter-smoke\nvariants:\n- name: b\n"
            "- {name: a, set: [x=1], quantize: {source: b, bits: 1}}",
            ["variants[1] must have either set or quantize, got both (experiment.yaml:4)"],
        ),
        (
            "recipe: adapter-smoke\nplot: bits\nvariants:\n- {name: a}",
            ["variants[0].set must set adapter.bits for plot: bits, got [] (experiment.yaml:4)"],
        ),
        (
            "recipe: adapter-smoke\nset: [training.epoch=3]\nvariants:\n- {name: a, set: [adapter.bits=3]}\n"
            "- name: b\n  set:\n  - adapter.bits=1\n  - adapter.bitz=1\n  - 'adapter.scale=[1'\n",
            [
                "unknown key training.epoch (experiment.yaml:2); did you mean training.epochs?",
                "adapter.bits must be 1, 2, 4, 8 or 32, got 3 (experiment.yaml:4, variant 'a')",
                "adapter.scale=[1:1 is not valid YAML: expected ',' or ']', but got '<stream end>' "
                "(experiment.yaml:9, variant 'b')",
                "unknown key adapter.bitz (experiment.yaml:8, variant 'b'); did you mean adapter.bits?",
            ],
        ),
    ],
)
def test_a_wrong_experiment_says_all_that_is_wrong_and_where(tmp_path, text, lines):
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_experiment(str(path))
    assert sorted(str(caught.value).splitlines()) == sorted(lines)
