"""Whole models: the definition's numbers, whatever the pieces, threads and order."""

from dataclasses import replace

import pytest
import torch

from petkit.errors import ConfigError, InputError
from petkit.merging.analysis.footprint import CHUNK
from petkit.merging.analysis.streamed import Settings, analyze_state_dicts, measure
from petkit.merging.sources import StateDict
from tests.reference import shifts as reference
from tests.threads import threads

SHAPES = {
    "model.embed_tokens.weight": (40, 6),
    "model.layers.0.self_attn.q_proj.weight": (CHUNK // 64 + 3, 64),
    "model.layers.0.mlp.up_proj.weight": (300, 7),
    "model.layers.1.self_attn.q_proj.weight": (1, 1),
    "model.layers.1.mlp.up_proj.weight": (2 * CHUNK + 5,),
    "model.norm.weight": (0,),
}
COUNTER = {"model.steps": torch.tensor(3)}


def models(count=3, dtype=torch.float32):
    source = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=source).to(dtype) for name, shape in SHAPES.items()}
    found = {}
    for place in range(count):
        density = 0.3 + 0.2 * place
        found[f"m{place}"] = COUNTER | {
            name: (
                one.float()
                + (torch.rand(one.shape, generator=source) < density)
                * torch.randn(one.shape, generator=source)
            ).to(dtype)
            for name, one in base.items()
        }
    return found, COUNTER | base


def flat(tensors, part=""):
    chosen = [one for name, one in tensors.items() if name != "model.steps" and part in name]
    return torch.cat([one.reshape(-1).double() for one in chosen]).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_measure_is_the_definitions(dtype):
    own, base = models(dtype=dtype)
    found = analyze_state_dicts(own, base)
    groups = [
        (found["whole"], ""),
        (found["layers"]["0"], "layers.0."),
        (found["layers"]["1"], "layers.1."),
        (found["kinds"]["attention"], "attn"),
        (found["kinds"]["mlp"], "mlp"),
        (found["layers"]["outside"], "embed"),
        (found["kinds"]["embedding"], "embed"),
    ]
    for group, part in groups:
        origin = flat(base, part)
        assert group["parameters"] == len(origin)
        for one in group["models"]:
            weights = flat(own[one["model"]], part)
            wanted = reference.footprint(weights, origin, 1e-3).mean()
            assert one["footprint"] == pytest.approx(wanted, abs=2 / len(origin))
            length = ((weights - origin) ** 2).sum() ** 0.5
            assert one["norm"] == pytest.approx(length, rel=1e-6)
            assert one["relative_norm"] == pytest.approx(length / (origin**2).sum() ** 0.5, rel=1e-6)
        for pair in group["pairs"]:
            wanted = reference.pair(*(flat(own[name], part) for name in pair["models"]), origin, 1e-3)
            for name, value in wanted.items():
                # A weight at the threshold may fall on its other side in float32.
                assert pair[name] == pytest.approx(value, abs=1e-6 + 2 / len(origin)), name
            assert pair["jaccard_excess"] == pair["jaccard"] - pair["jaccard_random"]
    assert found["left_out"] == ["model.steps"]
    assert found["tensors"] == len(SHAPES)
    assert list(found["layers"]) == ["0", "1", "outside"]
    assert found["kinds"]["norm"]["models"][0]["footprint"] is None


def test_the_projection_is_near_the_cosine_on_the_overlap():
    found = analyze_state_dicts(*models())
    for pair in found["whole"]["pairs"]:
        assert pair["cosine_projected"] == pytest.approx(pair["cosine_overlap"], abs=4 / 16)
        assert pair["cosine_projected"] != pair["cosine_overlap"]
    assert found["projection"] == {"dimensions": 256, "seed": 0, "standard_deviation": 1 / 16}


def test_a_model_with_itself():
    own, base = models(2)
    found = analyze_state_dicts({"a": own["m0"], "b": own["m0"]}, base)["whole"]["pairs"][0]
    same = ("cosine", "cosine_overlap", "cosine_projected", "jaccard")
    assert [found[name] for name in same] == pytest.approx([1.0] * 4, abs=1e-12)
    assert found["sign_conflict"] == 0
    opposite = {name: 2 * base[name] - one for name, one in own["m0"].items()}
    found = analyze_state_dicts({"a": own["m0"], "b": opposite}, base, eta=0.0)["whole"]["pairs"][0]
    assert found["cosine"] == pytest.approx(-1, abs=1e-9)
    assert found["sign_conflict"] == 1


def test_results_are_symmetric():
    own, base = models(2)
    first = analyze_state_dicts(own, base)["whole"]["pairs"][0]
    second = analyze_state_dicts(dict(reversed(own.items())), base)["whole"]["pairs"][0]
    assert first == {**second, "models": first["models"]}


def sums(own, base, settings):
    return measure({name: StateDict(name, one) for name, one in own.items()}, StateDict("b", base), settings)


def test_pieces_threads_and_order_change_no_bit():
    own, base = models()
    wanted = sums(own, base, Settings())
    backwards = {name: dict(reversed(one.items())) for name, one in own.items()}
    with threads(2):
        others = [
            sums(own, base, Settings(piece=CHUNK)),
            sums(own, base, Settings(piece=64 * CHUNK)),
            sums(backwards, dict(reversed(base.items())), Settings()),
        ]
    with threads(1):
        others.append(sums(own, base, Settings()))
    for other in others:
        assert torch.equal(other.projected, wanted.projected)
        assert other.report() == wanted.report()


def test_seeds_change_the_projection_alone():
    own, base = models(2)
    first, second = (sums(own, base, Settings(seed=seed)).report()["whole"] for seed in (0, 1))
    pairs = first["pairs"][0], second["pairs"][0]
    assert pairs[0].pop("cosine_projected") != pairs[1].pop("cosine_projected")
    assert first == second


def test_a_model_that_changed_nothing_has_no_direction():
    own, base = models(1)
    found = analyze_state_dicts({"a": own["m0"], "same": base}, base)["whole"]
    assert found["models"][1]["footprint"] == 0
    pair = found["pairs"][0]
    assert (pair["jaccard"], pair["sign_conflict"], pair["cosine"]) == (0.0, None, None)
    assert (pair["cosine_overlap"], pair["cosine_projected"]) == (None, None)


def test_all_bytes_are_told():
    own, base = models()
    told = []
    measure(
        {name: StateDict(name, one) for name, one in own.items()},
        StateDict("b", base),
        Settings(),
        told.append,
    )
    assert sum(told) == 4 * 4 * len(flat(base))


def faulty(change):
    own, base = models(2)
    change(own["m1"])
    return own, base


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one["model.layers.0.mlp.up_proj.weight"].view(-1)[5].fill_(torch.nan),
         "m1 must hold finite numbers, model.layers.0.mlp.up_proj.weight holds nan or inf"),
        (lambda one: one.update({"model.embed_tokens.weight": torch.zeros(41, 6)}),
         r"model.embed_tokens.weight must have one shape in all models, it is \(40, 6\) in base and "
         r"\(41, 6\) in m1"),
        (lambda one: one.pop("model.norm.weight"),
         "base and m1 must have the same tensors: m1 lacks model.norm.weight"),
    ],
)  # fmt: skip
def test_models_that_do_not_fit(change, message):
    with pytest.raises(InputError, match=message):
        analyze_state_dicts(*faulty(change))


def test_settings_out_of_range():
    own, base = models(2)
    with pytest.raises(ConfigError, match=r"at least two are needed beside the base, got 1 \(m0\)"):
        analyze_state_dicts({"m0": own["m0"]}, base)
    with pytest.raises(ConfigError, match="eta must be"):
        analyze_state_dicts(own, base, eta=1.0)
    with pytest.raises(ConfigError, match="piece must be a multiple of 65536, got 1000"):
        sums(own, base, replace(Settings(), piece=1000))
