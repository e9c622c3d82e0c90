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


def test_noise_is_in_every_form_of_the_result(tmp_path):
    experiment, _ = load_experiment("noise")
    page = write_results(tmp_path, "noise", rows_of(experiment), {}, experiment).read_text()
    # 0.5 and 0.6: standard error 0.05, and a t of 12.706 at one degree of freedom.
    assert page.count("55.0% ± 63.5%") == len(experiment.variants) * (1 + len(experiment.noise))
    assert (tmp_path / "table.md").read_text().count("± 63.5%") == page.count("± 63.5%")
    row = json.loads((tmp_path / "results.json").read_text())["rows"][0]
    assert row["noise"]["0.4"]["accuracies"] == [0.5, 0.6]
    assert row["noise"]["0.4"]["accuracy"]["high"] == pytest.approx(0.55 + 12.7062 * 0.05)


def test_one_seed_has_no_interval_and_the_result_stays_json(tmp_path):
    experiment, _ = load_experiment("demo")
    write_results(tmp_path, "demo", rows_of(experiment, seeds=1), {}, experiment)
    assert "NaN" not in (tmp_path / "results.json").read_text()
