"""Every key of the recipe does something, and recipes that cannot work are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from petkit.configuration.effects import effective
from petkit.configuration.sections import leaves
from petkit.errors import ConfigError
from petkit.methods.tropd.config import DistillConfig, ObjectiveConfig
from petkit.methods.tropd.recipe import run
from tests.methods.tropd import tiny

# key -> (the other value, what must be set besides)
CHANGES = {
    "seed": (1, {}),
    "samples": (3, {}),
    "student.tuning": ("full", {"adapter": {}}),
    "adapter.method": ("houlsby", {}),
    "adapter.bits": (1, {}),
    "adapter.bottleneck": (3, {}),
    "adapter.scale": (3.0, {}),
    "adapter.dropout": (0.5, {}),
    "adapter.targets": (["o"], {}),
    "adapter.codebook": ("petl_vit", {"adapter.bits": 8}),
    "adapter.gradient": ("identity", {"adapter.bits": 2}),
    "objective.kind": ("opd", {}),
    "objective.trust": ("expected", {}),
    "objective.threshold": (-1.0, {"objective.trust": "hard"}),
    "objective.outlier": ("rkl", {}),
    "objective.floor": (-0.1, {"objective.outlier": "clip"}),
    "objective.top_k": (2, {}),
    "objective.tail": ("bucket", {}),
    "objective.jsd_beta": (0.9, {"objective.kind": "gkd"}),
    "objective.entropy_threshold": (9.0, {"objective.kind": "eopd", "objective.top_k": 6}),
    "objective.keep_entropy": (0.1, {"objective.kind": "reopold"}),
    "objective.exploration": (0.0, {"objective.kind": "reopold"}),
    "objective.prefix_weight": (5.0, {"guidance.responses": "live"}),
    "guidance.responses": ("live", {}),
    "guidance.steps": (1, {"guidance.responses": "live"}),
    "data.train_size": (4, {}),
    "data.chat_template": (False, {}),
    "data.system": ("good", {}),
    "data.suffix": (" cat", {}),
    "sampling.temperature": (0.5, {}),
    "sampling.top_p": (0.3, {}),
    "sampling.top_k": (2, {}),
    "sampling.max_new_tokens": (3, {}),
    "sampling.stop": (["cat"], {}),
    "training.epochs": (3, {}),
    "training.batch_size": (2, {}),
    "training.gradient_accumulation": (2, {"adapter.dropout": 0.5}),
    "training.learning_rate": (3e-2, {}),
    "training.weight_decay": (0.5, {}),
    "training.warmup_epochs": (1, {}),
    "training.warmup_learning_rate": (1e-3, {"training.warmup_epochs": 1}),
    "training.min_learning_rate": (9e-3, {}),
    "training.max_gradient_norm": (1e-9, {}),
    "training.drop_last": (False, {"training.batch_size": 5}),
    "training.precision": ("bf16", {}),
    "training.max_steps": (1, {}),
    "training.max_time": ("0.001s", {}),
}
# key -> (the other value, besides, a file of the run's folder or a name in its records that shows it)
LEFT = {
    "data.validation": ("questions", {}, "result.json"),
    "data.validation_size": (3, {"data.validation": "questions"}, "result.json"),
    "training.select": ("validation", {"data.validation": "questions"}, "metrics.jsonl"),
    "training.evaluate_every": (
        2,
        {"data.validation": "questions", "training.select": "validation", "training.evaluate_every": 1},
        "metrics.jsonl",
    ),
    "training.evaluate_every_steps": (3, {"data.validation": "questions"}, "metrics.jsonl"),
    "training.checkpoint_every": (1, {}, "checkpoint-2"),
    "training.checkpoint_steps": (3, {}, "checkpoint-3"),
    "training.tensorboard": (True, {}, "tensorboard"),
}
# By other tests: of the layer that reads them, of served teachers, and of the recipe.
ELSEWHERE = {
    # Chooses between the systems of `petkit distill`: tests/cli/test_catalog.py.
    "kind",
    "output",
    "student.model.name",
    "student.model.revision",
    "student.model.pretrained",
    "student.model.weights",
    "teacher.model",
    "teacher.domains",
    "teacher.cache",
    "teacher.tokenizer",
    "data.train",
    "data.skip_bad",
    # How many are written together changes no draw.
    "sampling.batch_size",
    # Of code of the user's own: tests/rollout/test_own_reward.py and tests/cli/test_distill.py.
    "reward.function",
    "reward.timeout",
    # Of several processes: tests/training/test_sharding.py.
    "training.sharding",
    # Of servers: test_served_student.py.
    "rollout.model",
    "rollout.refresh_steps",
    "rollout.folder",
    "rollout.stale",
    "rollout.importance_cap",
}
# A language model has no use for them: test_recipes_that_cannot_work_are_refused.
REFUSED = {
    "student.model.image_size",
    "student.model.drop_path_rate",
    "student.model.pooling",
    "adapter.head",
}


def test_every_key_has_a_test():
    keys = {".".join(path) for path, _, _ in leaves(DistillConfig)}
    own = {key for key in keys if not key.startswith(("teacher.served.", "rollout.served."))}
    assert own == {*CHANGES, *LEFT, *ELSEWHERE, *REFUSED}


@pytest.fixture
def left(recipe, models, tmp_path):
    """`left({"seed": 1})` runs and gives all that the run left: weights, and records without their rates."""

    def go(values):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        changes = {
            key.replace(".", "__"): str(tmp_path / "questions.jsonl") if value == "questions" else value
            for key, value in values.items()
        }
        config = recipe(output=folder, student=models(0, chat=True), **changes)
        run(config, tiny.context(config))
        return folder

    return go


def records(folder):
    return [{k: v for k, v in row.items() if not k.endswith("_per_second")} for row in tiny.records(folder)]


def test_a_run_can_be_repeated(left):
    assert records(left({})) == records(left({}))


@pytest.mark.slow
@pytest.mark.parametrize("key", CHANGES)
def test_a_key_changes_the_run(left, key):
    value, besides = CHANGES[key]
    assert records(left(besides)) != records(left({**besides, key: value}))


@pytest.mark.slow
@pytest.mark.parametrize("key", LEFT)
def test_a_key_changes_what_is_left(left, key):
    value, besides, file = LEFT[key]
    if key == "training.tensorboard":
        pytest.importorskip("tensorboard")
    plain, changed = left(besides), left({**besides, key: value})
    if file == "result.json":
        found = [(one / file).read_text().count('"n": 3') for one in (plain, changed)]
        if key == "data.validation":
            found = [(one / file).read_text().count('"reward"') for one in (plain, changed)]
        assert found == [0, 2]
    elif file == "metrics.jsonl":
        counts = [sum("eval_reward" in row for row in tiny.records(one)) for one in (plain, changed)]
        every = {"training.evaluate_every": [2, 1], "training.evaluate_every_steps": [0, 2]}
        assert counts == every.get(key, [0, 1])
    else:
        assert [(one / file).exists() for one in (plain, changed)] == [False, True]


BASE = {"output": "x", "student": {"model": {"name": "a"}}, "teacher": {"model": "b"}, "data": {"train": "c"}}
SERVED = "http://127.0.0.1:8000/v1#m"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {}}, "teacher needs one of model, domains and cache, got none"),
        ({"teacher": {"model": "b", "domains": {"m": "c"}}}, "got model and domains"),
        ({"teacher": {"cache": "b", "domains": {"m": "c"}}}, "got domains and cache"),
        (
            {"teacher": {"model": SERVED}, "objective": {"kind": "gkd"}},
            "objective.kind gkd needs the teacher's whole distribution and so a local teacher",
        ),
        (
            {"teacher": {"domains": {"m": "b", "c": SERVED}}, "objective": {"kind": "gkd"}},
            "objective.kind gkd needs",
        ),
        (
            {"teacher": {"model": SERVED}, "sampling": {"temperature": 0.5}},
            "sampling.temperature must be 1 with a served teacher",
        ),
        (
            {"teacher": {"model": "b", "tokenizer": "c"}},
            "teacher.tokenizer has an effect with a served teacher",
        ),
        (
            {"teacher": {"model": "b", "served": {"server": "sglang"}}},
            "teacher.served has an effect with a served teacher only",
        ),
        (
            {"student": {"model": {"name": "a", "image_size": 32}}},
            "student.model.image_size has no effect on a language model",
        ),
        ({"student": {"model": {"name": "a", "pooling": "mean"}}}, "student.model.pooling has no effect"),
        ({"student": {"model": {"name": "a", "drop_path_rate": 0.1}}}, "student.model.drop_path_rate has no"),
        ({"student": {"model": {"name": "a"}, "tuning": "some"}}, "'adapter' or 'full'"),
        ({"training": {"sharding": "fsdp"}}, "'none' or 'fsdp2'"),
        ({"training": {"sharding": "fsdp2"}}, "adapters are too small for that: set student.tuning full"),
        (
            {
                "student": {"model": {"name": "a"}, "tuning": "full"},
                "training": {"sharding": "fsdp2", "drop_last": False},
            },
            "training.drop_last must be true with training.sharding fsdp2, got false",
        ),
        ({"rollout": {"stale": True}}, "rollout.stale has an effect with rollout.model only: remove it"),
        ({"rollout": {"served": {"attempts": 2}}}, "rollout.served has an effect with rollout.model only"),
        ({"rollout": {"model": "models/small"}}, "rollout.model must be the address of a server, http://"),
        ({"rollout": {"model": SERVED, "importance_cap": 0.5}}, "greater than or equal to 1"),
        ({"rollout": {"model": SERVED, "refresh_steps": 0}}, "greater than or equal to 1"),
        (
            {"rollout": {"model": SERVED}, "teacher": {"cache": "b"}, "objective": {"kind": "fkl"}},
            "rollout.model has no effect with teacher.cache",
        ),
        (
            {"rollout": {"model": SERVED}, "sampling": {"temperature": 0.5}},
            "sampling.temperature must be 1 with rollout.model",
        ),
        (
            {"rollout": {"model": SERVED, "served": {"server": "sglang"}}},
            "rollout.served.server sglang cannot be given lora adapters while it serves: vllm takes adapters",
        ),
        (
            {"rollout": {"model": SERVED}, "adapter": {"method": "houlsby"}},
            "rollout.served.server vllm cannot be given houlsby adapters while it serves",
        ),
        (
            {"rollout": {"model": SERVED}, "student": {"model": {"name": "a"}, "tuning": "full"}},
            "rollout.served.server vllm cannot be given a whole student while it serves",
        ),
        ({"output": ""}, "at least 1 character"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"samples": 0}, "greater than or equal to 1"),
        ({"objective": {"kind": "ppo"}}, "'opd', 'gkd', 'fkl', 'eopd', 'reopold' or 'tropd'"),
        ({"objective": {"floor": 0.0}}, "less than 0"),
        ({"objective": {"top_k": 0}}, "greater than or equal to 1"),
        ({"objective": {"top_k": 5000}}, "less than or equal to 4096"),
        ({"objective": {"jsd_beta": 1.1}}, "less than or equal to 1"),
        ({"objective": {"keep_entropy": 0.0}}, "greater than 0"),
        ({"objective": {"exploration": 1.5}}, "less than or equal to 1"),
        ({"objective": {"prefix_weight": -0.1}}, "greater than or equal to 0"),
        ({"objective": {"threshold": float("nan")}}, "finite number"),
        ({"guidance": {"responses": "always"}}, "'none' or 'live'"),
        ({"guidance": {"steps": 0}}, "greater than or equal to 1"),
        ({"sampling": {"stop": [""]}}, "must hold texts that are not empty"),
        ({"data": {}}, "data.train"),
        ({"surplus": 1}, "Extra inputs are not permitted"),
    ],
)
def test_recipes_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValidationError) as raised:
        DistillConfig.model_validate({**BASE, **changes})
    assert message in str(raised.value)


def test_a_part_of_a_section_keeps_the_others_defaults():
    config = DistillConfig.model_validate(
        {**BASE, "training": {"max_steps": 3}, "adapter": {"bits": 32}, "objective": {"kind": "opd"}}
    )
    whole = DistillConfig.model_validate(BASE)
    assert config.training == whole.training.model_copy(update={"max_steps": 3})
    assert config.adapter == whole.adapter.model_copy(update={"bits": 32})
    assert (whole.training.learning_rate, whole.training.epochs) == (5e-6, 1)
    assert (whole.training.warmup_epochs, whole.training.weight_decay) == (0, 0)
    assert (whole.adapter.method, whole.adapter.dropout) == ("lora", 0)


def test_the_paper_settings_are_the_defaults():
    objective = DistillConfig.model_validate(BASE).objective
    assert (objective.kind, objective.trust, objective.outlier) == ("tropd", "bernoulli", "fkl")
    assert (objective.teacher_tokens, objective.prefix_weight, objective.floor) == (64, 0.001, -1.386)
    assert (objective.entropy_threshold, objective.tail, objective.jsd_beta) == (0.8, "none", 0.5)


@pytest.mark.parametrize(
    ("objective", "tokens"),
    [
        ({"kind": "tropd"}, 64),
        ({"kind": "tropd", "top_k": 7}, 7),
        ({"kind": "tropd", "outlier": "mask"}, 0),
        ({"kind": "tropd", "outlier": "clip", "top_k": 7}, 0),
        ({"kind": "fkl"}, 64),
        ({"kind": "eopd"}, 16),
        ({"kind": "opd"}, 0),
        ({"kind": "gkd"}, 0),
        ({"kind": "reopold"}, 0),
    ],
)
def test_likeliest_tokens_are_asked_for_where_they_are_needed(objective, tokens):
    assert ObjectiveConfig(**objective).teacher_tokens == tokens


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"student": {"model": {"name": "a"}, "tuning": "full"}},
        {"teacher": {"model": SERVED, "tokenizer": "t"}},
        {"teacher": {"domains": {"m": "b"}}, "objective": {"kind": "reopold"}},
        {"guidance": {"responses": "live"}, "objective": {"kind": "gkd"}},
        {"rollout": {"model": SERVED, "refresh_steps": 2}},
        {"rollout": {"model": SERVED, "stale": True, "served": {"server": "sglang"}}},
    ],
)
def test_the_effective_settings_make_the_same_recipe_again(changes):
    config = DistillConfig.model_validate({**BASE, **changes})
    again = DistillConfig.model_validate(effective(config))
    assert effective(again) == effective(config)
    whole = changes.get("student", {}).get("tuning") == "full"
    assert bool(effective(config).get("adapter")) == (not whole)


def test_a_binary_head_is_refused(recipe):
    config = recipe(adapter__head="binary")
    with pytest.raises(ConfigError, match=r"adapter.head binary needs a linear classifier"):
        run(config, tiny.context(config))
    assert not Path(config.output).exists()
