"""Log-probabilities of responses are those of the model's own logits, whatever its head and its batch are."""

import logging
import warnings

import pytest
import torch

from petkit.errors import InputError, PetkitError
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import insert, inserts
from petkit.models.loading import load_model
from petkit.ops.divergence import divergence
from petkit.rollout.config import SamplingConfig
from petkit.rollout.sampling import sample
from petkit.rollout.scoring import Head, pack, student_log_probs, teacher_scores, without_dropout
from tests.serving.text_models import save_llama

CPU = torch.device("cpu")
VOCAB, END = 23, 3
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
}
SPECIAL = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": 0}
PROMPTS = [[4, 5, 6], [7], [8, 9, 10, 11, 12, 13], [20, 19]]
RESPONSES = [[14, 15], [16, 17, 18, 4, 5], [6], [21, 22, END]]


def llama(tied=False, vocab=VOCAB, seed=0):
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {**SMALL, **SPECIAL, "vocab_size": vocab, "tie_word_embeddings": tied}
    return grown(LlamaForCausalLM, LlamaConfig(**settings), seed)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return grown(GPT2LMHeadModel, GPT2Config(vocab_size=VOCAB, **shape, **SPECIAL))


def biased():
    from transformers import PhiConfig, PhiForCausalLM

    model = grown(PhiForCausalLM, PhiConfig(**SMALL, **SPECIAL, partial_rotary_factor=0.5))
    with torch.no_grad():
        model.lm_head.bias.normal_()
    return model


def capped():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM, Gemma2Config(**SMALL, **SPECIAL, head_dim=8, final_logit_softcapping=3.0)


def scaled():
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM, GraniteConfig(**SMALL, **SPECIAL, logits_scaling=7.0)


def grown(kind, config, seed=0):
    """A random model whose logits lie some nats apart."""
    torch.manual_seed(seed)
    model = kind(config).eval()
    larger(model)
    return model


def larger(model, factor=20.0):
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(factor)


PLAIN = {"llama": llama, "tied": lambda: llama(tied=True), "gpt2": gpt2, "biased": biased}
OTHERS = {"capped": lambda: grown(*capped()), "scaled": lambda: grown(*scaled())}
MODELS = PLAIN | OTHERS


def by_hand(model, prompt, response, temperature=1.0, vocab=None):
    """Log-softmaxes before each token of a response, from one unpadded row."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, :, :vocab]
    rows = logits[len(prompt) - 1 : -1].double() / temperature
    return torch.log_softmax(rows, -1)


def ragged(prefixes=(0, 0, 0, 0), rows=range(4)):
    return pack([PROMPTS[row] for row in rows], [RESPONSES[row] for row in rows], prefixes, 0, CPU)


def all_close(found, wanted):
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_the_models_own_logits(name, temperature):
    model = MODELS[name]()
    head, sequences = Head(model), ragged()
    assert head.is_plain == (name in PLAIN)
    further = torch.randint(VOCAB, (*sequences.mask.shape, 3), generator=torch.Generator().manual_seed(1))
    own, more, entropies = student_log_probs(head, sequences, further, temperature)
    assert own.requires_grad
    assert not entropies.requires_grad
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        log_p, n = by_hand(model, prompt, response, temperature), len(response)
        all_close(own[row, :n].detach(), log_p.gather(-1, torch.tensor(response)[:, None])[:, 0])
        all_close(more[row, :n].detach(), log_p.gather(-1, further[row, :n]))
        all_close(entropies[row, :n], -(log_p.exp() * log_p).sum(-1))
        assert not own[row, n:].any()
        assert not more[row, n:].any()
    assert student_log_probs(head, sequences)[1] is None


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_models_own_logits(name):
    grads = []
    for whole in (False, True):
        model = MODELS[name]()
        sequences = ragged()
        if whole:
            rows = []
            for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
                logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
                log_p = torch.log_softmax(logits.float(), -1)
                rows.append(log_p.gather(-1, torch.tensor(response)[:, None]).sum())
            total = torch.stack(rows).sum()
        else:
            total = student_log_probs(Head(model), sequences)[0].sum()
        total.backward()
        grads.append({name: one.grad for name, one in model.named_parameters()})
    for name, wanted in grads[1].items():
        torch.testing.assert_close(grads[0][name], wanted, rtol=2e-3, atol=2e-4, msg=name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("chunk", [1, 1 << 25])
def test_teachers_name_their_likeliest_tokens(name, temperature, chunk, monkeypatch):
    monkeypatch.setattr("petkit.losses.head.CHUNK_BYTES", chunk)
    model, k = MODELS[name](), 4
    found = teacher_scores(Head(model), ragged(), k, temperature)
    assert not found.log_probs.requires_grad
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        log_p, n = by_hand(model, prompt, response, temperature), len(response)
        top = log_p.topk(k, -1)
        assert torch.equal(found.top_ids[row, :n], top.indices)
        all_close(found.top_log_probs[row, :n], top.values)
        all_close(found.log_probs[row, :n], log_p.gather(-1, torch.tensor(response)[:, None])[:, 0])
        all_close(found.entropy[row, :n], -(log_p.exp() * log_p).sum(-1))
        for part in (found.log_probs, found.entropy, found.top_log_probs, found.top_ids):
            assert not part[row, n:].any()
    without = teacher_scores(Head(model), ragged(), 0, temperature)
    assert without.top_ids is without.top_log_probs is None
    assert torch.equal(without.log_probs, found.log_probs)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_a_rollout_and_its_trainer_say_the_same(name, temperature):
    """The policy's ratio at the first step is exactly 1."""
    model = MODELS[name]()
    head = Head(model)
    settings = SamplingConfig(max_new_tokens=6, temperature=temperature)
    drawn = sample(model, PROMPTS, [1, 2, 3, 4], settings, 0)
    sequences = pack([one.prompt for one in drawn], [one.tokens for one in drawn], [0] * 4, 0, CPU)
    with torch.no_grad():
        recorded = student_log_probs(head, sequences, None, temperature)[0]
    model.train()
    trained = student_log_probs(head, sequences, sequences.token_ids[..., None], temperature)[0]
    model.eval()
    if name != "gpt2":  # It drops out while it trains.
        assert torch.equal(recorded, trained.detach())
    again = student_log_probs(head, sequences, sequences.token_ids[..., None], temperature)[0]
    assert torch.equal(recorded, again.detach())
    scores = teacher_scores(head, sequences, 2, temperature)
    torch.testing.assert_close(scores.log_probs, recorded, rtol=1e-5, atol=1e-5)


def test_draws_follow_the_log_probs_that_are_said_of_them():
    model = llama()
    n = 4000
    drawn = sample(model, [PROMPTS[0]] * n, range(n), SamplingConfig(max_new_tokens=1, batch_size=n), 0)
    log_p = by_hand(model, PROMPTS[0], [5])[0]
    counts = torch.bincount(torch.tensor([one.tokens[0] for one in drawn]), minlength=VOCAB)
    deviation = (counts / n - log_p.exp()).abs() / (log_p.exp() * (1 - log_p.exp()) / n).sqrt()
    assert deviation.max() < 4.5


@pytest.mark.parametrize("name", MODELS)
def test_a_rows_log_probs_do_not_depend_on_the_others(name):
    model = MODELS[name]()
    head = Head(model)
    whole = student_log_probs(head, ragged())[0].detach()
    for row, response in enumerate(RESPONSES):
        alone = student_log_probs(head, ragged((0,), [row]))[0].detach()
        torch.testing.assert_close(whole[row, : len(response)], alone[0], rtol=1e-4, atol=1e-5)
    order = torch.tensor([2, 0])
    chosen = student_log_probs(head, ragged().choose(order))[0].detach()
    torch.testing.assert_close(chosen, whole[order], rtol=1e-4, atol=1e-5)


def test_a_cap_is_noticed_before_it_shows(caplog):
    """A young model's logits are so small that a cap changes none; training makes them larger."""
    kind, config = capped()
    config.final_logit_softcapping = 30.0
    torch.manual_seed(0)
    model = kind(config).eval()
    with caplog.at_level(logging.INFO, logger="petkit"):
        head = Head(model)
    assert not head.is_plain
    assert "the model's logits are more than its head's output: they are computed whole" in caplog.text
    larger(model, 1000.0)
    own = student_log_probs(head, ragged())[0].detach()
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        wanted = by_hand(model, prompt, response).gather(-1, torch.tensor(response)[:, None])[:, 0]
        all_close(own[row, : len(response)], wanted)


def test_looking_at_a_head_leaves_the_model_as_it_was():
    model = gpt2().train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    before = [one.clone() for one in model.state_dict().values()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert Head(model).is_plain
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(*pair) for pair in zip(before, model.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.lm_head._forward_hooks


@pytest.mark.parametrize("first", PLAIN)
@pytest.mark.parametrize("second", MODELS)
@pytest.mark.parametrize("student_is_first", [True, False])
def test_divergences_are_those_of_the_models_own_logits(first, second, student_is_first):
    names = (first, second) if student_is_first else (second, first)
    student, teacher = MODELS[names[0]](), MODELS[names[1]]()
    if first == second:
        larger(teacher, 0.3)
    heads, sequences = [Head(student), Head(teacher)], ragged()
    with torch.no_grad():
        others = heads[1].states(sequences)
    found = heads[0].divergence(heads[0].states(sequences), heads[1], others, sequences.mask, 0.3, 1.5)
    assert found.loss.requires_grad
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        n = len(response)
        log_q, log_p = (by_hand(one, prompt, response, 1.5) for one in (student, teacher))
        wanted = divergence(log_q.float(), log_p.float(), 0.3)
        for part, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(part[row, :n].detach(), right, rtol=1e-3, atol=1e-4)
            assert not part[row, n:].any()


def test_tables_may_be_filled_up_to_different_sizes():
    """Rows of a table that stand for nothing take no probability, on neither side."""
    student, teacher, shared = llama(vocab=32), llama(vocab=24, seed=1), 20
    heads, sequences = (
        [Head(one, shared) for one in (student, teacher)],
        ragged(rows=[0, 1, 2], prefixes=[0] * 3),
    )
    own = student_log_probs(heads[0], sequences)[0].detach()
    scores = teacher_scores(heads[1], sequences, shared)
    assert int(scores.top_ids.max()) < shared
    torch.testing.assert_close(scores.top_log_probs[sequences.mask].exp().sum(-1), torch.ones(8))
    with torch.no_grad():
        states = [head.states(sequences) for head in heads]
    found = heads[0].divergence(states[0], heads[1], states[1], sequences.mask, 0.0, 1.0)
    for row in range(3):
        prompt, response = PROMPTS[row], RESPONSES[row]
        log_q, log_p = (by_hand(one, prompt, response, vocab=shared) for one in (student, teacher))
        ids, n = torch.tensor(response)[:, None], len(response)
        all_close(own[row, :n], log_q.gather(-1, ids)[:, 0])
        all_close(scores.log_probs[row, :n], log_p.gather(-1, ids)[:, 0])
        all_close(found.loss[row, :n], (log_p.exp() * (log_p - log_q)).sum(-1))


@pytest.mark.parametrize("greedy", [False, True])
def test_rows_that_stand_for_nothing_are_not_drawn(greedy):
    model = llama(vocab=32)
    settings = SamplingConfig(max_new_tokens=12, temperature=5.0)
    seeds = range(20)
    free = sample(model, [[4, 5]] * 20, seeds, settings, 0, greedy=greedy)
    bound = sample(model, [[4, 5]] * 20, seeds, settings, 0, greedy=greedy, vocab=6)
    assert max(token for one in free for token in one.tokens) >= 6
    assert max(token for one in bound for token in one.tokens) < 6
    assert sample(model, [[4, 5]], [1], settings, 0, greedy=greedy, vocab=32) == sample(
        model, [[4, 5]], [1], settings, 0, greedy=greedy
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_llama(tmp_path_factory.mktemp("scoring") / "llama"))


@pytest.mark.parametrize("bits", [1, 32])
@pytest.mark.parametrize("method", ["lora", "adaptformer", "houlsby"])
def test_an_adapters_part_is_seen(folder, method, bits):
    model = load_model(ModelConfig(name=folder), "causal_lm").model.eval()
    larger(model)
    sequences = pack([[4, 5], [6]], [[7, 8, 3], [9]], [0, 0], 0, CPU)
    before = student_log_probs(Head(model), sequences)[0]
    generator = torch.Generator().manual_seed(1)
    insert(model, AdapterConfig(method=method, bits=bits, bottleneck=4, dropout=0.0), generator)
    head = Head(model)
    assert head.is_plain
    for adapter in inserts(model).values():
        with torch.no_grad():
            adapter.up.weight.normal_(std=2.0, generator=generator)
    own = student_log_probs(head, sequences)[0]
    assert (own - before).abs().max() > 1e-3
    wanted = by_hand(model, [4, 5], [7, 8, 3]).gather(-1, torch.tensor([[7], [8], [3]]))[:, 0]
    all_close(own[0].detach(), wanted)
    own.sum().backward()
    assert all(adapter.up.weight.grad.abs().sum() > 0 for adapter in inserts(model).values())


def test_an_adapter_on_the_head_is_seen(folder):
    """Also one that adds nothing yet when the head is looked at."""
    model = load_model(ModelConfig(name=folder), "causal_lm").model.eval()
    generator = torch.Generator().manual_seed(1)
    insert(model, AdapterConfig(method="lora", targets=("lm_head",), bits=32, dropout=0.0), generator)
    head = Head(model)
    assert not head.is_plain
    for adapter in inserts(model).values():
        with torch.no_grad():
            adapter.up.weight.normal_(generator=generator)
    sequences = pack([[4, 5]], [[7, 8, 3]], [0], 0, CPU)
    wanted = by_hand(model, [4, 5], [7, 8, 3]).gather(-1, torch.tensor([[7], [8], [3]]))[:, 0]
    all_close(student_log_probs(head, sequences)[0][0].detach(), wanted)


def test_a_models_inside_may_be_hidden_by_peft():
    peft = pytest.importorskip("peft")
    # It reads a property that transformers calls by another name.
    warnings.simplefilter("ignore", FutureWarning)
    model = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.eval()
    wanted = by_hand(model, [4, 5], [7, 8]).gather(-1, torch.tensor([[7], [8]]))[:, 0]
    found = student_log_probs(Head(model), pack([[4, 5]], [[7, 8]], [0], 0, CPU))[0]
    all_close(found[0].detach(), wanted)


def test_a_batch_is_filled_up_on_the_right():
    sequences = ragged(prefixes=(1, 0, 0, 2))
    assert sequences.input_ids.shape == (4, 7)
    assert sequences.token_ids.shape == (4, 5)
    assert sequences.starts.tolist() == [3, 1, 6, 2]
    for row, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        length, n = len(prompt) + len(response), len(response)
        assert sequences.input_ids[row].tolist() == [*prompt, *response, *[0] * (7 - length)]
        assert sequences.attention_mask[row].tolist() == [1] * length + [0] * (7 - length)
        assert sequences.token_ids[row].tolist() == [*response, *[0] * (5 - n)]
        assert sequences.mask[row].tolist() == [True] * n + [False] * (5 - n)
    assert sequences.prefix_mask.sum(1).tolist() == [1, 0, 0, 2]
    assert not (sequences.prefix_mask & ~sequences.mask).any()


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ([[1], []], [[1], [1]], "every prompt must hold at least one token, got none in number 1"),
        ([[1], [1]], [[], [1]], "every response must hold at least one token, got none in number 0"),
    ],
)
def test_rows_without_a_token_are_refused(prompts, responses, message):
    with pytest.raises(InputError, match=message):
        pack(prompts, responses, [0, 0], 0, CPU)


@pytest.mark.parametrize("name", ["llama", "capped"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_without_a_distribution_is_refused(name, value):
    model = MODELS[name]()
    head = Head(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = value
    message = "the logits of the teacher models/t must be finite, got nan or inf"
    with pytest.raises(PetkitError, match=message) as raised:
        teacher_scores(head, ragged(), 2, name="models/t")
    assert raised.value.exit_code == 1


def test_a_plain_head_is_seen_through_nan(caplog):
    model = llama()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = float("nan")
    with caplog.at_level(logging.INFO, logger="petkit"):
        assert Head(model).is_plain
    assert not caplog.records


def test_more_likeliest_tokens_than_there_are_are_refused():
    with pytest.raises(InputError, match="top_k must be"):
        teacher_scores(Head(llama()), ragged(), VOCAB + 1)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_without_dropout_trains_as_it_samples(kind):
    model = PLAIN[kind]()
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.5
    sequences = ragged()
    quiet = student_log_probs(Head(model.eval()), sequences)[0]
    torch.manual_seed(0)
    assert not torch.equal(student_log_probs(Head(model.train()), sequences)[0], quiet)
    without_dropout(model)
    assert torch.equal(student_log_probs(Head(model.train()), sequences)[0], quiet)
