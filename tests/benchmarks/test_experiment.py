import json

import pytest

from petkit.benchmarks.comparison import Row, noise_table, run_experiment, summary_table, tables
from petkit.benchmarks.experiment import ExperimentConfig, load_experiment, shipped_experiments
from petkit.benchmarks.page import write_results
from petkit.errors import InputError
from petkit.training.context import RunContext

TINY = ["data.train_size=60", "data.test_size=40", "training.epochs=1", "training.batch_size=20"]
TINY += ["training.warmup_epochs=0"]


def write(tmp_path, text):
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", shipped_experiments())
def test_every_shipped_experiment_loads_and_names_a_shipped_recipe(name):
    experiment, recipe = load_experiment(name)
    assert recipe.is_file()
    assert shipped_experiments()[name]
    assert len({variant.folder for variant in experiment.variants}) == len(experiment.variants)


def test_the_variants_of_a_bits_plot_know_their_line_and_place():
    experiment, _ = load_experiment("quantization")
    places = [(variant.line, variant.bits) for variant in experiment.variants]
    assert places == [
        ("32 bit", 32),
        *[("QAT", bits) for bits in (8, 4, 2, 1)],
        *[("PTQ", bits) for bits in (8, 4, 2, 1)],
        ("PTQ, refitted", 1),
    ]


def test_a_missing_experiment_or_recipe_is_named(tmp_path):
    with pytest.raises(InputError, match=r"one of constant-bytes, demo, noise, quantization, got 'dmeo'"):
        load_experiment("dmeo")
    with pytest.raises(InputError, match="got 'nowhere'"):
        load_experiment(write(tmp_path, "recipe: nowhere\nvariants: [{name: a}]"))


def test_an_experiment_trains_quantises_adds_noise_and_resumes(tmp_path):
    experiment = ExperimentConfig.model_validate(
        {
            "recipe": "adapter-smoke",
            "seeds": 2,
            "set": TINY,
            "noise": (0.0, 0.5),
            "variants": (
                {"name": "probe", "set": ("adapter.method=linear_probe",)},
                {"name": "32 bit", "set": ("adapter.bits=32",)},
                {"name": "1 bit PTQ", "quantize": {"source": "32 bit", "bits": 1}},
            ),
        }
    )
    _, recipe = load_experiment("demo")
    recipe = recipe.parent / "adapter-smoke.yaml"

    def run():
        return run_experiment(
            experiment, recipe, tmp_path / "out", lambda folder: RunContext(folder, overwrite=True)
        )

    rows = run()
    assert [len(row.accuracies) for row in rows] == [2, 2, 2]
    assert rows[0].bytes["adapter"] == 0
    # 32-bit weights against 1-bit codes with 8 bytes of shift and scale for each matrix.
    assert 20 < rows[1].bytes["adapter"] / rows[2].bytes["adapter"] < 32
    assert rows[1].noise[0.0] == pytest.approx(rows[1].accuracies)
    report = write_results(tmp_path / "out", "tiny", rows, {"command": "none"})
    assert "<script" not in report.read_text()
    assert len(json.loads((tmp_path / "out/results.json").read_text())["rows"]) == 3

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("petkit.json")}
    again = run()
    assert [row.accuracies for row in again] == [row.accuracies for row in rows]
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("petkit.json")}

    changed = experiment.model_copy(update={"set": (*TINY, "training.learning_rate=0.5")})
    with pytest.raises(InputError, match=r"other settings \(training\)"):
        run_experiment(changed, recipe, tmp_path / "out", RunContext)


def test_the_table_says_over_how_many_seeds():
    sizes = {"adapter": 10, "head": 5, "ratio": 3.0}
    row = Row("one", [0.5], sizes, [10.0], [20.0])
    assert summary_table([row]).note == "one seed: no interval"
    row.accuracies.append(0.6)
    table = summary_table([row])
    assert "over 2 seeds" in table.note
    assert "55.0% ±" in table.plain()


def test_the_noise_table_has_a_column_per_level():
    sizes = {"adapter": 10, "head": 5, "ratio": 3.0}
    row = Row("one", [0.5, 0.6], sizes, [10.0], [20.0], {0.0: [0.5, 0.6], 0.25: [0.2, 0.2]})
    table = noise_table([row])
    assert table.columns == ("system", "0", "0.25")
    assert table.text_cells() == [["one", "55.0% ± 63.5%", "20.0% ± 0.0%"]]
    assert len(tables([row])) == 2
    row.noise = {}
    assert len(tables([row])) == 1
