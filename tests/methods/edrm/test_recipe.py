import json

import pytest

from petkit.data.questions import Question
from petkit.errors import ArtifactError, ConfigError, InputError
from petkit.methods.edrm import recipe
from petkit.methods.edrm.algorithm import MODES, Thresholds
from petkit.methods.edrm.calibration import Objective
from petkit.methods.edrm.config import PromptConfig, RouterConfig, ThresholdConfig
from petkit.methods.edrm.evaluation import compared, explained, read_outcomes
from petkit.methods.edrm.recipe import Router, load_language_model, load_router, save_router
from petkit.models.config import AdapterConfig
from tests.serving.text_models import save_llama, write_text

QUESTIONS = [
    Question(str(n), text, answer=answer, dataset="ab"[n % 2])
    for n, (text, answer) in enumerate(
        [("the cat sat", "yes"), ("dog ran", "no"), ("mat", "4"), ("good", "x")]
    )
]
CONFIG = RouterConfig(probe_tokens=8, max_new_tokens=20)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return load_language_model(str(save_llama(tmp_path_factory.mktemp("llama"))))


def thresholds_for(mode):
    """Thresholds under which every question of the tiny model gets this mode."""
    values = {
        "direct": {"cumulative": 0.0},
        "standard": {"cumulative": 1e9, "spearman": 1.0},
        "cot": {"cumulative": 1e9, "spearman": 0.0, "von_neumann": 1e9},
    }
    return ThresholdConfig(**values[mode])


def test_a_standard_answer_is_the_same_with_and_without_a_probe(language_model):
    router = Router(language_model, CONFIG)
    probes = router.probe(QUESTIONS)
    assert all(len(probe.trajectory) == 8 or probe.finished for probe in probes)
    assert router.answer(QUESTIONS, "standard", probes) == router.answer(QUESTIONS, "standard")


@pytest.mark.parametrize("mode", ["direct", "standard"])
def test_tokens_include_the_probe(language_model, mode):
    router = Router(language_model, CONFIG.model_copy(update={"thresholds": thresholds_for(mode)}))
    alone = router.answer(QUESTIONS, mode)
    for answer, (text, tokens), probe in zip(
        router.run(QUESTIONS), alone, router.probe(QUESTIONS), strict=True
    ):
        assert (answer.mode, answer.text) == (mode, text)
        assert answer.tokens == tokens + (0 if mode == "standard" else probe.cost)


def test_modes_have_their_prompts(language_model):
    prompts = PromptConfig(direct="good {question}", cot="bad {question}", system="user")
    router = Router(language_model, CONFIG.model_copy(update={"prompts": prompts}))
    decoded = [language_model.tokenizer.decode(router._prompt(QUESTIONS[0], mode)) for mode in MODES]
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
    with pytest.raises(ConfigError, match="no chat template: set chat_template=false"):
        Router(plain, CONFIG)
    router = Router(plain, CONFIG.model_copy(update={"chat_template": False}))
    assert len(router.run(QUESTIONS)) == len(QUESTIONS)


def test_measuring_and_comparing(language_model):
    records = Router(language_model, CONFIG).measure(QUESTIONS)
    assert json.loads(json.dumps(records)) == records
    outcomes = read_outcomes(records)
    assert outcomes.tokens.shape == (4, 3)
    result, met = compared(records, Thresholds(1.0, 0.5, 1.0), Objective("tokens", 1.0))
    names = [one["policy"] for one in result["policies"]]
    assert {"always cot", "oracle", "token signature", "instance, this router"} <= set(names)
    assert "instance, leave one out" in names
    assert result["datasets"].keys() == {"a", "b"}
    assert not met
    reference = next(one for one in result["policies"] if one["policy"] == "always cot")
    assert reference["accuracy_gain"]["mean"] == reference["tokens_saved"]["mean"] == 0
    items = explained(records, CONFIG)
    assert [item["id"] for item in items] == ["0", "1", "2", "3"]
    with pytest.raises(InputError, match="question q has no answer"):
        Router(language_model, CONFIG).measure([Question("q", "the")])


def test_a_router_is_bound_to_its_model(language_model, tmp_path):
    folder = tmp_path / "router"
    save_router(folder, language_model, CONFIG, Objective(), True, (), {"outcomes.jsonl": ""})
    assert load_router(folder, language_model) == CONFIG
    other = recipe.LanguageModel("other", language_model.model, language_model.tokenizer, "0" * 64)
    with pytest.raises(ArtifactError, match=r"was calibrated for .* calibrate a router for it"):
        load_router(folder, other)
    path = folder / "petkit.json"
    whole = path.read_text()
    path.write_text(whole.replace('"probe_tokens": 8', '"probe_tokens": 1'))
    with pytest.raises(ArtifactError, match="broken settings: probe_tokens"):
        load_router(folder, language_model)
    path.write_text(whole.replace('"kind": "router"', '"kind": "adapter"'))
    with pytest.raises(ArtifactError, match=r"must hold a router, its petkit\.json says kind 'adapter'"):
        load_router(folder, language_model)
    path.unlink()
    with pytest.raises(InputError, match="is no router"):
        load_router(folder, language_model)


def test_an_adapter_has_another_hash_than_its_base(tmp_path):
    base = save_llama(tmp_path / "base")
    adapter = AdapterConfig(bottleneck=2, method="lora")
    folder = write_text(tmp_path / "a", base, adapter, task="causal_lm")
    folder = folder if not isinstance(folder, tuple) else folder[0]
    plain, adapted = load_language_model(str(base)), load_language_model(str(folder))
    assert plain.sha256 != adapted.sha256
    assert len(Router(adapted, CONFIG).run(QUESTIONS[:1])) == 1
