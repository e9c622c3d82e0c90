from __future__ import annotations

import numpy as np
import pytest
import torch

from petkit.ops import beam_crf_viterbi
from tests.cuda_emulator.beam_support import SHAPES, any_layout, full_mask, run
from tests.ops.beam_crf_cases import inputs, rows
from tests.ops.crf_cases import DTYPES, close
from tests.reference import beam as reference


def best(cuda_beam, arguments, **options):
    return (torch.from_numpy(part) for part in run(cuda_beam, "beam_crf_viterbi", arguments, **options))


def check(cuda_beam, arguments, **options):
    dtype = arguments.emissions.dtype
    paths, scores = best(cuda_beam, arguments, **options)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for b, (emissions, _, factors) in enumerate(rows(arguments)):
        valid = arguments.mask[b]
        chosen = reference.candidates(emissions, arguments.beam)
        close(scores[b], reference.recursed(emissions, chosen, *factors)[1], dtype, scale=2)
        assert (paths[b][~valid] == -1).all()
        # The path has the score that is claimed for it.
        close(scores[b], reference.score(paths[b][valid].numpy(), emissions, *factors), dtype, scale=2)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_finds_the_best_path_through_the_candidates(cuda_beam, shape, dtype, dynamic):
    check(cuda_beam, inputs(*shape, dtype, dynamic=dynamic))


# One step at a time, and two of the five.
@pytest.mark.parametrize("budget", [1, 3 * 8 * (8 + 4) * 4 * 2])
def test_segments(cuda_beam, budget):
    arguments = inputs(3, 5, 40, 4, 8)
    expected = list(best(cuda_beam, arguments))
    check(cuda_beam, arguments, budget=budget)
    for one, two in zip(best(cuda_beam, arguments, budget=budget), expected, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["rising", "falling", "equal"])
def test_candidates_when_every_tile_brings_new_ones(cuda_beam, kind, dtype):
    # Without transitions the best path is made of the best candidates, and of equal ones the first.
    columns = torch.arange(3000.0, dtype=dtype)
    row = {"rising": columns, "falling": -columns, "equal": columns * 0}[kind]
    arguments = full_mask(inputs(1, 2, 3000, 1, 300, dtype, dynamic=False))
    paths, scores = best(
        cuda_beam, arguments._replace(emissions=row.expand(1, 2, -1), left=arguments.left * 0)
    )
    assert paths.tolist() == [[2999, 2999] if kind == "rising" else [0, 0]]
    assert scores.tolist() == [5998 if kind == "rising" else 0]


def test_more_candidates_than_one_pass_finds(cuda_beam):
    check(cuda_beam, inputs(1, 2, 1300, 2, 1100))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_decode(cuda_beam, shape):
    paths, scores = best(cuda_beam, inputs(*shape, 6, 2, 4))
    assert paths.shape == shape
    assert scores.tolist() == [0.0] * shape[0]


def test_rows_with_few_positions(cuda_beam):
    arguments = inputs(3, 5, 30, 4, 7)
    arguments.mask[1] = False
    arguments.mask[2] = torch.tensor([0, 0, 1, 0, 1]).bool()
    arguments.emissions[~arguments.mask] = torch.nan
    paths, scores = best(cuda_beam, arguments)
    assert (paths[1] == -1).all()
    assert scores[1] == 0
    for b, (emissions, _, factors) in enumerate(rows(arguments)):
        if b != 1:
            chosen = reference.candidates(emissions, 7)
            close(scores[b], reference.recursed(emissions, chosen, *factors)[1], torch.float32, scale=2)


def test_impossible_entries(cuda_beam):
    arguments = inputs(2, 4, 30, 3, 16)
    arguments.emissions[:, :, 5:] = -torch.inf
    check(cuda_beam, arguments)


def test_a_row_without_a_path(cuda_beam):
    arguments = full_mask(inputs(2, 4, 9, 3, 5))
    arguments.emissions[1, 2] = -torch.inf
    paths, scores = best(cuda_beam, arguments)
    assert ((paths >= 0) & (paths < 9)).all()
    assert scores[1] == -torch.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 1500])
def test_what_is_no_number_spoils_its_row_and_no_other(cuda_beam, place, bad, dtype):
    arguments = full_mask(inputs(2, 3, 2000, 2, 4, dtype))
    _, expected = best(cuda_beam, arguments)
    arguments.emissions[1, 2, place] = bad
    paths, scores = best(cuda_beam, arguments)
    assert torch.isnan(scores[1])
    assert scores[0] == expected[0]
    assert ((paths >= 0) & (paths < 2000)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_operator(call, dtype):
    arguments = inputs(3, 5, 20, 3, 6, dtype)
    expected = beam_crf_viterbi(*arguments[:-1])
    for given in (arguments, any_layout(arguments)):
        emissions, mask, left, right, beam, dynamic, _ = given
        paths, scores = call("beam_crf_viterbi", emissions, mask, left, right, dynamic, beam)
        assert torch.equal(paths, expected[0])
        np.testing.assert_allclose(scores.numpy(), expected[1].numpy(), rtol=2e-6)
    none = arguments.left.new_empty(0)
    paths, _ = call("beam_crf_viterbi", *arguments[:4], none, 1000)
    assert torch.equal(paths, beam_crf_viterbi(*arguments[:4], 1000)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emissions": torch.zeros(3, 9)}, r"emissions must have 3 dimensions, got shape \(3, 9\)"),
        ({"mask": torch.ones(2, 2).bool()}, r"mask must have shape \(2, 3\), got \(2, 2\)"),
        ({"left": torch.zeros(8, 2)}, r"left must have shape \(9, 2\), got \(8, 2\)"),
        ({"right": torch.zeros(9, 3)}, r"right must have shape \(9, 2\), got \(9, 3\)"),
        ({"right": torch.zeros(9, 2).double()}, "right must be float32"),
        ({"dynamic": torch.zeros(2, 3, 2, 2)}, r"dynamic must have shape \(2, 2, 2, 2\)"),
        ({"beam": 0}, "beam must lie between 1 and 65536, got 0"),
    ],
)
def test_the_operator_refuses(call, change, message):
    given = {
        "emissions": torch.zeros(2, 3, 9),
        "mask": torch.ones(2, 3).bool(),
        "left": torch.zeros(9, 2),
        "right": torch.zeros(9, 2),
        "dynamic": torch.zeros(2, 2, 2, 2),
        "beam": 4,
    }
    with pytest.raises(RuntimeError, match=message):
        call("beam_crf_viterbi", *(given | change).values())
