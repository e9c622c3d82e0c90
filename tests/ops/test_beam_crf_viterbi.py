from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.ops import beam_crf_log_partition, beam_crf_viterbi
from tests.ops.beam_crf_cases import SHAPES, inputs, rows
from tests.ops.crf_cases import DTYPES, close
from tests.reference import beam as reference


def check(arguments, dtype, best):
    paths, scores = beam_crf_viterbi(*arguments[:-1])
    assert paths.dtype == torch.int64
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for b, (emissions, _, factors) in enumerate(rows(arguments)):
        valid = arguments.mask[b]
        close(scores[b], best(emissions, factors), dtype, scale=2)
        assert (paths[b][~valid] == -1).all()
        # The path has the score that is claimed for it.
        close(scores[b], reference.score(paths[b][valid].numpy(), emissions, *factors), dtype, scale=2)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_finds_the_best_path_through_the_candidates(kernels, shape, dtype, dynamic):
    arguments = inputs(*shape, dtype, dynamic=dynamic)

    def best(emissions, factors):
        chosen = reference.candidates(emissions, arguments.beam)
        return reference.recursed(emissions, chosen, *factors)[1]

    check(arguments, dtype, best)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_beam_of_the_whole_vocabulary_finds_the_best_of_all(kernels, dynamic):
    arguments = inputs(3, 4, 5, 2, 500, dynamic=dynamic)
    check(
        arguments, torch.float32, lambda emissions, factors: reference.all_scores(emissions, *factors).max()
    )


def test_more_candidates_than_a_byte_counts(kernels):
    arguments = inputs(2, 3, 600, 4, 500)

    def best(emissions, factors):
        return reference.recursed(emissions, reference.candidates(emissions, 500), *factors)[1]

    check(arguments, torch.float32, best)


def test_without_transitions_each_position_takes_its_best(kernels):
    arguments = inputs(3, 6, 50, 3, 8)
    left = torch.zeros_like(arguments.left)
    paths, _ = beam_crf_viterbi(arguments.emissions, arguments.mask, left, arguments.right, 8)
    assert torch.equal(paths, arguments.emissions.argmax(-1).masked_fill(~arguments.mask, -1))


def test_transitions_forbid_a_repetition(kernels):
    """What the transitions are for: equal neighbours, the commonest error of a model without them."""
    emissions = torch.tensor([[[3.0, 2.9, 0.0], [3.0, 2.9, 0.0], [0.0, 0.0, 1.0]]])
    mask = torch.ones(1, 3, dtype=torch.bool)
    paths, scores = beam_crf_viterbi(emissions, mask, -5 * torch.eye(3), torch.eye(3), 3)
    assert paths.tolist() in ([[0, 1, 2]], [[1, 0, 2]])
    assert float(scores) == pytest.approx(6.9)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_decode(kernels, shape):
    paths, scores = beam_crf_viterbi(*inputs(*shape, 6, 2, 4)[:-1])
    assert paths.shape == shape
    assert scores.tolist() == [0.0] * shape[0]


def test_any_layout_and_masked_values(kernels):
    arguments = inputs(4, 6, 30, 3, 7)
    expected = beam_crf_viterbi(*arguments[:-1])
    emissions = arguments.emissions.masked_fill(~arguments.mask[:, :, None], torch.nan)
    emissions = emissions.transpose(0, 1).contiguous().transpose(0, 1)
    for one, two in zip(beam_crf_viterbi(emissions, *arguments[1:-1]), expected, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dynamic", [False, True])
def test_opcheck_and_compile(kernels, dynamic):
    arguments = inputs(3, 5, 9, 2, 4, dynamic=dynamic)
    matrices = arguments.dynamic if dynamic else torch.empty(0)
    call = (*arguments[:4], matrices, 4)
    torch.library.opcheck(torch.ops.petkit.beam_crf_viterbi.default, call)
    compiled = torch.compile(beam_crf_viterbi, backend="eager", fullgraph=True)
    for one, two in zip(compiled(*arguments[:-1]), beam_crf_viterbi(*arguments[:-1]), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_emissions_that_are_not_numbers_are_named(kernels, bad):
    arguments = inputs(3, 3, 50, 2, 4)
    arguments.mask[:] = True
    arguments.emissions[2, 1, 33] = bad
    with pytest.raises(InputError, match=f"finite or -inf, got {bad} at batch 2, time 1"):
        beam_crf_viterbi(*arguments[:-1])


def test_a_row_without_a_path_is_named(kernels):
    arguments = inputs(3, 3, 9, 2, 4)
    arguments.emissions[1, 0] = -torch.inf
    with pytest.raises(InputError, match="no path is possible at batch 1"):
        beam_crf_viterbi(*arguments[:-1])


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 30), st.integers(1, 5)),
    st.integers(1, 30),
    st.integers(0, 10),
)
def test_the_best_path_is_one_of_those_summed(shape, beam, seed):
    arguments = inputs(*shape, beam, seed=seed)
    _, scores = beam_crf_viterbi(*arguments[:-1])
    log_z = beam_crf_log_partition(*arguments[:-1])
    count = arguments.mask.sum(1).numpy() * np.log(min(beam, shape[2]))
    assert (scores <= log_z + 1e-4).all()
    assert (log_z.numpy() <= scores.numpy() + count + 1e-4).all()
