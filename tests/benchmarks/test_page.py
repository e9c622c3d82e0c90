import json

import pytest

from petkit.benchmarks.comparison import Row
from petkit.benchmarks.experiment import load_experiment
from petkit.benchmarks.page import write_results

SIZES = {"adapter": 2000, "head": 500, "ratio": 3.0}


def rows_of(experiment, seeds=2):
    values = [0.5 + 0.1 * seed for seed in range(seeds)]
    noise = dict.fromkeys(experiment.noise, values)
    return [Row(variant.name, values, SIZES, [10.0], [20.0], noise) for variant in experiment.variants]


@pytest.mark.parametrize(
    ("name", "plots"),
    [
        ("demo", ["accuracy_bytes.png"]),
        ("constant-bytes", ["accuracy_variants.png"]),
        ("quantization", ["accuracy_bits.png"]),
        ("noise", ["accuracy_bytes.png", "noise.png"]),
    ],
)
def test_an_experiment_chooses_its_plot(tmp_path, name, plots):
    experiment, _ = load_experiment(name)
    page = write_results(tmp_path, name, rows_of(experiment), {}, experiment).read_text()
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == plots
    assert page.count("<img") == len(plots)
    assert json.loads((tmp_path / "results.json").read_text())["experiment"] == name
