"""The search: near a known optimum, never worse than where it starts, and whole after any stop."""

import hashlib
import json
import shlex
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from petkit.artifacts.run_directory import open_run
from petkit.artifacts.whole_model import check_weights, read_merged
from petkit.configuration.reader import load_yaml
from petkit.errors import ConfigError, GateError, InputError, PetkitError
from petkit.merging import tuning
from petkit.merging.config import read_merge_config
from petkit.merging.folders import merge_folders
from petkit.merging.metric import read_metric
from petkit.merging.tuning import Budget, Search, check_search, search_space, tune

# Reads float32 tensors without a library, to start at once.
DISTANCE = """
import array, json, sys
def read(folder):
    raw = open(folder + "/model.safetensors", "rb").read()
    size = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8:8 + size])
    return {k: array.array("f", raw[8 + size + v["data_offsets"][0]:8 + size + v["data_offsets"][1]])
            for k, v in head.items() if v.get("dtype") == "F32"}
one, other = read(sys.argv[1]), read(sys.argv[2])
print(-sum((x - y) ** 2 for k in one for x, y in zip(one[k], other[k])))
"""
OPTIMUM = (0.3, 0.8)


def command(code, *arguments):
    return shlex.join([sys.executable, "-S", "-c", code, "{model}", *map(str, arguments)])


class Bench:
    """A search over a family of models, and how to run it."""

    def __init__(self, family):
        self.family, self.folder = family, family.folder
        base, models = family.base, family.models
        mixed = {
            name: one + sum(w * (m[name] - one) for w, m in zip(OPTIMUM, models, strict=False))
            if one.is_floating_point()
            else one
            for name, one in base.items()
        }
        self.metric = command(DISTANCE, family.write("target", mixed))
        self.data = self.configured("task_arithmetic")

    def configured(self, method, *own, **more):
        own = own or ({}, {})
        models = [
            {"model": f"{self.folder}/m{i}", "parameters": parameters} for i, parameters in enumerate(own)
        ]
        return {"merge_method": method, "base_model": f"{self.folder}/base", "models": models, **more}

    def search(self, data=None, metric=None, direction="maximize", seed=0, **options):
        space = search_space(data or self.data, "c.yml")
        return Search("c.yml", space, read_metric(metric or self.metric, **options), direction, seed, 10**9)

    def run(self, search, name="out", resume=False, **budget):
        with open_run(self.folder / name, resume=resume) as run:
            return tune(search, Budget(**budget), run)

    def lines(self, name="out"):
        return [json.loads(one) for one in (self.folder / name / "trials.jsonl").read_text().splitlines()]

    def tried(self, name="out"):
        return [(one["parameters"], one["score"]) for one in self.lines(name)]


@pytest.fixture
def bench(family, monkeypatch):
    # Half of the time of such small merges.
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    return Bench(family)


def failing(wanted):
    """Fails on the runs whose number, counted in a file, is wanted."""
    count = "import sys; file = open(sys.argv[2], 'a'); n = file.tell(); file.write('x')"
    return f"{count}; sys.exit('no luck') if {wanted} else print(n)"


def test_thirty_trials_come_near_the_optimum(bench):
    result = bench.run(bench.search(), trials=30)
    found = result["best"]["parameters"]
    assert list(found) == ["m0.weight", "m1.weight"]
    assert result["baseline"]["parameters"] == {"m0.weight": 0.5, "m1.weight": 0.5}
    for value, optimum in zip(found.values(), OPTIMUM, strict=True):
        assert abs(value - optimum) < 0.12
    assert result["best"]["score"] > 0.2 * result["baseline"]["score"]
    assert (result["status"], result["trials"], result["failed"], result["stopped"]) == (
        "completed",
        30,
        0,
        None,
    )
    out = bench.folder / "out"
    assert sorted(one.name for one in out.iterdir()) == [
        "best",
        "best.yml",
        "result.json",
        "study.journal",
        "study.json",
        "trials.jsonl",
    ]
    assert json.loads((out / "result.json").read_text()) == result
    check_weights(out / "best", read_merged(out / "best"))


def test_parts_are_the_whole(bench):
    bench.run(bench.search(), "whole", trials=12)
    bench.run(bench.search(), "parts", trials=6)
    bench.run(bench.search(), "parts", resume=True, trials=12)
    assert bench.tried("parts") == bench.tried("whole")
    assert len(bench.lines("parts")) == 12
    for name in ("best.yml", "best/model.safetensors", "best/config.yaml"):
        assert (bench.folder / "parts" / name).read_bytes() == (bench.folder / "whole" / name).read_bytes()


@pytest.mark.parametrize("method", ["dare_ties", "linear"])
def test_best_yml_gives_the_best_model_bit_for_bit(bench, method):
    data = bench.configured(method, dtype="bfloat16")
    bench.run(bench.search(data, seed=5, metric=command("print(1)")), trials=3)
    path = bench.folder / "out/best.yml"
    merge_folders(
        read_merge_config(path),
        load_yaml(path).data,
        bench.folder / "again",
        seed=5,
        shard_bytes=10**9,
        progress=tuning._silent,
    )
    best, again = (bench.folder / name / "model.safetensors" for name in ("out/best", "again"))
    assert best.read_bytes() == again.read_bytes()
    found = read_merged(best.parent)
    assert found.weights_sha256 == read_merged(again.parent).weights_sha256
    inputs = found.lineage[0].inputs
    file = bench.folder / "m0/model.safetensors"
    assert inputs[str(file)] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_files_own_numbers_are_the_first_trial(bench):
    data = bench.configured("task_arithmetic", {"weight": 1.25}, {"weight": [0.5, 0.25]})
    # The best of equal scores is the first.
    result = bench.run(bench.search(data, metric=command("print(1)")), trials=4)
    assert result["baseline"] == result["best"]
    assert load_yaml(bench.folder / "out/best.yml").data == data
    assert result["ranges"]["m0.weight"] == [0, 1.25]
    base, (one, two, _) = bench.family.base, bench.family.models
    name = "model.layers.3.mlp.weight"
    expected = base[name] + 1.25 * (one[name] - base[name]) + 0.25 * (two[name] - base[name])
    torch.testing.assert_close(load_file(bench.folder / "out/best/model.safetensors")[name], expected)


def test_less_may_be_better(bench):
    code = DISTANCE.replace("print(-", "print(")
    target = bench.folder / "target"
    less = bench.run(bench.search(metric=command(code, target), direction="minimize"), "less", trials=5)
    more = bench.run(bench.search(), "more", trials=5)
    assert less["best"]["score"] == min(one["score"] for one in bench.lines("less"))
    assert less["best"]["trial"] == more["best"]["trial"]


def test_failed_trials_are_recorded_and_passed_over(bench):
    metric = command(failing("n in (0, 3)"), bench.folder / "count")
    result = bench.run(bench.search(metric=metric), trials=6)
    assert (result["trials"], result["failed"], result["best"]["trial"]) == (6, 2, 5)
    line = bench.lines()[3]
    assert (line["status"], line["score"], line["error"]) == ("failed", None, "ended with code 1: no luck")
    assert result["baseline"]["score"] is None


@pytest.mark.parametrize(("allowed", "tried"), [(0, 3), (2, 5)])
def test_too_many_failures_in_a_row_end_it(bench, allowed, tried):
    metric = command(failing("n >= 2"), bench.folder / "count")
    with pytest.raises(PetkitError, match=r"too many trials in a row .*ended with code 1: no luck .*jsonl"):
        bench.run(bench.search(metric=metric), trials=9, failures=allowed)
    result = json.loads((bench.folder / "out/result.json").read_text())
    assert (result["status"], result["stopped"], result["trials"]) == ("failed", "failures", tried)
    assert result["best"]["trial"] == 1
    assert (bench.folder / "out/best/model.safetensors").exists()


def test_all_failed(bench):
    with pytest.raises(
        PetkitError, match="all 2 trials failed, the last one: the score must be finite"
    ) as error:
        bench.run(bench.search(metric=command("print('nan')")), trials=2)
    assert error.value.exit_code == 1
    assert not (bench.folder / "out/best").exists()


def test_numbers_that_cannot_be_merged_are_a_failed_trial(bench):
    # The start is the base itself.
    data = bench.configured("task_arithmetic", {"weight": 0}, {"weight": 0})
    result = bench.run(bench.search(data), trials=2)
    assert result["baseline"]["error"].endswith("0 of 10 merged tensors differ from its base")
    assert result["best"]["trial"] == 1
    data = bench.configured("linear", *({"weight": {"search": [-1, 1], "start": w}} for w in (1, -1)))
    result = bench.run(bench.search(data), "linear", trials=2)
    assert "must not sum to 0" in result["baseline"]["error"]


def test_a_command_that_removes_the_model(bench):
    metric = command("import shutil, sys; shutil.rmtree(sys.argv[1]); print(1)")
    with pytest.raises(PetkitError, match="all 1 trials failed, the last one: the command removed the model"):
        bench.run(bench.search(metric=metric), trials=1)


def test_no_trial_but_the_first_begins_after_the_time_limit(bench):
    search = bench.search(metric=command("print(1)"))
    result = bench.run(search, trials=9, seconds=0.001)
    assert (result["status"], result["stopped"], result["trials"]) == ("completed", "time_limit", 1)
    assert bench.run(search, resume=True, trials=9, seconds=0.001) == result


def test_a_best_model_that_was_lost_is_merged_again(bench):
    bench.run(bench.search(), trials=4)
    out = bench.folder / "out"
    before = (out / "best/model.safetensors").read_bytes()
    shutil.rmtree(out / "best")
    (out / "scratch").mkdir()
    bench.run(bench.search(), resume=True, trials=4)
    assert (out / "best/model.safetensors").read_bytes() == before
    (out / "best.yml").write_text("merge_method: linear\n")
    bench.run(bench.search(), resume=True, trials=4)
    check_weights(out / "best", read_merged(out / "best"))
    assert load_yaml(out / "best.yml").data["merge_method"] == "task_arithmetic"
    assert not (out / "scratch").exists()


def test_another_search_is_not_gone_on_with(bench):
    bench.run(bench.search(metric=command("print(1)")), trials=1)
    other = bench.configured(
        "task_arithmetic", {"weight": {"search": [0, 2]}}, {"weight": {"search": [0, 1]}}
    )
    for search, message in (
        (bench.search(metric=command("print(2)")), r"metric is .*print\(1\).* there and .*print\(2\).* now"),
        (bench.search(metric=command("print(1)"), key="x"), "key is null there and 'x' now"),
        (bench.search(metric=command("print(1)"), seed=1), "seed is 0 there and 1 now"),
        (bench.search(metric=command("print(1)"), direction="minimize"), "direction is 'maximize' there"),
        (
            bench.search(other, metric=command("print(1)")),
            r"configuration.models\[0\].parameters.weight.search\[1\] is 1.0 there and 2 now",
        ),
    ):
        with pytest.raises(InputError, match=message):
            bench.run(search, resume=True, trials=2)
    assert len(bench.lines()) == 1


def test_models_that_changed_are_noticed(bench):
    search = bench.search(metric=command("print(1)"))
    bench.run(search, trials=1)
    bench.family.write("m1", bench.family.models[2])
    with pytest.raises(InputError, match=r"m1/model.safetensors has changed since$"):
        bench.run(search, resume=True, trials=2)


def test_a_folder_of_something_else_is_not_gone_on_with(bench):
    with pytest.raises(InputError, match=r"base holds no search to go on with: it has no study.json"):
        bench.run(bench.search(), "base", resume=True, trials=1)


def test_an_interrupt_is_marked_and_gone_on_from(bench, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    bench.run(bench.search(), "whole", trials=3)
    bench.run(bench.search(), trials=1)
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bench.run(bench.search(), resume=True, trials=3)
    result = json.loads((bench.folder / "out/result.json").read_text())
    assert (result["status"], result["trials"]) == ("interrupted", 1)
    assert not (bench.folder / "out/scratch").exists()
    bench.run(bench.search(), resume=True, trials=3)
    assert bench.tried() == bench.tried("whole")


@pytest.mark.parametrize(
    ("method", "limits", "message"),
    [
        ("model_stock", {}, "nothing to search: model_stock has no weights and no densities$"),
        ("tsv", {}, r"nothing to search: .*, write a range such as lambda: {search: \[0, 1\]}"),
        ("linear", {"density": (0.1, 1)}, "linear has no density to search; it has weight, normalize"),
        ("linear", {"weight": (1, 0)}, "limits of weight must be LOW HIGH with low below high, got 1 0"),
        ("liner", {}, "did you mean linear?"),
    ],
)
def test_nothing_to_search(bench, method, limits, message):
    with pytest.raises(ConfigError, match=message):
        search_space(bench.configured(method), "c.yml", limits)


def test_limits_beside_ranges_are_refused(bench):
    data = bench.configured("linear", {"weight": {"search": [0, 1]}}, {"weight": 1})
    with pytest.raises(
        ConfigError, match=r"limits of weight \(--weights, --densities\) are for a file without"
    ):
        search_space(data, "c.yml", {"weight": (0, 1)})


def test_limits(bench):
    space = search_space(bench.configured("ties"), "c.yml", {"weight": (-1, 2)})
    assert [(one.low, one.high) for one in space.ranges] == [(-1, 2), (0.05, 1)] * 2


@pytest.mark.parametrize(("epsilon", "low"), [({}, 0.16), ({"epsilon": 0.2}, 0.21)])
def test_dellas_densities_keep_away_from_the_ends(bench, epsilon, low):
    space = search_space(bench.configured("della", parameters=epsilon), "c.yml")
    density = next(one for one in space.ranges if one.name == "m0.density")
    assert (density.low, density.high, density.start) == pytest.approx((low, 1 - low, 1 - low))
    result = bench.run(bench.search(bench.configured("della", parameters=epsilon)), trials=3)
    assert result["failed"] == 0


def test_both_ends_of_a_range_are_checked_before_any_work(bench):
    for ends in ([-0.5, 1], [0.5, 1.5]):
        data = bench.configured("ties", {"weight": 1, "density": {"search": ends}}, {"weight": 1})
        with pytest.raises(ConfigError, match=r"density of .*m0 for .* must be from 0 to 1"):
            check_search(search_space(data, "c.yml"), "c.yml", 0)
    data = bench.configured("ties", {"wieght": {"search": [0, 1]}}, {"weight": 1})
    with pytest.raises(ConfigError, match=r"did you mean weight\?"):
        check_search(search_space(data, "c.yml"), "c.yml", 0)
    count = sum(one.numel() for one in bench.family.base.values() if one.is_floating_point())
    assert check_search(search_space(bench.data, "c.yml"), "c.yml", 0) == 4 * count + 8


def test_a_model_that_vanishes_ends_the_search(bench):
    metric = command("import shutil, sys; shutil.rmtree(sys.argv[2]); print(1)", bench.folder / "m1")
    with pytest.raises(InputError, match="m1 is missing"):
        bench.run(bench.search(metric=metric), trials=3)
    assert json.loads((bench.folder / "out/result.json").read_text())["status"] == "failed"


def test_an_unknown_fault_of_a_merge_is_not_hidden(bench, monkeypatch):
    def refuse(*arguments, **options):
        raise GateError("differs")

    monkeypatch.setattr(tuning, "merge_folders", refuse)
    with pytest.raises(PetkitError, match="all 1 trials failed, the last one: differs"):
        bench.run(bench.search(), trials=1)
