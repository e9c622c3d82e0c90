import json

import pytest

from petkit.benchmarks.experiment import load_experiment
from petkit.benchmarks.folder import check_folder, mark_folder
from petkit.errors import InputError

NOISE, _ = load_experiment("noise")


def filled(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_a_marked_folder_is_its_experiments_alone(tmp_path):
    folder = tmp_path / "deep" / "out"
    check_folder(folder, "noise", NOISE)
    assert not folder.exists()
    mark_folder(folder, "noise", NOISE)
    assert json.loads((folder / "experiment.json").read_text()) == {"name": "noise", "recipe": "adapter-demo"}
    check_folder(folder, "noise", NOISE)
    (folder / "anything").mkdir()
    check_folder(folder, "noise", NOISE)
    with pytest.raises(InputError, match="it holds the experiment noise of adapter-demo: choose another"):
        check_folder(folder, "mine", NOISE)
    with pytest.raises(InputError, match="experiment noise of other"):
        check_folder(folder, "noise", NOISE.model_copy(update={"recipe": "other"}))


@pytest.mark.parametrize(
    "files",
    [
        {"report_html": "a finished training run", "result_json": "{}"},
        {"results_json": '{"experiment": "petkit: demo"}'},
        {"results_json": "{"},
        {"experiment_json": "[]"},
    ],
    ids=["a run", "another experiment", "damaged results", "damaged mark"],
)
def test_a_folder_of_something_else_is_refused(tmp_path, files):
    with pytest.raises(InputError, match="must be empty or hold the experiment noise of adapter-demo"):
        check_folder(filled(tmp_path / "out", **files), "noise", NOISE)


def test_a_folder_without_a_mark_is_known_by_its_results_or_its_runs(tmp_path):
    check_folder(filled(tmp_path / "a", results_json='{"experiment": "petkit: noise"}'), "noise", NOISE)
    runs = filled(tmp_path / "b")
    for variant in NOISE.variants:
        (runs / variant.folder).mkdir()
    check_folder(runs, "noise", NOISE)
    (runs / "holiday").mkdir()
    with pytest.raises(InputError, match="files that are not this experiment's"):
        check_folder(runs, "noise", NOISE)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="must be a folder, it is a file"):
        check_folder(tmp_path / "out", "noise", NOISE)
