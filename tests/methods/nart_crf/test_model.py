"""What is computed: the paper's loss by enumeration, not by padding, with an effect of every setting."""

import itertools

import numpy as np
import pytest
import torch

from petkit.configuration.sections import leaves
from petkit.methods.nart_crf.config import TranslatorConfig
from petkit.methods.nart_crf.decoding import Translator
from petkit.methods.nart_crf.model import Nart, Teacher, new_model, training_step
from petkit.methods.nart_crf.stored import assemble
from petkit.models.translation import LENGTH_OFFSET
from tests.methods.nart_crf import tiny

STUDENTS = ("nart", "nart-crf", "nart-dcrf")
KINDS = ("autoregressive", *STUDENTS)
PLACES = {"positional_attention": True, "decoder_input": "copy"}
# Float32 sums of some dozen terms against float64 ones.
CLOSE = 1e-5


def small(kind, **changes):
    """A model of seven tokens whose factors and matrices are far from their start."""
    # Without tokens to spare, so that the sum over the candidates is the sum over all.
    extra = {"crf__beam": 9} if "crf" in kind else {}
    torch.manual_seed(1)
    model = new_model(tiny.recipe(model__kind=kind, **extra, **changes), tiny.SevenTokens()).eval()
    if getattr(model, "crf", None) is not None:
        for parameter in model.crf.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return model


def pairs(*lengths):
    """A batch of random sentences by their lengths in source and target."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, own in zip(("source", "target"), zip(*lengths, strict=True), strict=True):
        mask = torch.arange(max(own)) < torch.tensor(own)[:, None]
        ids = torch.randint(4, 7, mask.shape, generator=generator)
        found |= {name: ids.masked_fill(~mask, 0), f"{name}_mask": mask}
    return found


def log_softmax(scores):
    return scores - np.log(np.exp(scores).sum(-1, keepdims=True))


@torch.no_grad()
def log_likelihood(model, emissions, hidden, targets):
    """log p(y | x) of one sentence under the CRF, from the scores of all sentences of its length."""
    left, right = (getattr(model.crf, name).double().numpy() for name in ("left", "right"))
    steps = [left @ right.T] * (len(targets) - 1)
    if model.crf.dynamic is not None:
        first, second = ([p.double().numpy() for p in model.crf.dynamic[at].parameters()] for at in (0, 2))
        for at in range(1, len(targets)):
            both = np.concatenate([hidden[at - 1], hidden[at]])
            flat = second[0] @ np.maximum(first[0] @ both + first[1], 0) + second[1]
            steps[at - 1] = left @ flat.reshape(4, 4) @ right.T

    def score(tokens):
        total = sum(emissions[at, token] for at, token in enumerate(tokens))
        return total + sum(steps[at][pair] for at, pair in enumerate(itertools.pairwise(tokens)))

    every = np.array([score(tokens) for tokens in itertools.product(range(7), repeat=len(targets))])
    return score(targets) - every.max() - np.log(np.exp(every - every.max()).sum())


@torch.no_grad()
def by_hand(model, batch):
    """L_CRF / T + lambda L_NAR / T + factor L_length of each sentence, in float64."""
    loss, found = model.config.loss, []
    memory = model.body.encode(batch["source"], batch["source_mask"])
    states = model.body.decode(memory, batch["source"], batch["source_mask"], batch["target_mask"])
    for row, mask in enumerate(batch["target_mask"]):
        time, targets = int(mask.sum()), batch["target"][row][mask].tolist()
        hidden = states[row, :time].double().numpy()
        emissions = hidden @ model.body.embedding.weight.double().numpy().T
        logs = log_softmax(emissions)
        smoothing = loss.label_smoothing
        total = sum(-(1 - smoothing) * logs[at, y] for at, y in enumerate(targets)) / time
        total -= smoothing * logs.mean(1).sum() / time
        if model.crf is not None:
            total = loss.nar * total - log_likelihood(model, emissions, hidden, targets) / time
        if model.body.length is not None:
            own = memory[row][batch["source_mask"][row]].double().numpy().mean(0)
            weight, bias = (p.double().numpy() for p in model.body.length.parameters())
            difference = time - int(batch["source_mask"][row].sum())
            total -= loss.length * log_softmax(weight @ own + bias)[difference + LENGTH_OFFSET]
        found.append(float(total))
    return found


@pytest.mark.parametrize("kind", STUDENTS)
def test_the_loss_is_the_papers_by_enumeration(kind):
    model, batch = small(kind), pairs((3, 3), (5, 2), (1, 4), (2, 1))
    found = training_step(model, batch)
    assert found.count == 4
    assert (model.config.loss.nar, model.config.loss.length, model.config.loss.label_smoothing) == (
        0.5,
        0.1,
        0.1,
    )
    assert found.loss.item() == pytest.approx(sum(by_hand(model, batch)), rel=CLOSE)


@pytest.mark.parametrize("kind", ["nart-crf", "nart-dcrf"])
def test_the_factors_of_the_loss_are_the_recipes(kind):
    changes = {"loss": {"nar": 2.0, "length": 0.7, "label_smoothing": 0.0}}
    model, batch = small(kind, **changes), pairs((3, 3), (2, 2))
    assert model.step(batch).loss.item() == pytest.approx(sum(by_hand(model, batch)), rel=CLOSE)


def test_the_teachers_loss_is_that_of_each_token_given_those_before():
    model, batch = small("autoregressive"), pairs((3, 4), (5, 2))
    found, wanted, logs = model.step(batch), 0.0, []
    for row in range(2):
        source = batch["source"][row][batch["source_mask"][row]][None]
        target = batch["target"][row][batch["target_mask"][row]].tolist()
        for at, token in enumerate(target):
            before = torch.tensor([[1, *target[:at]]])
            with torch.no_grad():
                scores = model.body(input_ids=source, decoder_input_ids=before).logits[0, -1]
            logs.append(log_softmax(scores.double().numpy()))
            wanted += -0.9 * logs[-1][token] - 0.1 * logs[-1].mean()
    assert found.count == 6
    assert found.loss.item() == pytest.approx(wanted, rel=CLOSE)
    each = model.log_probabilities(batch).tolist()
    tokens = batch["target"][batch["target_mask"]].tolist()
    chosen = [log[token] for log, token in zip(logs, tokens, strict=True)]
    assert each == pytest.approx([sum(chosen[:4]), sum(chosen[4:])], rel=CLOSE)


@pytest.mark.parametrize(
    ("kind", "more"),
    [*((kind, {}) for kind in KINDS), ("nart", PLACES), ("nart-crf", PLACES), ("nart-dcrf", PLACES)],
)
def test_padding_does_not_change_a_sentences_loss(kind, more):
    model = small(kind, **{f"model__{name}": value for name, value in more.items()})
    batch = pairs((3, 2), (7, 6), (1, 4))
    alone = 0.0
    for row in range(3):
        own = {}
        for name in ("source", "target"):
            mask = batch[f"{name}_mask"][row]
            own |= {name: batch[name][row][mask][None], f"{name}_mask": mask[mask][None]}
        alone += model.step(own).loss.item()
    assert model.step(batch).loss.item() == pytest.approx(alone, rel=CLOSE)
    filled = {name: batch[name].masked_fill(~batch[f"{name}_mask"], 5) for name in ("source", "target")} | {
        name: batch[name] for name in ("source_mask", "target_mask")
    }
    if kind != "autoregressive":
        assert model.step(filled).loss.item() == pytest.approx(alone, rel=CLOSE)


@torch.no_grad()
def test_a_dynamic_crf_begins_close_to_the_one_without(subwords, batch):
    plain, dynamic = (assemble(tiny.recipe(model__kind=kind), subwords).eval() for kind in STUDENTS[1:])
    nothing = plain.step(batch).loss.item()
    for factor in (plain.crf.left, plain.crf.right):
        factor.mul_(10)
    dynamic.load_state_dict(plain.state_dict(), strict=False)
    without, near = (model.step(batch).loss.item() for model in (plain, dynamic))
    # Beside what the transitions do to the loss, the network's start does little.
    assert 0 < abs(near - without) < 0.1 * abs(nothing - without), (nothing, without, near)


def test_a_constant_offset_needs_no_predictor(subwords, batch):
    changes = {"lengths__kind": "offset", "lengths__offset": -3}
    model = assemble(tiny.recipe(model__kind="nart", **changes), subwords)
    assert not [name for name, _ in model.named_parameters() if "length" in name]
    memory = model.body.encode(batch["source"], batch["source_mask"])
    expected = model.expected_lengths(memory, batch["source_mask"])
    assert expected.tolist() == (batch["source_mask"].sum(1) - 3).tolist()


def test_a_predictor_says_the_difference(subwords, batch):
    model = assemble(tiny.recipe(model__kind="nart"), subwords)
    with torch.no_grad():
        model.body.length.bias[LENGTH_OFFSET + 5] = 100.0
        memory = model.body.encode(batch["source"], batch["source_mask"])
        expected = model.expected_lengths(memory, batch["source_mask"])
    assert expected.tolist() == (batch["source_mask"].sum(1) + 5).tolist()


EFFECTS = {
    "model.kind": "nart",
    "model.hidden": 32,
    "model.feed_forward": 48,
    "model.encoder_layers": 2,
    "model.decoder_layers": 2,
    "model.heads": 4,
    "model.dropout": 0.4,
    "model.max_positions": 17,
    "model.positional_attention": True,
    "model.decoder_input": "copy",
    "crf.rank": 5,
    "crf.beam": 17,
    "lengths.kind": "offset",
    "lengths.offset": 2,
    "loss.nar": 0.6,
    "loss.length": 0.2,
    "loss.label_smoothing": 0.2,
    "decode.candidates": 3,
    "decode.deduplicate": False,
}
# Of the teacher; and a folder, see test_decoding.py.
ELSEWHERE = {"decode.beam", "decode.rescore"}


def fingerprint(subwords, batch, **changes):
    """Weights, a loss of training, and translations of a recipe's model."""
    model = assemble(tiny.recipe(**changes), subwords)
    torch.manual_seed(0)
    loss = model.step(batch).loss.item()
    sizes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = Translator(model.eval(), subwords, model.config.decode).translate(tiny.SOURCES, 8)
    return sizes, loss, found


def test_every_setting_is_tried():
    sections = {"model", "crf", "lengths", "loss", "decode"}
    names = {".".join(path) for path, _, _ in leaves(TranslatorConfig) if path[0] in sections}
    assert names == EFFECTS.keys() | ELSEWHERE


@pytest.mark.parametrize("key", EFFECTS)
def test_every_setting_has_an_effect(subwords, batch, key):
    base = {"lengths__kind": "offset", "lengths__offset": 0} if key == "lengths.offset" else {}
    change = {key.replace(".", "__"): EFFECTS[key]}
    if key == "lengths.kind":
        change["lengths__offset"] = 0
    assert fingerprint(subwords, batch, **base) != fingerprint(subwords, batch, **base | change)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_weights(subwords, kind):
    first, second, other = (assemble(tiny.recipe(model__kind=kind, seed=n), subwords) for n in (0, 0, 1))
    assert isinstance(first, Teacher if kind == "autoregressive" else Nart)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    name = next(name for name, parameter in first.named_parameters() if parameter.dim() == 2)
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))
    state = torch.get_rng_state()
    assemble(tiny.recipe(model__kind=kind), subwords)
    assert torch.equal(torch.get_rng_state(), state)
