"""Ranges in a merge's YAML: read, filled, and put where there are none."""

import copy

import pytest

from petkit.errors import ConfigError
from petkit.merging.config import merge_config
from petkit.merging.methods.linear import Linear
from petkit.merging.methods.ties import Ties
from petkit.merging.ranges import Range, numbers_in, range_places, read_space, with_usual_ranges

TIES = Ties.parameters
SPAN = {"search": [0, 1]}


def ties(first, second, **more):
    models = [{"model": "x/maths", "parameters": first}, {"model": "x/code", "parameters": second}]
    return {"merge_method": "ties", "base_model": "x/base", "models": models, **more}


def test_ranges_are_read_where_parameters_are():
    data = ties(
        {"weight": SPAN, "density": {"search": [0.1, 0.9], "start": 0.5}},
        {"weight": [{"filter": "mlp", "value": [SPAN, 0.5, SPAN]}, {"value": SPAN}], "density": 0.3},
        parameters={"lambda": {"search": [0.5, 1.5]}},
    )
    space = read_space(data, TIES, "c.yml")
    assert space.ranges == (
        Range("maths.weight", 0, 1, 0.5),
        Range("maths.density", 0.1, 0.9, 0.5),
        Range("code.weight.mlp[0]", 0, 1, 0.5),
        Range("code.weight.mlp[2]", 0, 1, 0.5),
        Range("code.weight.rest", 0, 1, 0.5),
        Range("lambda", 0.5, 1.5, 1.0),
    )


def test_filled_ranges_are_a_configuration():
    data = ties({"weight": SPAN}, {"weight": [SPAN, SPAN]}, parameters={"density": {"search": [0.2, 0.8]}})
    before = copy.deepcopy(data)
    space = read_space(data, TIES, "c.yml")
    values = {"maths.weight": 0.25, "code.weight[0]": 0.5, "code.weight[1]": 1, "density": 0.3}
    filled = space.filled(values)
    assert filled == ties({"weight": 0.25}, {"weight": [0.5, 1.0]}, parameters={"density": 0.3})
    assert not list(range_places(filled))
    assert data == before
    merge_config(filled, "c.yml")


def test_a_name_shares_one_number():
    one = {"search": [0, 1], "name": "w"}
    space = read_space(ties({"weight": one}, {"weight": one}), TIES, "c.yml")
    assert space.ranges == (Range("w", 0, 1, 0.5),)
    assert space.filled({"w": 0.75}) == ties({"weight": 0.75}, {"weight": 0.75})


def test_folders_of_one_name_are_told_apart():
    data = {
        "merge_method": "linear",
        "models": [{"model": f"{i}/same", "parameters": {"weight": SPAN}} for i in "ab"],
    }
    names = [one.name for one in read_space(data, Linear.parameters, "c.yml").ranges]
    assert names == ["models[0].weight", "models[1].weight"]


def test_slices_have_ranges_of_their_own():
    source = {"model": "x/a", "layer_range": [0, 2], "parameters": {"weight": SPAN}}
    data = {"merge_method": "linear", "slices": [{"sources": [source]}, {"sources": [source]}]}
    space = read_space(data, Linear.parameters, "c.yml")
    assert [one.name for one in space.ranges] == ["slices[0].a.weight", "slices[1].a.weight"]
    assert [one.start for one in space.ranges] == [1, 1]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (
            {"search": [1, 0]},
            r"models\[0\].parameters.weight: search must be .* low below high, got \[1, 0\]",
        ),
        ({"search": [1, 1]}, "low below high"),
        ({"search": [0, "a"]}, r"must be two numbers, \[low, high\], got \[0, 'a'\]"),
        ({"search": [True, False]}, "must be two numbers"),
        ({"search": [0, float("inf")]}, "must be two numbers"),
        ({"search": [0]}, "must be two numbers"),
        ({"search": 0.5}, "must be two numbers"),
        ({"search": [0, 1], "strat": 0.5}, "unknown key strat; did you mean start?"),
        ({"search": [0, 1], "start": 2}, "start must be a number from 0 to 1, got 2"),
        ({"search": [0, 1], "start": "x"}, "start must be a number"),
    ],
)
def test_ranges_of_another_form_are_refused(one, message):
    with pytest.raises(ConfigError, match=message):
        read_space(ties({"weight": one}, {}), TIES, "c.yml")


def test_one_name_with_two_ranges_is_refused():
    data = ties({"weight": {**SPAN, "name": "w"}}, {"weight": {"search": [0, 2], "name": "w"}})
    with pytest.raises(ConfigError, match=r"of the name w must be equal, one is \[0, 2\] from 0.5"):
        read_space(data, TIES, "c.yml")


def test_a_merge_refuses_ranges():
    with pytest.raises(ConfigError, match=r"c.yml: models\[1\].parameters.weight is a range, .*merge tune"):
        merge_config(ties({"weight": 1}, {"weight": SPAN}), "c.yml")


LIMITS = {"weight": (0.0, 1.0), "density": (0.05, 1.0), "t": (0.0, 1.0)}


def usual(data, parameters=TIES):
    return read_space(with_usual_ranges(data, parameters, LIMITS), parameters, "c.yml")


def test_without_ranges_every_weight_and_density_is_searched():
    space = usual(ties({}, {}))
    assert space.ranges == (
        Range("maths.weight", 0, 1, 0.5),
        Range("maths.density", 0.05, 1, 1),
        Range("code.weight", 0, 1, 0.5),
        Range("code.density", 0.05, 1, 1),
    )


def test_the_files_own_numbers_are_where_it_starts():
    data = ties({"weight": [0.2, 0.8]}, {"weight": [{"filter": "mlp", "value": 1.5}, {"value": 1}]})
    data["parameters"] = {"density": 0.4}
    space = usual(data)
    start = {
        "maths.weight[0]": 0.2,
        "maths.weight[1]": 0.8,
        "maths.density": 0.4,
        "code.weight.mlp": 1.5,
        "code.weight.rest": 1,
        "code.density": 0.4,
    }
    assert space.start == start
    assert next(one for one in space.ranges if one.name == "code.weight.mlp").high == 1.5
    own = ties(
        {"weight": [0.2, 0.8], "density": 0.4},
        {"weight": [{"filter": "mlp", "value": 1.5}, {"value": 1}], "density": 0.4},
        parameters={"density": 0.4},
    )
    assert space.filled(start) == own


def test_a_base_among_the_models_has_no_weight():
    data = ties({"weight": 0.3}, {"weight": 0.6})
    data["models"].insert(0, {"model": "x/base"})
    assert list(usual(data).start) == ["maths.weight", "maths.density", "code.weight", "code.density"]
    data["models"][1]["parameters"] = {}
    assert usual(data).start["maths.weight"] == 0.5


def test_a_number_of_the_whole_merge_has_one_range():
    from petkit.merging.methods.slerp import Slerp

    data = {"merge_method": "slerp", "base_model": "b", "models": [{"model": "b"}, {"model": "m"}]}
    assert usual(data, Slerp.parameters).ranges == (Range("t", 0, 1, 0.5),)
    data["parameters"] = {"t": [{"filter": "attn", "value": [0, 0.5]}, {"value": 0.3}]}
    assert usual(data, Slerp.parameters).start == {"t.attn[0]": 0, "t.attn[1]": 0.5, "t.rest": 0.3}


def test_numbers_in_a_setting():
    assert numbers_in([{"filter": "a", "value": [1, 2]}, {"value": 0.5}]) == [1, 2, 0.5]
    assert numbers_in(None) == numbers_in(True) == []
