import math

import numpy as np
import pytest
import torch
from scipy import special

from petkit.errors import InputError
from petkit.quantization.errors import matrix_error, output_error
from tests.reference import least_squares as reference


def test_matrix_errors_agree_with_their_definitions():
    generator = torch.Generator().manual_seed(0)
    weight, approximation = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    inputs = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    got = matrix_error("m", weight, approximation, inputs.T @ inputs)
    w, a = weight.double().numpy(), approximation.double().numpy()
    relative = np.linalg.norm(w - a) / np.linalg.norm(w)
    assert got.relative_error == pytest.approx(relative)
    assert got.cosine == pytest.approx((w * a).sum() / np.linalg.norm(w) / np.linalg.norm(a))
    assert got.sqnr == pytest.approx(-20 * math.log10(relative))
    assert got.output_error == pytest.approx(reference.output_error(w, a, inputs))


def test_zeros_that_stay_zeros_lose_nothing():
    got = matrix_error("m", torch.zeros(2, 2), torch.zeros(2, 2))
    assert (got.relative_error, got.cosine, got.sqnr, got.output_error) == (0.0, 1.0, math.inf, None)


def test_zeros_that_become_something_are_infinitely_wrong():
    got = matrix_error("m", torch.zeros(2, 2), torch.ones(2, 2))
    assert (got.relative_error, got.cosine, got.sqnr) == (math.inf, 0.0, -math.inf)


def test_output_errors_agree_with_scipy():
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(30, 5, generator=generator), torch.randn(30, 5, generator=generator)
    got = output_error(first, second)
    p, q = special.softmax(first.double().numpy(), -1), special.softmax(second.double().numpy(), -1)
    assert got.kl == pytest.approx(special.rel_entr(p, q).sum(-1).mean())
    assert got.top1_agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean())
    assert got.count == 30


def test_impossible_classes_do_not_make_the_divergence_undefined():
    logits = torch.tensor([[0.0, -math.inf, 1.0]])
    assert output_error(logits, logits).kl == 0.0


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((0, 3), (0, 3))])
def test_logits_that_cannot_be_compared_are_refused(shapes):
    with pytest.raises(InputError, match="one shape with at least one prediction"):
        output_error(torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_matrices_of_other_shapes_are_refused():
    with pytest.raises(InputError, match=r"m: quantised matrix must be \(2, 2\), got \(2, 3\)"):
        matrix_error("m", torch.zeros(2, 2), torch.zeros(2, 3))
