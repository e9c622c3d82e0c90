"""What a tagger computes: not by padding, not by company, not beyond a window."""

import itertools
import math

import pytest
import torch

from petkit.data.conll import TaggedSentence
from petkit.methods.crf_tagger.inputs import TaggedSentences, Vocabulary
from petkit.methods.crf_tagger.stored import assemble

LABELS = ("O", "B-X", "I-X")
WORDS = (("the", "cats", "sat", "on", "anna", "."), ("satting",), ("cat", "in"))


def made(config, bert=None):
    vocabulary = None if bert else Vocabulary.of(WORDS, 1, config.model.character_size > 0)
    found = assemble(config, LABELS, vocabulary)
    found.model.eval()
    return found


def dataset(found, sentences=WORDS):
    tags = itertools.cycle(LABELS)
    rows = [TaggedSentence(w, tuple(next(tags) for _ in w), "f", tuple(range(len(w)))) for w in sentences]
    return TaggedSentences(rows, LABELS, found.reader)


@pytest.fixture(params=["words", "characters", "adapter"])
def tagger(request, recipe, bert):
    if request.param == "adapter":
        return made(recipe(model={"encoder": str(bert), "tune": "adapter"}), bert)
    size = 4 if request.param == "characters" else 0
    return made(recipe(model={"word_size": 8, "hidden": 8, "character_size": size}))


def test_emissions_do_not_depend_on_company(tagger):
    data = dataset(tagger)
    items = [data[row] for row in range(len(data))]
    together = tagger.model(data.collate(items))
    for row, item in enumerate(items):
        alone = tagger.model(data.collate([item]))[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-5, atol=1e-6)


def test_a_later_window_is_read_as_a_sentence_of_its_own(recipe, bert):
    found = made(recipe(model={"encoder": str(bert)}), bert)
    long = ("the",) * 10 + ("cats", "sat")
    data = dataset(found, [long, long[:10], long[10:]])
    whole, first, second = (found.model(data.collate([data[row]]))[0] for row in range(3))
    torch.testing.assert_close(whole, torch.cat((first, second)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("constraints", ["none", "both"])
def test_the_loss_is_that_of_all_sequences(recipe, constraints):
    found = made(recipe(head__constraints=constraints))
    data = dataset(found, [("the", "cats", "sat")])
    batch = data.collate([data[0]])
    emissions, crf = found.model(batch)[0].double(), found.model.crf

    def legal(path):
        return path[0] != 2 and (0, 2) not in itertools.pairwise(path)

    @torch.no_grad()
    def score(path):
        total = crf.start_transitions[path[0]] + crf.end_transitions[path[-1]]
        total = total + sum(emissions[at, tag] for at, tag in enumerate(path))
        return float(total + sum(crf.transitions[a, b] for a, b in itertools.pairwise(path)))

    paths = [p for p in itertools.product(range(3), repeat=3) if constraints == "none" or legal(p)]
    wanted = math.log(sum(math.exp(score(path)) for path in paths)) - score((0, 1, 2))
    assert found.model.loss(batch).item() == pytest.approx(wanted, rel=1e-5)
    best = max(paths, key=score)
    assert found.model.decode(found.model(batch), batch["mask"]) == [list(best)]


def test_softmax_chooses_each_word_by_itself(recipe):
    found = made(recipe(head={"kind": "softmax"}))
    data = dataset(found)
    batch = data.collate([data[row] for row in range(3)])
    emissions = found.model(batch)
    tags = found.model.decode(emissions, batch["mask"])
    assert tags == [emissions[row, : len(words)].argmax(-1).tolist() for row, words in enumerate(WORDS)]


@pytest.mark.parametrize(
    ("tune", "trained"),
    [
        ("frozen", {"head", "crf"}),
        ("adapter", {"head", "crf", "backbone"}),
        ("full", {"head", "crf", "backbone"}),
    ],
)
def test_what_is_trained(recipe, bert, tune, trained):
    model = made(recipe(model={"encoder": str(bert), "tune": tune}), bert).model
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert {name.partition(".")[0] for name in names} == trained
    if tune == "adapter":
        assert all(".lora." in name or not name.startswith("backbone") for name in names)


def test_a_seed_gives_the_same_weights(recipe):
    first, second = made(recipe()).model, made(recipe()).model
    other = made(recipe(seed=1)).model
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.head.weight, other.head.weight)
