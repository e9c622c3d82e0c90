"""Draws that follow the filtered softmax, rows that stand alone, adapters that are used, and refusals."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import chi2

from petkit.errors import InputError, PetkitError
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import insert, inserts, merge_into_base
from petkit.models.loading import load_model
from petkit.rollout import sampling
from petkit.rollout.config import SamplingConfig
from petkit.rollout.sampling import Completion, Draw, context_length, sample
from petkit.rollout.stops import Stops
from tests.serving.text_models import save_llama

END, VOCAB = 3, 15
RAGGED = [[4, 5], [6, 7, 8, 9], [10], [4, 4, 4, 4, 4, 4], [12, 5, 13]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_llama(tmp_path_factory.mktemp("sampling") / "llama"))


def load(folder, spread=6.0):
    """A tiny model whose logits lie apart and depend on all tokens before."""
    model = load_model(ModelConfig(name=folder), "causal_lm").model.eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(spread)
        for weight in model.model.layers.parameters():
            if weight.dim() == 2:
                weight.mul_(8)
    return model


@pytest.fixture
def model(folder):
    return load(folder)


def tiny_gpt2(positions=12):
    """A model with learnt positions, of which there is none behind the last."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=positions,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=None,
        eos_token_id=END,
    )
    return GPT2LMHeadModel(config).eval()


def tokens(rows):
    return [row.tokens for row in rows]


def settings(limit=6, **others):
    return SamplingConfig(max_new_tokens=limit, **others)


def by_hand(model, prompt, limit):
    """Greedy decoding without a cache, a batch or any of transformers' generation."""
    found = []
    while len(found) < limit and END not in found:
        with torch.no_grad():
            found.append(int(model(input_ids=torch.tensor([[*prompt, *found]])).logits[0, -1].argmax()))
    return tuple(found)


def filtered(logits, temperature, top_k, top_p):
    """The distribution that is drawn from, by its definition, in float64."""
    scores = logits.astype(np.float64) / temperature
    order = np.argsort(-scores)
    kept = order[: top_k or None]
    p = np.exp(scores[kept] - scores[kept].max())
    p /= p.sum()
    # The shortest list of the likeliest whose sum reaches top_p.
    count = int(np.searchsorted(np.cumsum(p), top_p - 1e-12)) + 1
    found = np.zeros(len(scores))
    found[kept[:count]] = p[:count] / p[:count].sum()
    return found


def drawn(processor, scores):
    left = processor(torch.zeros(len(scores), 1), scores)
    assert (left.isfinite().sum(-1) == 1).all()
    return left.argmax(-1)


def test_draws_follow_the_softmax():
    scores = torch.log(torch.tensor([0.5, 0.3, 0.2, 0.0])).expand(4000, 4)
    draw = Draw(range(4000))
    first = drawn(draw, scores)
    found = torch.bincount(first, minlength=4) / 4000
    # Four standard deviations of a share.
    assert torch.allclose(found, scores[0].exp(), atol=4 * 0.5 / 4000**0.5)
    assert found[3] == 0
    assert torch.equal(first, drawn(Draw(range(4000)), scores))
    assert not torch.equal(first, drawn(draw, scores))


@pytest.mark.parametrize("place", [0, 3, 6])
def test_the_only_possible_token_is_drawn_wherever_it_stands(place):
    scores = torch.full((100, 7), -torch.inf)
    scores[:, place] = -5.0
    assert (drawn(Draw(range(100)), scores) == place).all()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 0, 1.0), (1.0, 4, 1.0), (1.0, 0, 0.8), (1.5, 7, 0.9), (1.0, 1, 1.0)],
)
def test_draws_follow_the_filtered_distribution(model, temperature, top_k, top_p):
    draws, prompt = 5000, [4, 5]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].numpy()
    wanted = filtered(logits, temperature, top_k, top_p)
    own = settings(1, temperature=temperature, top_k=top_k, top_p=top_p, batch_size=draws)
    found = np.bincount(
        [row[0] for row in tokens(sample(model, [prompt] * draws, range(draws), own, 0))], minlength=VOCAB
    )
    possible = wanted > 0
    assert found[~possible].sum() == 0
    expected = wanted[possible] * draws
    statistic = ((found[possible] - expected) ** 2 / expected).sum()
    # One in a thousand right samplers would miss this bound; the seeds are fixed.
    assert statistic <= chi2.ppf(0.999, max(possible.sum() - 1, 1))


def test_second_tokens_follow_the_first(model):
    """Draws of later steps are independent ones of the distribution after what was drawn."""
    draws = 4000
    found = tokens(sample(model, [[4]] * draws, range(draws), settings(2, batch_size=draws), 0))
    first = max(range(4, VOCAB), key=[row[0] for row in found].count)
    seconds = [row[1] for row in found if row[0] == first]
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([[4, first]])).logits[0, -1].double().softmax(-1).numpy()
    counts = np.bincount(seconds, minlength=VOCAB)
    statistic = ((counts - wanted * len(seconds)) ** 2 / (wanted * len(seconds))).sum()
    assert len(seconds) > 200
    assert statistic < chi2.ppf(0.999, VOCAB - 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_row_does_not_depend_on_its_batch(model, seed):
    seeds = [seed * 100 + row for row in range(len(RAGGED))]
    own = settings(9, temperature=1.3, top_p=0.95)
    prefixes = [[], [5], [6, 7], [], [8]]
    together = sample(model, RAGGED, seeds, own, 0, prefixes=prefixes)
    columns = zip(RAGGED, seeds, prefixes, strict=True)
    alone = [sample(model, [one], [key], own, 0, prefixes=[given])[0] for one, key, given in columns]
    assert together == alone
    pairs = sample(
        model, RAGGED, seeds, settings(9, temperature=1.3, top_p=0.95, batch_size=2), 0, prefixes=prefixes
    )
    assert pairs == together
    back = sample(model, RAGGED[::-1], seeds[::-1], own, 7, prefixes=prefixes[::-1])
    assert back[::-1] == together


def test_seeds_decide(model):
    first = sample(model, RAGGED, range(5), settings(12), 0)
    assert first == sample(model, RAGGED, range(5), settings(12), 0)
    assert first != sample(model, RAGGED, range(5, 10), settings(12), 0)
    assert sample(model, [[4]], [2**64 - 1], settings(), 0) != sample(model, [[4]], [0], settings(), 0)


def test_greedy_is_decoding_by_hand(model):
    own = settings(9, temperature=5.0, top_k=3)
    found = sample(model, RAGGED, [0] * 5, own, 0, greedy=True)
    assert tokens(found) == [by_hand(model, prompt, 9) for prompt in RAGGED]
    # A draw from the likeliest token alone is the same.
    assert tokens(sample(model, RAGGED, range(5), settings(9, top_k=1), 0)) == tokens(found)
    assert tokens(sample(model, RAGGED, range(5), settings(9, temperature=1e-6), 0)) == tokens(found)


def test_the_cache_is_used_and_every_model_goes_back_to_its_mode(model):
    widths, modes = [], []
    model.config.use_cache = False
    model.train()
    model.model.layers[0].eval()

    def look(module, args, output):
        widths.append(args[0].shape[1])
        modes.append(model.training or model.lm_head.training)

    handle = model.model.embed_tokens.register_forward_hook(look)
    settings_before = model.generation_config
    sample(model, RAGGED[:2], [0, 1], settings(4, top_k=1), 0)
    handle.remove()
    assert widths[0] == 4
    assert set(widths[1:]) == {1}
    assert not any(modes)
    assert model.training
    assert model.lm_head.training
    assert not model.model.layers[0].training
    assert model.generation_config is settings_before
    ids = torch.tensor([[4, 5]])
    model(input_ids=ids, labels=ids).loss.backward()


def test_modes_and_settings_go_back_after_an_error_too(model):
    model.train()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    before = model.generation_config
    with pytest.raises(PetkitError, match=r"the logits after prompts\[0\] must be a distribution, got nan"):
        sample(model, RAGGED, range(5), settings(), 0)
    assert model.training
    assert model.generation_config is before


def test_settings_of_the_models_own_change_no_draw(folder, model):
    plain = sample(model, RAGGED, range(5), settings(8), 0)
    model.generation_config.update(
        repetition_penalty=50.0,
        temperature=0.01,
        top_k=1,
        top_p=0.1,
        no_repeat_ngram_size=1,
        min_new_tokens=8,
        do_sample=True,
        suppress_tokens=[4, 5, 6],
    )
    assert sample(model, RAGGED, range(5), settings(8), 0) == plain
    assert model.generation_config.repetition_penalty == 50.0


def test_a_completion_keeps_the_token_that_ended_it(model):
    found = sample(model, [[4]] * 200, range(200), settings(30, temperature=3.0, batch_size=200), 0)
    ended = [row for row in found if row.finished]
    assert ended
    assert len(ended) < 200
    assert all(row.tokens[-1] == END and END not in row.tokens[:-1] for row in ended)
    assert all(len(row.tokens) == 30 and END not in row.tokens for row in found if not row.finished)
    assert not any(row.stopped for row in found)
    # An end token alone is a completion like others.
    assert any(row.tokens == (END,) for row in ended)


def test_prefixes_come_first_and_count(model):
    prefix = [6, 7, 8]
    (found,) = sample(model, [[4, 5]], [3], settings(7), 0, prefixes=[prefix])
    assert found.prompt == (4, 5)
    assert found.prefix == 3
    assert found.tokens[:3] == (6, 7, 8)
    assert 4 <= len(found.tokens) <= 7
    (plain,) = sample(model, [[4, 5, *prefix]], [3], settings(4), 0)
    assert found.tokens[3:] == plain.tokens
    (last,) = sample(model, [[4, 5]], [3], settings(4), 0, prefixes=[prefix])
    assert len(last.tokens) == 4


def spoken(ids):
    """Ids as letters; the end and padding have no text."""
    return "".join(chr(ord("a") + token) for token in ids if token > END)


def test_stops_end_a_completion_and_stay_in_it(model):
    (plain,) = sample(model, [[4]], [2], settings(9), 0)
    assert len(plain.tokens) > 5
    text = spoken(plain.tokens[3:5])
    own, stops = settings(9, stop=(text,)), Stops((text,), spoken)
    (found,) = sample(model, [[4]], [2], own, 0, stops)
    assert found == Completion((4,), plain.tokens[:5], 0, finished=True, stopped=True)
    # A stop may begin in what was given.
    seed = next(seed for seed in range(99) if _next(model, plain.tokens[:4], seed) == plain.tokens[4])
    (found,) = sample(model, [[4]], [seed], own, 0, stops, [plain.tokens[:4]])
    assert found == Completion((4,), plain.tokens[:5], 4, finished=True, stopped=True)


def _next(model, prefix, seed):
    return sample(model, [[4]], [seed], settings(9), 0, prefixes=[prefix])[0].tokens[len(prefix)]


def test_rows_that_stop_leave_others_alone(model):
    plain = sample(model, RAGGED, range(5), settings(9), 0)
    text = spoken(plain[0].tokens[:1])
    found = sample(model, RAGGED, range(5), settings(9, stop=(text,)), 0, Stops((text,), spoken))
    for row, whole in zip(found, plain, strict=True):
        assert row.tokens == whole.tokens[: len(row.tokens)]
        assert row.stopped == (text in spoken(row.tokens))
        assert row.finished == (row.stopped or whole.finished)


def test_a_context_caps_completions_and_says_so_once(caplog):
    sampling._tell_capped.cache_clear()
    model = tiny_gpt2(positions=12)
    assert context_length(model) == 12
    prompts = [[4] * 11, [5], [6] * 8, [7] * 4]
    with caplog.at_level(logging.WARNING, logger="petkit"):
        found = sample(model, prompts, range(4), settings(10, top_k=11), 0)
        # Rows that have ended wait for longer ones, and go beyond no position meanwhile.
        sample(model, prompts, range(4), settings(10), 0)
    assert [record.message for record in caplog.records] == [
        "max_new_tokens 10 goes beyond the model's context of 12 tokens after some prompts: their "
        "completions end there"
    ]
    for row, most in zip(found, (1, 10, 4, 8), strict=True):
        assert len(row.tokens) <= most
        assert row.finished == (row.tokens[-1] == END)
        assert row.finished or len(row.tokens) == most
    seeds = range(4)
    alone = [
        sample(model, [one], [key], settings(10, top_k=11), 0)[0]
        for one, key in zip(prompts, seeds, strict=True)
    ]
    assert alone == found


@pytest.mark.parametrize(
    ("prompts", "prefixes", "message"),
    [
        ([[4], []], None, r"prompts\[1\] must hold at least one token, got none"),
        (
            [[4], [5] * 12],
            None,
            r"prompts\[1\] must leave room for a new token in the model's context of 12, got 12 tokens",
        ),
        ([[5] * 40], None, r"prompts\[0\] must leave room .* got 40 tokens"),
        ([[4], [15]], None, r"prompts\[1\] must hold ids from 0 to 14, got 15"),
        ([[4], [-1]], None, r"prompts\[1\] must hold ids from 0 to 14, got -1"),
        ([[4], [5]], [[], [4, 3]], r"prefixes\[1\] must hold no token that ends a text, got 3 at place 1"),
        ([[4], [5]], [[], [99]], r"prefixes\[1\] must hold ids from 0 to 14, got 99"),
        (
            [[4], [5]],
            [[], [6] * 6],
            r"prefixes\[1\] must leave a token to draw of the 6 that max_new_tokens 6 allows, got 6",
        ),
        (
            [[4] * 8],
            [[6] * 4],
            r"prefixes\[0\] must leave a token to draw of the 4 that the model's context allows, got 4",
        ),
        ([[4], [5]], [[]], "expected one prefix for each of 2 prompts, got 1"),
    ],
)
def test_bad_rows_are_named(prompts, prefixes, message):
    with pytest.raises(InputError, match=message):
        sample(tiny_gpt2(), prompts, range(len(prompts)), settings(), 0, prefixes=prefixes)


def test_other_bad_input(model):
    with pytest.raises(InputError, match="expected one seed for each of 1 prompts, got 2"):
        sample(model, [[4]], [1, 2], settings(), 0)
    with pytest.raises(InputError, match=r"stops must be those of the settings, \('a',\), got None"):
        sample(model, [[4]], [1], settings(stop=("a",)), 0)
    with pytest.raises(InputError, match=r"prefixes\[0\] must hold none of the stops \['ef'\], got 'efg'"):
        sample(model, [[4]], [1], settings(stop=("ef",)), 0, Stops(("ef",), spoken), [[4, 5, 6]])
    assert sample(model, [], [], settings(), 0) == []


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_logits_that_are_no_distribution_name_their_row(model, bad):
    def spoil(module, args, output):
        output[1, -1] = float(bad)

    handle = model.lm_head.register_forward_hook(spoil)
    with pytest.raises(PetkitError, match=r"the logits after prompts\[1\] must be a distribution"):
        sample(model, [[4], [5]], [0, 1], settings(), 0)
    handle.remove()


def test_rows_that_have_ended_are_not_looked_at(model):
    steps = []

    def spoil(module, args, output):
        steps.append(0)
        if len(steps) > 1:
            output[0] = torch.nan

    prefixes = [[5, 5, 5], []]
    handle = model.lm_head.register_forward_hook(spoil)
    found = sample(model, [[4], [4]], [0, 1], settings(4), 0, prefixes=prefixes)
    handle.remove()
    assert [len(row.tokens) for row in found] == [4, 4]


@pytest.mark.parametrize("bits", [1, 32])
def test_the_adapter_of_petkit_is_used(folder, bits):
    plain = tokens(sample(load(folder), RAGGED, [0] * 5, settings(8), 0, greedy=True))
    model = load(folder)
    config = AdapterConfig(method="lora", bits=bits, bottleneck=4, targets=("q", "v", "mlp"), dropout=0.5)
    generator = torch.Generator().manual_seed(0)
    insert(model, config, generator)
    with torch.no_grad():
        for adapter in inserts(model).values():
            adapter.up.weight.normal_(std=0.5, generator=generator)
    model.train()
    found = sample(model, RAGGED, range(5), settings(8), 0)
    best = tokens(sample(model, RAGGED, [0] * 5, settings(8), 0, greedy=True))
    assert best != plain
    model.eval()
    assert best == [by_hand(model, prompt, 8) for prompt in RAGGED]
    merge_into_base(model)
    assert not inserts(model)
    assert tokens(sample(model, RAGGED, [0] * 5, settings(8), 0, greedy=True)) == best
    assert sample(model, RAGGED, range(5), settings(8), 0) == found


@pytest.mark.parametrize("method", ["adaptformer", "houlsby"])
def test_adapters_that_no_weight_can_hold_are_used(folder, method):
    model = load(folder)
    generator = torch.Generator().manual_seed(0)
    insert(model, AdapterConfig(method=method, bits=1, bottleneck=4), generator)
    with torch.no_grad():
        for adapter in inserts(model).values():
            adapter.up.weight.normal_(std=0.5, generator=generator)
    found = tokens(sample(model, RAGGED, [0] * 5, settings(8), 0, greedy=True))
    assert found == [by_hand(model.eval(), prompt, 8) for prompt in RAGGED]
    assert found != tokens(sample(load(folder), RAGGED, [0] * 5, settings(8), 0, greedy=True))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_of_peft_is_used(folder):
    peft = pytest.importorskip("peft")
    plain = tokens(sample(load(folder), RAGGED, [0] * 5, settings(8), 0, greedy=True))
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, init_lora_weights=False
    )
    model = peft.get_peft_model(load(folder), config).train()
    inner = model.base_model.model
    inner.generation_config.repetition_penalty = 50.0
    kept = inner.generation_config
    found = sample(model, RAGGED, range(5), settings(8), 0)
    best = tokens(sample(model, RAGGED, [0] * 5, settings(8), 0, greedy=True))
    assert inner.generation_config is kept
    assert model.generation_config is kept
    assert model.training
    assert best != plain
    merged = model.merge_and_unload().eval()
    assert best == [by_hand(merged, prompt, 8) for prompt in RAGGED]
    assert sample(merged, RAGGED, range(5), settings(8), 0) == found


def test_half_precision_logits_are_drawn_from_in_full(model):
    half = model.to(torch.bfloat16)
    found = sample(half, RAGGED, range(5), settings(6), 0)
    assert found == sample(half, RAGGED, range(5), settings(6), 0)


def test_models_without_a_limit_have_none(model):
    bare = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace()))
    assert context_length(bare) is None
    assert context_length(model) == 2048


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", 0),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("max_new_tokens", 0),
        ("stop", ("a", "")),
        ("batch_size", 0),
    ],
)
def test_settings_out_of_range(key, value):
    with pytest.raises(ValidationError):
        SamplingConfig(**{key: value})
