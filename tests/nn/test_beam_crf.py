from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.nn import BeamCRF
from tests.reference import beam as reference
from tests.reference.crf import logsumexp

MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]])


def made(vocab=6, rank=3, beam=6, dynamic=False, seed=0):
    """A module whose transitions matter, emissions, targets and hidden states."""
    torch.manual_seed(seed)
    crf = BeamCRF(vocab, rank, beam, dynamic, 5 if dynamic else None)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    hidden = torch.randn(3, 4, 5) if dynamic else None
    return crf, torch.randn(3, 4, vocab), torch.randint(vocab, (3, 4)), hidden


def factors_of(crf, hidden, row):
    """The factors of one row as the reference wants them; the network's matrices step by step."""
    left, right = crf.left.detach().double().numpy(), crf.right.detach().double().numpy()
    if hidden is None:
        return left, right, None
    at = MASK[row].nonzero()[:, 0].tolist()
    pairs = [torch.cat([hidden[row, a], hidden[row, b]]) for a, b in itertools.pairwise(at)]
    matrices = [crf.dynamic(pair).view(crf.rank, crf.rank).detach().double().numpy() for pair in pairs]
    return left, right, np.array(matrices).reshape(-1, crf.rank, crf.rank)


@pytest.mark.parametrize("dynamic", [False, True])
def test_likelihood_and_path_by_enumeration(dynamic):
    crf, emissions, targets, hidden = made(dynamic=dynamic)
    found = crf(emissions, targets, MASK, hidden, reduction="none").detach()
    paths, scores = crf.decode(emissions, MASK, hidden)
    log_z = crf.log_partition(emissions, MASK, hidden).detach()
    for row, valid in enumerate(MASK.bool()):
        exact, factors = emissions[row, valid].double().numpy(), factors_of(crf, hidden, row)
        every = reference.all_scores(exact, *factors)
        gold = reference.score(targets[row, valid].numpy(), exact, *factors)
        assert float(log_z[row]) == pytest.approx(float(logsumexp(every)), rel=1e-5)
        assert float(found[row]) == pytest.approx(gold - float(logsumexp(every)), rel=1e-4)
        assert float(scores[row]) == pytest.approx(every.max(), rel=1e-5)
        path = paths[row, valid].numpy()
        assert reference.score(path, exact, *factors) == pytest.approx(every.max(), rel=1e-5)
        assert (paths[row, ~valid] == -1).all()


def test_reductions():
    crf, emissions, targets, _ = made()
    rows = crf(emissions, targets, MASK, reduction="none")
    lengths = MASK.sum(1)
    assert torch.allclose(crf(emissions, targets, MASK), rows.sum())
    assert torch.allclose(crf(emissions, targets, MASK, reduction="mean"), rows.mean())
    assert torch.allclose(crf(emissions, targets, MASK, reduction="token_mean"), rows.sum() / lengths.sum())
    assert torch.allclose(crf(emissions, targets, MASK, reduction="length_mean"), (rows / lengths).mean())


def test_targets_outside_the_beam():
    crf, emissions, targets, _ = made(vocab=40, beam=3)
    included = crf(emissions, targets, reduction="none")
    left_out = crf(emissions, targets, reduction="none", include_targets=False)
    assert (included <= 0).all()
    # What decoding sees: the targets' score over the sum that has no place for them.
    score = left_out + crf.log_partition(emissions)
    assert torch.allclose(crf(emissions, targets, reduction="none", include_targets=False), left_out)
    everything = BeamCRF(40, 3, 40)
    everything.load_state_dict(crf.state_dict())
    exact = everything(emissions, targets, reduction="none") + everything.log_partition(emissions)
    assert torch.allclose(score, exact, atol=1e-4)


def test_the_network_starts_near_the_identity():
    torch.manual_seed(0)
    crf = BeamCRF(50, 4, dynamic=True, hidden_size=8)
    matrices = crf.matrices(torch.randn(2, 6, 8), torch.ones(2, 6, dtype=torch.bool))
    assert matrices.shape == (2, 5, 4, 4)
    assert (matrices - torch.eye(4)).abs().max().item() < 0.3
    static = BeamCRF(50, 4)
    assert (static.left @ static.right.T).abs().max().item() < 0.3


@pytest.mark.parametrize("dynamic", [False, True])
def test_every_parameter_has_a_gradient(dynamic):
    crf, emissions, targets, hidden = made(dynamic=dynamic)
    emissions.requires_grad_()
    (-crf(emissions, targets, MASK, hidden, reduction="length_mean")).backward()
    for name, parameter in crf.named_parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.any(), name
    assert not emissions.grad[~MASK.bool()].any()


@pytest.mark.parametrize("dynamic", [False, True])
def test_learning_finds_what_only_transitions_can_tell(dynamic):
    """Two sentences, alike at every position: only their pairs say which tokens belong together."""
    torch.manual_seed(0)
    crf = BeamCRF(4, 2, 4, dynamic, 3 if dynamic else None)
    emissions = torch.zeros(2, 2, 4)
    targets = torch.tensor([[0, 1], [2, 3]])
    hidden = torch.zeros(2, 2, 3) if dynamic else None
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (-crf(emissions, targets, hidden=hidden, reduction="mean")).backward()
        optimizer.step()
    paths, _ = crf.decode(emissions, hidden=hidden)
    assert paths[0].tolist() in ([0, 1], [2, 3])
    # Two of sixteen paths share the probability.
    assert crf(emissions, targets, hidden=hidden, reduction="mean").item() > np.log(0.4)


def test_autocast_gives_half_emissions_and_sums_in_float32():
    crf, emissions, targets, hidden = made(dynamic=True)
    with torch.autocast("cpu", torch.bfloat16):
        scores = torch.nn.functional.linear(emissions, torch.eye(6))
        found = crf(scores, targets, MASK, hidden, reduction="none")
    assert scores.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    wide = crf(scores.float(), targets, MASK, hidden, reduction="none")
    # The matrices of the dynamic network are rounded to bfloat16.
    assert torch.allclose(found, wide, rtol=0.03, atol=0.03)


def test_compile_and_export():
    crf, emissions, targets, hidden = made(dynamic=True)
    mask = MASK.bool()
    compiled = torch.compile(crf, backend="eager", fullgraph=True)
    assert torch.equal(compiled(emissions, targets, mask, hidden), crf(emissions, targets, mask, hidden))

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.crf = crf

        def forward(self, *parts):
            return self.crf.decode(*parts)

    # With two positions there is one transition, and axes of length 1 are special to torch.export.
    time = torch.export.Dim("time", min=3, max=64)
    shapes = {"parts": ({1: time}, {1: time}, {1: time})}
    program = torch.export.export(Decoder(), (emissions, mask, hidden), dynamic_shapes=shapes)
    longer = torch.randn(3, 9, 6), torch.ones(3, 9, dtype=torch.bool), torch.randn(3, 9, 5)
    for one, two in zip(program.module()(*longer), crf.decode(*longer), strict=True):
        assert torch.equal(one, two)


def test_state_dict_and_repr():
    crf, *_ = made(dynamic=True)
    other = BeamCRF(6, 3, 6, True, 5)
    other.load_state_dict(crf.state_dict())
    assert set(crf.state_dict()) >= {"left", "right", "dynamic.0.weight", "dynamic.2.bias"}
    assert "vocab_size=6, rank=3, beam=6" in repr(crf)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be an integer of at least 1, got 0"),
        ({"rank": 1.5}, "rank must be an integer of at least 1, got 1.5"),
        ({"beam": 0}, "beam must be an integer of at least 1, got 0"),
        ({"beam": True}, "beam must be an integer of at least 1, got True"),
        ({"dynamic": True, "hidden_size": 0}, "hidden_size must be an integer of at least 1, got 0"),
        ({"dynamic": True}, "dynamic needs hidden_size"),
        ({"hidden_size": 8}, "hidden_size has an effect with dynamic=True only, got 8"),
    ],
)
def test_refused_sizes(arguments, message):
    with pytest.raises(InputError, match=message):
        BeamCRF(**({"vocab_size": 9} | arguments))


def test_sizes_may_be_numbers_of_numpy():
    crf = BeamCRF(np.int64(9), np.int32(2), np.uint8(4), True, np.int64(5))
    assert {type(size) for size in (crf.vocab_size, crf.rank, crf.beam, crf.hidden_size)} == {int}
    emissions, hidden = torch.zeros(2, 3, 9), torch.zeros(2, 3, 5)
    assert crf(emissions, torch.zeros(2, 3, dtype=torch.int64), None, hidden).isfinite()


@pytest.mark.parametrize(
    ("shape", "refused"),
    [
        ((0, 4), ["mean", "token_mean", "length_mean"]),
        ((2, 0), ["token_mean", "length_mean"]),
    ],
)
def test_a_mean_over_nothing_is_refused(shape, refused):
    crf, emissions, targets = BeamCRF(6), torch.zeros(*shape, 6), torch.zeros(shape, dtype=torch.int64)
    for reduction in refused:
        expected = (
            f"^reduction {reduction} needs something to average, got batch {shape[0]}, time {shape[1]}:"
        )
        with pytest.raises(InputError, match=expected):
            crf(emissions, targets, reduction=reduction)
    assert crf(emissions, targets) == 0
    assert crf(emissions, targets, reduction="none").tolist() == [0] * shape[0]


@pytest.mark.parametrize("name", ["emissions", "targets", "mask", "hidden"])
def test_lists_are_no_tensors(name):
    crf, emissions, targets, hidden = made(dynamic=True)
    given = {"emissions": emissions, "targets": targets, "mask": MASK, "hidden": hidden}
    given[name] = given[name].tolist()
    message = rf"^{name} must be a tensor, got list; use torch\.tensor$"
    with pytest.raises(InputError, match=message):
        crf(**given)
    del given["targets"]
    for method in (crf.decode, crf.log_partition) if name != "targets" else ():
        with pytest.raises(InputError, match=message):
            method(**given)


def test_matrices_want_tensors_too():
    crf, _, _, hidden = made(dynamic=True)
    for arguments in ((hidden, MASK.tolist()), (hidden.tolist(), MASK)):
        with pytest.raises(InputError, match="must be a tensor, got list"):
            crf.matrices(*arguments)


def test_a_forbidden_target_is_named():
    crf, emissions, targets, _ = made()
    emissions[1, 2, targets[1, 2]] = -torch.inf
    assert crf(emissions, targets, reduction="none").isneginf().tolist() == [False, True, False]
    with pytest.raises(
        InputError, match=f"the target {targets[1, 2]} of batch 1, time 2 has an emission of -inf"
    ):
        crf(emissions, targets)
    # What is masked does not count.
    assert crf(emissions, targets, torch.tensor([[1, 1, 0, 1]] * 3)).isfinite()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_modules_of_other_dtypes_take_any_states(dtype):
    crf, emissions, targets, hidden = made(dynamic=True)
    wide = crf(emissions, targets, MASK, hidden, reduction="none")
    found = crf.to(dtype)(emissions, targets, MASK, hidden, reduction="none")
    assert torch.allclose(found.float(), wide, rtol=0.05, atol=0.05)


def test_refused_calls():
    crf, emissions, targets, _ = made()
    with pytest.raises(InputError, match=r"emissions must be \(batch, time, 6\), got \(3, 4, 5\)"):
        crf(emissions[:, :, :5], targets)
    with pytest.raises(InputError, match="mask must be bool or integer, got"):
        crf(emissions, targets, MASK.float())
    with pytest.raises(InputError, match=r"mask must be bool or integer, got torch\.complex64"):
        crf(emissions, targets, MASK.to(torch.complex64))
    for wrong in (MASK[0], MASK[:, :2], MASK[:, :, None]):
        with pytest.raises(InputError, match=r"mask must be \(3, 4\) like emissions, got \("):
            crf.decode(emissions, wrong)
    with pytest.raises(InputError, match="reduction must be one of none, sum, mean"):
        crf(emissions, targets, reduction="average")
    with pytest.raises(InputError, match="targets must lie between 0 and 5, got 6 at batch 1, time 0"):
        crf(emissions, targets.index_put((torch.tensor(1), torch.tensor(0)), torch.tensor(6)))
    with pytest.raises(InputError, match="hidden has an effect with dynamic=True only"):
        crf.decode(emissions, hidden=torch.zeros(3, 4, 5))
    dynamic, *_ = made(dynamic=True)
    with pytest.raises(InputError, match="dynamic=True needs hidden"):
        dynamic.decode(emissions)
    with pytest.raises(InputError, match=r"hidden must be \(3, 4, 5\), got \(3, 4, 6\)"):
        dynamic.decode(emissions, hidden=torch.zeros(3, 4, 6))
    states = torch.zeros(3, 4, 5, requires_grad=True).clone()
    states[1, 2, 3] = torch.nan
    with pytest.raises(InputError, match="hidden must be finite, got nan at batch 1, time 2"):
        dynamic.decode(emissions, hidden=states)
    # Positions that are not set are skipped wherever they are, and whatever they hold.
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2] = False
    paths, scores = dynamic.decode(emissions, mask, states)
    again, same = dynamic.decode(emissions, mask, states.nan_to_num(7.0))
    assert torch.equal(paths, again)
    assert torch.equal(scores, same)


@given(st.integers(1, 4), st.integers(3, 20), st.integers(0, 5))
def test_likelihoods_of_all_sentences_sum_to_one(time, beam, seed):
    torch.manual_seed(seed)
    crf = BeamCRF(3, 2, beam)
    emissions = torch.randn(1, time, 3)
    sentences = torch.tensor(list(itertools.product(range(3), repeat=time)))
    found = crf(emissions.expand(len(sentences), -1, -1), sentences, reduction="none", include_targets=False)
    assert found.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
