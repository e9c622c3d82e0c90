import asyncio
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from petkit.artifacts.manifest import Base
from petkit.configuration import resolve
from petkit.data.questions import Question
from petkit.errors import ArtifactError, ConfigError, InputError, PetkitError
from petkit.methods.edrm.algorithm import MODES
from petkit.methods.edrm.calibration import Objective, Reached
from petkit.methods.edrm.config import PromptConfig, RouterConfig, ThresholdConfig
from petkit.methods.edrm.evaluation import compared, read_outcomes
from petkit.methods.edrm.learned import train_router
from petkit.methods.edrm.outcome_file import model_files
from petkit.methods.edrm.recipe import Router
from petkit.methods.edrm.rule import Rule
from petkit.methods.edrm.stored import (
    NETWORK,
    check_model,
    check_probes,
    read_rule,
    save_router,
    settings_file,
    stored_config,
)
from petkit.methods.edrm.writers import load_language_model
from petkit.models.config import AdapterConfig
from petkit.ops import token_statistics
from petkit.rollout import entropy
from petkit.rollout.config import ServedConfig
from petkit.serving.chat.requests import ChatRequest
from petkit.serving.chat.routing import Exchange, decide
from petkit.serving.chat.sources import LocalSource
from tests.methods.edrm.support import thresholds_for
from tests.serving.text_models import save_llama, write_text

QUESTIONS = [
    Question(str(n), text, answer=answer, dataset="ab"[n % 2])
    for n, (text, answer) in enumerate(
        [("the cat sat", "yes"), ("dog ran", "no"), ("mat", "4"), ("good", "x")]
    )
]
CONFIG = RouterConfig(probe_tokens=8, max_new_tokens=20)
REACHED = Reached(Objective(), 0.5, 20.0)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return load_language_model(str(save_llama(tmp_path_factory.mktemp("llama"))))


def test_a_standard_answer_is_the_same_with_and_without_a_probe(language_model):
    router = Router(language_model, Rule(CONFIG))
    probes = router.probe(QUESTIONS)
    assert all(len(probe.trajectory) == 8 or probe.finished for probe in probes)
    assert router.answer(QUESTIONS, "standard", probes) == router.answer(QUESTIONS, "standard")


@pytest.mark.parametrize("mode", ["direct", "standard"])
def test_tokens_include_the_probe(language_model, mode):
    router = Router(language_model, Rule(CONFIG.model_copy(update={"thresholds": thresholds_for(mode)})))
    alone = router.answer(QUESTIONS, mode)
    for answer, (text, tokens), probe in zip(
        router.run(QUESTIONS), alone, router.probe(QUESTIONS), strict=True
    ):
        assert (answer.mode, answer.text) == (mode, text)
        assert answer.tokens == tokens + (0 if mode == "standard" else probe.cost)


def test_modes_have_their_prompts(language_model):
    prompts = PromptConfig(direct="good {question}", cot="bad {question}", system="user")
    router = Router(language_model, Rule(CONFIG.model_copy(update={"prompts": prompts})))
    ids = [language_model.encode(router._prompt(QUESTIONS[0], mode), router.config) for mode in MODES]
    decoded = [language_model.tokenizer.decode(one) for one in ids]
    assert decoded == [
        "system user user good the cat sat assistant".replace("system", "<unk>"),
        "system user user the cat sat assistant".replace("system", "<unk>"),
        "system user user bad the cat sat assistant".replace("system", "<unk>"),
    ]


def test_a_prompt_must_hold_the_question_once():
    with pytest.raises(ValueError, match=r"must hold \{question\} once"):
        PromptConfig(cot="think")


def test_a_model_without_a_chat_template(tmp_path):
    plain = load_language_model(str(save_llama(tmp_path / "plain", chat=False)))
    with pytest.raises(ConfigError, match="no chat template: --set chat_template=false"):
        Router(plain, Rule(CONFIG))
    router = Router(plain, Rule(CONFIG.model_copy(update={"chat_template": False})))
    assert len(router.run(QUESTIONS)) == len(QUESTIONS)


def test_logits_that_are_not_finite_name_the_question(language_model, monkeypatch):
    def broken(scores, **options):
        found = token_statistics(scores, **options)
        return found._replace(entropy=torch.where(torch.arange(len(scores)) == 1, torch.nan, found.entropy))

    monkeypatch.setattr(entropy, "token_statistics", broken)
    # Whichever prompts are the shortest, rows are in the order of the file.
    with pytest.raises(PetkitError, match="the logits of question 1 must be finite"):
        Router(language_model, Rule(CONFIG)).probe(QUESTIONS)


def test_an_answer_of_its_probe_alone(language_model):
    config = CONFIG.model_copy(update={"max_new_tokens": 8, "thresholds": thresholds_for("standard")})
    for answer in Router(language_model, Rule(config)).run(QUESTIONS):
        assert answer.tokens <= 8


def test_an_answer_shorter_than_its_probe_is_refused():
    message = (
        r"max_new_tokens must be at least probe_tokens, 64, got 8: raise max_new_tokens, or lower "
        r"probe_tokens"
    )
    with pytest.raises(ValidationError, match=message):
        RouterConfig(max_new_tokens=8)
    assert RouterConfig(max_new_tokens=64).probe_tokens == 64


def test_measuring_and_comparing(language_model):
    records = Router(language_model, Rule(CONFIG)).measure(QUESTIONS)
    assert json.loads(json.dumps(records)) == records
    outcomes = read_outcomes(records)
    assert outcomes.tokens.shape == (4, 3)
    thresholds = ThresholdConfig(cumulative=1.0, spearman=0.5, von_neumann=1.0)
    rule = Rule(CONFIG.model_copy(update={"thresholds": thresholds}))
    result, reached = compared(records, rule, Objective("tokens", 1.0))
    names = [one["policy"] for one in result["policies"]]
    assert {"always cot", "oracle", "token signature", "this router", "data set, mean point"} <= set(names)
    assert {"instance, leave one out", "data set, leave one out", "learned, cross-validated"} <= set(names)
    assert {
        sum(modes.values()) for kinds in result["dataset_level"].values() for modes in kinds.values()
    } == {8}
    assert sum(one["n"] for one in result["reliability"]["bins"]) == 4
    assert 0 <= result["reliability"]["error"] <= 1
    assert result["datasets"].keys() == {"a", "b"}
    assert not reached.is_met
    assert reached.text.startswith("accuracy >= 1, reached 0")
    reference = next(one for one in result["policies"] if one["policy"] == "always cot")
    assert reference["accuracy_gain"]["mean"] == reference["tokens_saved"]["mean"] == 0
    items = Rule(CONFIG).explained(records)
    assert [item["id"] for item in items] == ["0", "1", "2", "3"]
    with pytest.raises(InputError, match="question q has no answer"):
        Router(language_model, Rule(CONFIG)).measure([Question("q", "the")])


def test_a_router_is_bound_to_its_model(tmp_path):
    folder = tmp_path / "router"
    base = Base(id="llama", sha256="1" * 64)
    save_router(folder, base, Rule(CONFIG), REACHED, (), {"outcomes.jsonl": ""})
    assert stored_config(folder) == CONFIG
    assert resolve(RouterConfig, [settings_file(folder)], environment={}).config == CONFIG
    check_model(folder, "llama", "1" * 64)
    with pytest.raises(ArtifactError, match=r"was calibrated for llama .* calibrate a router for it"):
        check_model(folder, "other", "0" * 64)
    path = folder / "petkit.json"
    whole = path.read_text()
    path.write_text(whole.replace('"probe_tokens": 8', '"probe_tokens": 1'))
    with pytest.raises(ArtifactError, match="broken settings: probe_tokens"):
        stored_config(folder)
    path.write_text(whole.replace('"kind": "router"', '"kind": "adapter"'))
    with pytest.raises(ArtifactError, match=r"must hold a router, its petkit\.json says kind 'adapter'"):
        stored_config(folder)
    path.unlink()
    with pytest.raises(InputError, match="is no router"):
        stored_config(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probe_tokens": 32}, "probes of 8 tokens, got 32: leave --probe-tokens out"),
        (
            {"prompts": PromptConfig(cot="{question} why")},
            "with prompts.cot '{question}.*, got '{question} why'",
        ),
        ({"prompts": PromptConfig(system="Be brief.")}, "with prompts.system null, got 'Be brief.'"),
        ({"chat_template": False}, "with chat_template true, got false"),
        ({"stop": ("x",)}, r"with stop \[\], got \['x'\]"),
        ({"level": "dataset"}, "with level 'question', got 'dataset'"),
        ({"served": ServedConfig(top_log_probs=5)}, "with served.top_log_probs 20, got 5"),
    ],
)
def test_settings_that_a_router_was_fitted_with_cannot_be_changed(tmp_path, change, message):
    folder = tmp_path / "router"
    save_router(folder, Base(id="m", sha256="1" * 64), Rule(CONFIG), REACHED, (), {})
    with pytest.raises(ConfigError, match=message):
        read_rule(folder, CONFIG.model_copy(update=change))
    kept = {"max_new_tokens": 9, "thresholds": thresholds_for("cot"), "served": ServedConfig(attempts=1)}
    read_rule(folder, CONFIG.model_copy(update=kept))


@pytest.mark.parametrize(
    ("objective", "detail"),
    [
        (Objective("accuracy", 30), "tokens a question <= 30, reached 34.25"),
        (Objective("tokens", 0.8), "accuracy >= 0.8, reached 0.75"),
    ],
)
def test_a_router_whose_limit_failed_says_so(tmp_path, caplog, objective, detail):
    folder = tmp_path / "router"
    reached = Reached(objective, 0.75, 34.25)
    save_router(folder, Base(id="m", sha256="1" * 64), Rule(CONFIG), reached, (), {})
    (check,) = json.loads((folder / "checks.json").read_text())["checks"]
    assert (check["ok"], check["detail"]) == (False, f"{detail} on the calibration's questions")
    with caplog.at_level("WARNING"):
        read_rule(folder, CONFIG)
    assert f"did not keep its limit when it was calibrated: {detail}" in caplog.text
    caplog.clear()
    save_router(tmp_path / "kept", Base(id="m", sha256="1" * 64), Rule(CONFIG), REACHED, (), {})
    (tmp_path / "kept" / "checks.json").unlink()
    read_rule(tmp_path / "kept", CONFIG)
    assert not caplog.records


def test_a_learned_router_comes_back(language_model, tmp_path):
    records = Router(language_model, Rule(CONFIG)).measure(QUESTIONS)
    outcomes = read_outcomes(records)
    rule = Rule(CONFIG.model_copy(update={"rule": "learned"}), train_router(outcomes))
    folder = tmp_path / "router"
    save_router(folder, Base(id="m", sha256="1" * 64), rule, REACHED, (), {})
    again = read_rule(folder, stored_config(folder))
    chosen = rule.decide(outcomes.points, outcomes.probe)
    assert again.decide(outcomes.points, outcomes.probe) == chosen
    assert again.explained(records)[0]["reason"].endswith("% sure, by the network")
    answers = Router(language_model, again).run(QUESTIONS)
    assert [one.mode for one in answers] == [one.mode for one in chosen]
    content = (folder / NETWORK).read_bytes()
    for broken, message in (
        (content[:50], "must hold a router's network"),
        (
            train_router(outcomes).to_bytes().replace(b"layers.0.bias", b"layers.9.bias"),
            "must hold a router's",
        ),
    ):
        (folder / NETWORK).write_bytes(broken)
        with pytest.raises(ArtifactError, match=message):
            read_rule(folder, stored_config(folder))
    network = train_router(outcomes)
    network.layers[0].bias.data[0] = float("nan")
    (folder / NETWORK).write_bytes(network.to_bytes())
    with pytest.raises(ArtifactError, match="must hold finite numbers"):
        read_rule(folder, stored_config(folder))
    (folder / NETWORK).unlink()
    with pytest.raises(ArtifactError, match="for rule learned, got none"):
        read_rule(folder, stored_config(folder))
    with pytest.raises(ConfigError, match="rule learned needs the network"):
        Rule(stored_config(folder))


@pytest.mark.parametrize("mode", ["direct", "standard"])
def test_a_data_set_is_routed_as_one(language_model, mode):
    update = {"thresholds": thresholds_for(mode), "level": "dataset", "dataset_questions": 1}
    router = Router(language_model, Rule(CONFIG.model_copy(update=update)))
    assert router.probed_rows(QUESTIONS) in ([0, 1], [0, 3], [1, 2], [2, 3])
    answers = router.run(QUESTIONS)
    alone = router.answer(QUESTIONS, mode)
    probed = router.probed_rows(QUESTIONS)
    costs = dict(zip(probed, router.probe([QUESTIONS[row] for row in probed]), strict=True))
    for row, (answer, (text, tokens)) in enumerate(zip(answers, alone, strict=True)):
        assert (answer.mode, answer.text) == (mode, text)
        # A standard answer goes on with its probe; the questions that were not probed pay nothing.
        extra = costs[row].cost if row in costs and mode != "standard" else 0
        assert answer.tokens == tokens + extra
        assert answer.reason.startswith(f"all of {'ab'[row % 2]}, by 1 probe: ")


def test_an_adapter_has_another_hash_than_its_base(tmp_path):
    base = save_llama(tmp_path / "base")
    adapter = AdapterConfig(bottleneck=2, method="lora")
    folder = write_text(tmp_path / "a", base, adapter, task="causal_lm")
    folder = folder if not isinstance(folder, tuple) else folder[0]
    plain, adapted = load_language_model(str(base)), load_language_model(str(folder))
    assert plain.sha256 != adapted.sha256
    assert len(Router(adapted, Rule(CONFIG)).run(QUESTIONS[:1])) == 1


@pytest.fixture
def hasty(language_model):
    """The model, as one that ends its standard answer to the first question with its first token."""
    (written,) = language_model.begin(
        [Router(language_model, Rule(CONFIG))._prompt(QUESTIONS[0], "standard")],
        CONFIG, lambda _: True, 1, lambda *_: None,
    )  # fmt: skip
    settings = language_model.model.generation_config
    before, settings.eos_token_id = settings.eos_token_id, written.tokens[0]
    yield language_model
    settings.eos_token_id = before


@pytest.mark.parametrize("learned", [False, True])
def test_an_answer_that_ends_before_it_has_a_shape_is_kept(hasty, learned):
    config = CONFIG.model_copy(update={"thresholds": ThresholdConfig(cumulative=0.0)})
    rule = Rule(config)
    if learned:
        network = train_router(read_outcomes(Router(hasty, rule).measure(QUESTIONS)))
        # Whatever it sees, it is sure of the first mode, direct.
        network.layers[-1].weight.data.zero_()
        network.layers[-1].bias.data = torch.tensor([9.0, 0.0, 0.0])
        rule = Rule(config.model_copy(update={"rule": "learned"}), network)
    router = Router(hasty, rule)
    (probe,) = router.probe(QUESTIONS[:1])
    assert (probe.cost, probe.finished) == (1, True)
    (answer,) = router.run(QUESTIONS[:1])
    reason = "over after 1 token: too short for a trend, stays as it is"
    assert (answer.mode, answer.tokens, answer.reason) == ("standard", 1, reason)
    records = router.measure(QUESTIONS[:1])
    assert rule.policy(read_outcomes(records))[1] == ["standard"]
    assert rule.explained(records)[0]["decision"] == "standard"
    served = decide(probe.trajectory.entropy, rule)
    assert (served.mode, served.reason) == ("standard", reason)
    # A data set of nothing but such answers has no shape either.
    assert rule.decide_dataset("a", [probe.trajectory.entropy]).mode == "standard"
    # One more token, and thresholds or network decide.
    assert rule.explained([{"id": "", "entropies": [1.0, 1.0, 1.0]}])[0]["decision"] == "direct"


@pytest.mark.parametrize("length", [3, 10])
def test_stops_end_every_answer(language_model, length):
    """In the probe, or across its end. The tiny model writes one word again and again."""
    plain = Router(language_model, Rule(CONFIG))
    (word,) = {word for text, _ in plain.answer(QUESTIONS, "cot") for word in text.split()}
    stop = " ".join([word] * length)
    config = CONFIG.model_copy(update={"stop": (stop,), "thresholds": thresholds_for("standard")})
    router = Router(language_model, Rule(config))
    for probe in router.probe(QUESTIONS):
        assert probe.finished == (length < 8)
        assert probe.cost == len(probe.trajectory) == min(length, 8)
    for record in router.measure(QUESTIONS):
        assert record["stop"] == [stop]
        assert {(one["text"], one["tokens"]) for one in record["modes"].values()} == {("", length)}
    assert [one.tokens for one in router.run(QUESTIONS)] == [length] * 4
    assert plain.key_of(QUESTIONS[0]) != router.key_of(QUESTIONS[0])
    source = LocalSource("tiny", language_model.model, language_model.tokenizer, 20)
    try:
        request = ChatRequest(model="tiny", messages=[{"role": "user", "content": "the cat sat"}])
        exchange = Exchange(source, request, router.rule)
        parts = asyncio.run(collected(exchange))
    finally:
        source.close()
    assert ("".join(part.text for part in parts).strip(), parts[-1].finish) == ("", "stop")
    assert exchange.tally.tokens == length
    assert exchange.tally.probe_tokens == min(length, 8)


async def collected(exchange):
    return [part async for part in exchange.parts()]


def test_an_empty_stop_is_refused():
    with pytest.raises(ValueError, match="must hold texts that are not empty"):
        RouterConfig(stop=("",))


def test_a_question_by_itself_is_named_so(language_model):
    question = Question("question", "the cat sat")
    config = CONFIG.model_copy(update={"level": "dataset"})
    (answer,) = Router(language_model, Rule(config)).run([question])
    assert answer.reason.startswith("all of the questions, by 1 probe: ")
    with pytest.raises(InputError, match=r"^the question has no answer: this needs labelled questions"):
        Router(language_model, Rule(CONFIG)).measure([question])


@pytest.mark.parametrize("text", ["probe_tokens: 9\n", "what: 1\n", "stop: []\n"])
def test_settings_that_were_changed_in_the_folder_are_refused(tmp_path, text):
    config = CONFIG.model_copy(
        update={"stop": ("\nQ:", "é"), "thresholds": ThresholdConfig(spearman=0.1 + 0.2)}
    )
    folder = tmp_path / "router"
    save_router(folder, Base(id="m", sha256="1" * 64), Rule(config), REACHED, (), {})
    assert resolve(RouterConfig, [settings_file(folder)], environment={}).config == config
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ArtifactError, match=r"its config\.yaml is not what its petkit\.json records"):
        settings_file(folder)


@pytest.mark.parametrize(
    ("length", "finished", "fits"),
    [(8, False, True), (7, False, False), (7, None, False), (7, True, True), (9, True, False)],
)
def test_trajectories_are_as_long_as_the_probes_of_their_router(tmp_path, length, finished, fits):
    folder = tmp_path / "router"
    save_router(folder, Base(id="m", sha256="1" * 64), Rule(CONFIG), REACHED, (), {})
    record = {"id": "a", "entropies": [1.0] * length} | ({} if finished is None else {"finished": finished})
    expected = (
        rf"router was calibrated with probes of 8 tokens, got {length}\b.* in t\.jsonl, id a: probe with"
    )
    with nullcontext() if fits else pytest.raises(InputError, match=expected):
        check_probes(folder, [record], Path("t.jsonl"))


def test_a_merged_model_is_a_model_like_any_other(tmp_path):
    folder = save_llama(tmp_path / "merged")
    plain = load_language_model(str(folder))
    (folder / "petkit.json").write_text(json.dumps({"schema_version": 1, "kind": "merged"}))
    merged = load_language_model(str(folder))
    assert merged.sha256 == plain.sha256
    assert model_files(str(folder)) is not None
