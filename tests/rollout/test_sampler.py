import pytest
import torch

from petkit.errors import InputError
from petkit.models.config import ModelConfig
from petkit.models.loading import load_model
from petkit.ops import token_statistics
from petkit.rollout.sampler import end_tokens, generate
from petkit.rollout.stops import Stops
from tests.serving.text_models import save_llama

PROMPTS = [[4, 5, 6, 7, 8], [9], [10, 11, 4], [5, 5]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_llama(tmp_path_factory.mktemp("llama"))
    return load_model(ModelConfig(name=str(folder)), "causal_lm").model.eval()


def by_hand(model, prompt, count):
    """Greedy decoding one token at a time, without a cache."""
    ids, entropies = list(prompt), []
    with torch.no_grad():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            entropies.append(token_statistics(logits[None]).entropy.item())
            ids.append(int(logits.argmax()))
            if ids[-1] in end_tokens(model):
                break
    return ids[len(prompt) :], entropies


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_write_what_one_prompt_alone_gives(model, batch_size):
    done = []
    found = generate(model, PROMPTS, 12, padding=0, batch_size=batch_size, advance=done.append)
    assert sum(done) == len(PROMPTS)
    for written, prompt in zip(found, PROMPTS, strict=True):
        ids, entropies = by_hand(model, prompt, 12)
        assert list(written.tokens) == [token for token in ids if token not in end_tokens(model)]
        assert written.trajectory.entropy == pytest.approx(entropies, abs=1e-4)
        assert written.cost == len(ids)
        assert written.finished == (ids[-1] in end_tokens(model))


def test_a_token_that_ends_the_text_is_counted_but_not_kept(model):
    first = by_hand(model, PROMPTS[0], 3)[0]
    settings = model.generation_config
    before = settings.eos_token_id
    settings.eos_token_id = [3, first[0]]
    try:
        (written,) = generate(model, PROMPTS[:1], 5, padding=0)
    finally:
        settings.eos_token_id = before
    assert (written.tokens, written.finished, written.cost) == ((), True, 1)
    assert len(written.trajectory) == 1


def test_without_a_record(model):
    assert all(not len(one.trajectory) for one in generate(model, PROMPTS, 3, padding=0, tracked=False))
    assert generate(model, [], 3, padding=0) == []


def test_an_empty_prompt(model):
    with pytest.raises(InputError, match="at least one token"):
        generate(model, [[4], []], 3, padding=0)


def test_nan_logits_are_named(model):
    from petkit.errors import PetkitError

    broken = load_model(ModelConfig(name=model.config._name_or_path), "causal_lm").model.eval()
    with torch.no_grad():
        broken.lm_head.weight[:] = torch.nan
    with pytest.raises(PetkitError, match="the logits of row 0 must be finite"):
        generate(broken, PROMPTS, 3, padding=0)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_stops_end_each_row_by_itself(model, batch_size):
    whole = generate(model, PROMPTS, 12, padding=0)
    # A stop of five tokens; of two answers a part is written already.
    stops, answered = Stops(("aaaaa",), lambda tokens: "a" * len(tokens)), [3, 0, 1, 0]
    found = generate(model, PROMPTS, 12, padding=0, batch_size=batch_size, stops=stops, answered=answered)
    # The third ends by itself, with its third token.
    assert (found[2].stopped, found[2].cost, found[2].tokens) == (False, 3, whole[2].tokens)
    for row, expected in ((0, 2), (1, 5), (3, 5)):
        written, before = found[row], whole[row]
        assert written.tokens == before.tokens[:expected]
        assert written.trajectory.entropy == pytest.approx(before.trajectory.entropy[:expected], abs=1e-4)
        assert (written.finished, written.stopped, written.cost) == (True, True, expected)


def test_a_stop_that_never_comes_changes_nothing(model):
    stops = Stops(("b",), lambda tokens: "a" * len(tokens))
    assert generate(model, PROMPTS, 6, padding=0, stops=stops) == generate(model, PROMPTS, 6, padding=0)
