from __future__ import annotations

import threading

import pytest
import torch

from petkit.errors import PetkitError
from petkit.models.config import ModelConfig
from petkit.models.loading import load_model
from petkit.ops import token_statistics
from petkit.rollout.sampler import end_tokens, generate
from petkit.serving.chat.engine import Draw, Engine, Job, run_batch
from petkit.serving.chat.sampling import Sampling
from tests.serving.text_models import save_llama

PROMPTS = [[4, 5, 6, 7, 8], [9], [10, 11, 4], [5, 5]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_llama(tmp_path_factory.mktemp("llama"))
    return load_model(ModelConfig(name=str(folder)), "causal_lm").model.eval()


class Heard:
    """A job and what it was told."""

    def __init__(self, prompt, limit=12, top=0, sampling=None, gone_after=None):
        self.events, self.done, self.gone_after = [], threading.Event(), gone_after
        self.job = Job(prompt, limit, sampling or Sampling(), top, self.tell)

    def tell(self, event):
        self.events.append(event)
        if len(self.events) == self.gone_after:
            self.job.cancelled = True
            self.done.set()
        if isinstance(event, PetkitError) or event.finish:
            self.done.set()

    @property
    def tokens(self):
        return [event.token for event in self.events]


def test_rows_are_told_what_each_alone_would_be(model):
    heard = [Heard(prompt, limit) for prompt, limit in zip(PROMPTS, (12, 3, 7, 1), strict=True)]
    run_batch(model, [one.job for one in heard], 0)
    for one, prompt in zip(heard, PROMPTS, strict=True):
        (alone,) = generate(model, [prompt], one.job.limit, padding=0)
        kept = [token for token in one.tokens if token not in end_tokens(model)]
        assert kept == list(alone.tokens)
        assert [event.entropy for event in one.events] == pytest.approx(alone.trajectory.entropy, abs=1e-4)
        assert [event.finish for event in one.events[:-1]] == [None] * (len(one.events) - 1)
        assert one.events[-1].finish == ("stop" if alone.finished else "length")


def test_log_probabilities_are_those_of_the_model(model):
    heard, other = Heard(PROMPTS[0], 4, top=3), Heard(PROMPTS[1], 4, top=1)
    run_batch(model, [heard.job, other.job], 0)
    ids = PROMPTS[0] + heard.tokens
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, len(PROMPTS[0]) - 1 : -1]
    truth = token_statistics(logits, torch.tensor(heard.tokens), top_k=3)
    assert [event.log_prob for event in heard.events] == pytest.approx(truth.log_prob.tolist(), abs=1e-5)
    assert [[token for token, _ in event.top] for event in heard.events] == truth.top_ids.tolist()
    assert all(len(event.top) == 1 for event in other.events)


def test_more_alternatives_than_there_are_tokens(model):
    heard = Heard(PROMPTS[0], 1, top=20)
    run_batch(model, [heard.job], 0)
    assert len(heard.events[0].top) == 15


def test_a_seed_draws_the_same_in_any_company(model):
    def drawn(company):
        heard = Heard(PROMPTS[0], 12, sampling=Sampling.of(1.5, 0.9, 5))
        run_batch(model, [heard.job, *(Heard(prompt).job for prompt in company)], 0)
        return heard.tokens

    assert drawn([]) == drawn(PROMPTS[1:])
    greedy = Heard(PROMPTS[0])
    run_batch(model, [greedy.job], 0)
    assert drawn([]) != greedy.tokens


def test_who_goes_frees_the_row(model):
    gone, stays = Heard(PROMPTS[0], 50, gone_after=2), Heard(PROMPTS[1], 5)
    run_batch(model, [gone.job, stays.job], 0)
    assert (len(gone.events), len(stays.events)) == (2, 5)
    # Alone, its end ends the batch: a thousand steps would be no quick ones.
    alone = Heard(PROMPTS[0], 10**6, gone_after=3)
    run_batch(model, [alone.job], 0)
    assert len(alone.events) == 3


class Broken(torch.nn.Module):
    """Gives nan for the row of one prompt from the second step on."""

    def __init__(self, model, first_token):
        super().__init__()
        self.model, self.first_token, self.generation_config = model, first_token, model.generation_config

    def generate(self, input_ids, logits_processor, **options):
        row = input_ids[:, -1].tolist().index(self.first_token)
        width = input_ids.shape[1]

        def spoil(ids, scores):
            if ids.shape[1] > width:
                scores[row] = torch.nan
            return scores

        return self.model.generate(
            input_ids=input_ids, logits_processor=[spoil, *logits_processor], **options
        )


def test_logits_that_are_nan_end_their_own_row_only(model):
    bad, good = Heard([7, 8], 6), Heard([9, 4], 6)
    run_batch(Broken(model, 8), [bad.job, good.job], 0)
    assert isinstance(bad.events[0], Draw)
    assert "logits are not finite" in str(bad.events[1])
    assert len(good.events) == 6


def test_the_engine_lives_on_after_a_batch_that_fails(model, monkeypatch, caplog):
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise MemoryError("no room")
        run_batch(*arguments)

    monkeypatch.setattr("petkit.serving.chat.engine.run_batch", fail)
    engine = Engine(model, 0)
    for expected in (PetkitError, Draw):
        heard = Heard(PROMPTS[0], 1)
        engine.submit(heard.job)
        assert heard.done.wait(20)
        assert isinstance(heard.events[0], expected)
    engine.close()
    assert "MemoryError: no room" in caplog.text


def test_jobs_are_gathered(model, monkeypatch):
    sizes = []
    monkeypatch.setattr("petkit.serving.chat.engine.run_batch", lambda _, jobs, __: sizes.append(len(jobs)))
    engine = Engine(model, 0, batch_size=4, wait=0.1)
    for _ in range(9):
        engine.submit(Heard([4]).job)
    gone = Heard([4])
    gone.job.cancelled = True
    engine.submit(gone.job)
    while engine.running or engine._waiting:
        pass
    engine.close()
    assert sum(sizes) == 9
    assert max(sizes) == 4


def test_closing_ends_every_job(model):
    engine = Engine(model, 0, batch_size=1)
    heard = [Heard([4], 10**6) for _ in range(3)]
    for one in heard:
        engine.submit(one.job)
    engine.close()
    assert all(one.done.wait(20) for one in heard)
    assert all("closed" in str(one.events[-1]) for one in heard)
    with pytest.raises(PetkitError, match="the engine is closed"):
        engine.submit(heard[0].job)
