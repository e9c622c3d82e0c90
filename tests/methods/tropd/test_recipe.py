"""Whole runs: from a recipe to an artifact that behaves like the trained student."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from petkit.artifacts.verification import verify
from petkit.configuration.effects import effective
from petkit.errors import ConfigError, InputError, PetkitError
from petkit.methods.tropd.algorithm import prefix_length
from petkit.methods.tropd.config import DistillConfig
from petkit.methods.tropd.evaluation import evaluate_student
from petkit.methods.tropd.objectives import REGISTRY
from petkit.methods.tropd.recipe import plan, prepare, run
from petkit.methods.tropd.step import MEASURES, Rollout
from petkit.methods.tropd.teachers import RECORDED
from petkit.models.loading import load_adapted
from petkit.ops.divergence import divergence
from petkit.rollout.sampling import Completion
from petkit.rollout.scoring import Head
from petkit.training.checkpoint import newest
from tests.methods.tropd import tiny

TENSORS = "adapter_packed.safetensors"
FAST = {"training__epochs": 1}


def go(config, **more):
    return run(config, tiny.context(config, **more))


def weights(folder):
    return (Path(folder) / TENSORS).read_bytes()


def first_step(config):
    """The first step's output, and what it was made of."""
    ready = prepare(config, tiny.context(config))
    ready.model.eval()
    ready.step.begin(0)
    batch = [ready.train[number] for number in range(4)]
    return ready, batch, ready.step(ready.model, batch)


@pytest.mark.parametrize("bits", [1, 32])
def test_a_student_is_trained_and_comes_back(recipe, tmp_path, bits):
    questions = tiny.write_questions(tmp_path / "held.jsonl", tiny.QUESTIONS[:5])
    config = recipe(adapter__bits=bits, data__validation=questions, training__gradient_accumulation=2)
    planned = plan(config, tiny.context(config))
    assert not Path(config.output).exists()
    result = go(config)
    folder = Path(config.output)
    assert (result["status"], result["objective"], result["stopped"]) == ("completed", "tropd", None)
    assert json.loads((folder / "result.json").read_text()) == result
    assert all(check.ok for check in verify(folder))
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    # What was announced is what was done.
    assert planned["steps"]["total"] == result["steps"] == result["total_steps"] == 4
    assert planned["prompts"] == {"train": 8, "validation": 5}
    assert (planned["responses"], planned["most_tokens"]) == (32, 160)
    for key in ("bytes", "trainable_parameters", "device", "processes"):
        assert planned[key] == result[key]
    if bits == 1:
        assert result["bytes"]["adapter"] < 512 * 4 / 8
    for row in tiny.records(folder):
        assert set(MEASURES) - {"unguided_reward"} <= set(row)
        assert row["tokens_per_second"] / row["examples_per_second"] == pytest.approx(
            row["response_length"] * 2
        )
        assert all(0 <= row[name] <= 1 for name in ("reward", "outlier_ratio", "trusted", "finished"))
        assert (row["prefix_length"], row["response_length"] > 0) == (0, True)
    # The artifact measures as the run did.
    ready = prepare(config, tiny.context(config))
    again = evaluate_student(ready.step.of(load_adapted(folder, mode="packed").model), ready.validation)
    mine, theirs = again.payload(), dict(result["after"])
    assert mine.pop("tokens_per_second") > 0 < theirs.pop("tokens_per_second")
    assert mine.pop("interval") == theirs.pop("interval")
    assert mine == pytest.approx(theirs)
    assert result["before"]["n"] == 5
    card = (folder / "README.md").read_text()
    assert f"lora, {bits} bit" in card
    assert "| objective | tropd |" in card
    assert "in nats, 5 answers" in card


@pytest.mark.parametrize(("kind", "learning"), [("gkd", {"jsd_beta": 0.0}), ("fkl", {"top_k": 15})])
def test_learning_comes_nearer_to_the_teacher(recipe, tmp_path, kind, learning):
    config = recipe(
        objective={"kind": kind, **learning},
        data__validation=str(tmp_path / "questions.jsonl"),
        training__epochs=15,
        training__learning_rate=5e-2,
        adapter__targets=("q", "k", "v", "o", "mlp"),
    )
    result = go(config)
    assert result["steps"] == 30
    assert result["after"]["forward_kl"] < 0.6 * result["before"]["forward_kl"]
    rows = tiny.records(config.output)
    early, late = (sum(row["loss"] for row in part) for part in (rows[:5], rows[-5:]))
    assert late < 0.6 * early


@pytest.mark.parametrize("kind", REGISTRY)
def test_every_objective_runs(recipe, kind):
    precision = "bf16" if kind in ("gkd", "tropd") else "fp32"
    config = recipe(objective__kind=kind, training__precision=precision, **FAST)
    assert go(config)["status"] == "completed"
    rows = tiny.records(config.output)
    assert len(rows) == 2
    assert all(row["gradient_norm"] > 0 for row in rows)
    assert all(("trusted" in row) == (kind == "tropd") for row in rows)
    assert all(row["forward_kl"] > 0 and row["reverse_kl"] != 0 for row in rows)
    assert all(check.ok for check in verify(Path(config.output)))


@pytest.mark.parametrize(("outlier", "trust"), [("mask", "expected"), ("clip", "hard"), ("rkl", "bernoulli")])
def test_every_outlier_runs(recipe, outlier, trust):
    config = recipe(objective={"outlier": outlier, "trust": trust}, training__max_steps=1)
    assert go(config)["stopped"] == "max_steps"
    (row,) = tiny.records(config.output)
    assert row["forward_kl"] > 0
    if trust == "expected":
        assert row["trusted"] == pytest.approx(1 - row["outlier_ratio"], abs=1e-6)


def test_a_trust_region_with_opd_outside_trains_as_opd(recipe, tmp_path):
    for name, objective in (("opd", {"kind": "opd"}), ("tropd", {"kind": "tropd", "outlier": "rkl"})):
        go(recipe(output=tmp_path / name, objective=objective))
    opd, tropd = (load_file(tmp_path / name / TENSORS) for name in ("opd", "tropd"))
    assert opd.keys() == tropd.keys()
    # AdamW divides by the gradient's size, and so enlarges what rounding makes of the smallest ones.
    assert all((opd[name] - tropd[name]).abs().max() < 1e-3 for name in opd)


def test_the_first_loss_is_that_of_the_models_own_logits(recipe):
    """OPD, by hand: the responses that were drawn, each scored alone from whole logits in float64."""
    config = recipe(objective__kind="opd", sampling__temperature=1.3)
    ready, batch, output = first_step(config)
    rollout = ready.step.roll_out(ready.model, batch)
    total, forward, count, teacher = 0.0, 0.0, 0, ready.teachers.of("").head.model
    for prompt, completion in zip(rollout.prompts, rollout.completions, strict=True):
        assert completion.prompt == prompt.ids
        ids = torch.tensor([[*prompt.ids, *completion.tokens]])
        with torch.no_grad():
            sides = [one(input_ids=ids).logits[0, len(prompt.ids) - 1 : -1] for one in (ready.model, teacher)]
        chosen = torch.tensor(completion.tokens)[:, None]
        whole = [torch.log_softmax(side.double() / 1.3, -1) for side in sides]
        own, other = (side.gather(-1, chosen) for side in whole)
        total += float((own - other).sum())
        forward += grouped_forward_kl(*whole, RECORDED)
        count += len(chosen)
    assert len(rollout.completions) == 8
    assert output.count == count
    assert float(output.loss.detach()) == pytest.approx(total, rel=1e-4)
    assert output.measures["forward_kl"] == pytest.approx((forward, count), rel=1e-3)


def grouped_forward_kl(own, other, k):
    """Sum of sum_v p_v (log p_v - log q_v) over the likeliest k of p and all others as one."""
    top = other.topk(min(k, other.shape[-1])).indices
    total = 0.0
    for q, p, kept in zip(own, other, top, strict=True):
        q, p = ([*side[kept].exp().tolist(), 1 - float(side[kept].exp().sum())] for side in (q, p))
        total += sum(b * math.log(b / a) for a, b in zip(q, p, strict=True) if b > 1e-9)
    return total


def test_gkd_is_the_divergence_of_the_models_own_logits(recipe):
    config = recipe(objective={"kind": "gkd", "jsd_beta": 0.3})
    ready, batch, output = first_step(config)
    rollout = ready.step.roll_out(ready.model, batch)
    total, forward, teacher = 0.0, 0.0, ready.teachers.of("").head.model
    for prompt, completion in zip(rollout.prompts, rollout.completions, strict=True):
        ids = torch.tensor([[*prompt.ids, *completion.tokens]])
        with torch.no_grad():
            sides = [one(input_ids=ids).logits[0, len(prompt.ids) - 1 : -1] for one in (ready.model, teacher)]
        total += float(divergence(*(side.contiguous() for side in sides), 0.3).loss.sum())
        own, other = (side.double().log_softmax(-1) for side in sides)
        forward += float((other.exp() * (other - own)).sum())
    assert float(output.loss.detach()) == pytest.approx(total, rel=1e-4)
    assert output.measures["forward_kl"] == pytest.approx((forward, output.count), rel=1e-4)


@pytest.mark.parametrize("kind", ["opd", "gkd"])
def test_the_student_reads_the_responses_once(recipe, monkeypatch, kind):
    ready, batch, _ = first_step(recipe(objective={"kind": kind}))
    own, passes = ready.step.head, []
    monkeypatch.setattr(own, "states", lambda sequences: passes.append(1) or Head.states(own, sequences))
    ready.step(ready.model, batch)
    assert len(passes) == 1


def test_a_student_that_is_its_teacher_has_nothing_to_learn(recipe, models):
    for kind in ("opd", "gkd", "tropd"):
        _, _, output = first_step(recipe(objective__kind=kind, from_teacher=models(0)))
        assert float(output.loss.detach()) == pytest.approx(0, abs=1e-5)
        outside, count = output.measures["outlier_ratio"]
        assert outside / count < 1e-6


def test_draws_are_functions_of_seed_step_and_prompt(recipe):
    config = recipe()
    ready, batch, _ = first_step(config)

    def drawn(step, chosen):
        ready.step.begin(step)
        return [one.tokens for one in ready.step.roll_out(ready.model, chosen).completions]

    whole = drawn(3, batch)
    assert whole == drawn(3, batch)
    assert whole != drawn(4, batch)
    assert drawn(3, batch[2:]) == whole[4:]
    assert drawn(3, batch[::-1])[-2:] == whole[:2]
    # The responses to one prompt are different draws.
    assert any(whole[place] != whole[place + 1] for place in range(0, 8, 2))
    other, batch, _ = first_step(recipe(seed=1))
    assert [one.tokens for one in other.step.roll_out(other.model, batch).completions] != drawn(0, batch)


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(recipe, tmp_path):
    changes = {"adapter__dropout": 0.3, "adapter__bits": 1, "guidance__responses": "live"}

    def told(folder):
        rows = tiny.records(folder)
        return [{key: row[key] for key in row if not key.endswith("_per_second")} for row in rows]

    whole = tmp_path / "whole"
    go(recipe(output=whole, **changes))
    for stop in (1, 3):
        folder = tmp_path / f"cut-{stop}"
        assert go(recipe(output=folder, training__max_steps=stop, **changes))["stopped"] == "max_steps"
        result = go(recipe(output=folder, **changes), resume=newest(folder))
        assert (result["stopped"], result["steps"]) == (None, 4)
        assert weights(folder) == weights(whole)
        assert told(folder) == told(whole)


def test_a_resumed_run_shares_its_settings(recipe, models):
    config = recipe(training__max_steps=1)
    go(config)
    saved = newest(Path(config.output))
    prepare(recipe(), tiny.context(config, resume=saved))
    for changes, message in (
        ({"objective__kind": "opd"}, r"objective.kind: 'tropd' -> 'opd'"),
        ({"from_teacher": models(2)}, r"teachers.sha256: "),
        ({"student": models(2)}, r"student.sha256: "),
        ({"data__train_size": 7}, r"data.sha256: "),
        ({"data__suffix": " the"}, r"data.sha256: "),
        ({"samples": 3}, r"samples: 2 -> 3"),
        ({"sampling__temperature": 0.5}, r"sampling.temperature: 1.0 -> 0.5"),
        ({"guidance__responses": "live"}, r"guidance.responses: 'none' -> 'live'"),
    ):
        other = recipe(**changes)
        with pytest.raises(ConfigError, match=message):
            plan(other, tiny.context(other, resume=saved))


def test_guidance_is_recorded_and_comes_to_its_end(recipe):
    config = recipe(
        guidance__responses="live",
        sampling__max_new_tokens=16,
        training__epochs=3,
        training__learning_rate=1e-4,
    )
    go(config)
    rows = tiny.records(config.output)
    lengths = [row["prefix_length"] for row in rows]
    bounds = [prefix_length(step, 6, 16) for step in range(6)]
    assert all(0 <= length <= bound for length, bound in zip(lengths, bounds, strict=True))
    assert sum(lengths[:3]) > sum(lengths[3:])
    assert all(row["response_length"] >= row["prefix_length"] + 1 for row in rows)


def test_responses_that_a_teacher_began_have_a_reward_of_their_own(recipe):
    config = recipe(guidance__responses="live", sampling__max_new_tokens=12, seed=1)
    ready, batch, _ = first_step(config)
    # A token is given with some of the prompts, and nothing with the others.
    ready.step.begin(3)
    rollout = ready.step.roll_out(ready.model, batch)
    measures = ready.step(ready.model, batch).measures
    free = [one.prefix == 0 for one in rollout.completions]
    assert 0 < sum(free) < len(free)
    rewards = ready.step.rewards(rollout)
    assert measures["reward"] == (sum(rewards), len(rewards))
    assert measures["unguided_reward"] == (
        sum(reward for reward, own in zip(rewards, free, strict=True) if own),
        sum(free),
    )
    assert "unguided_reward" not in first_step(recipe())[2].measures


def test_guidance_ends_after_its_steps(recipe):
    config = recipe(guidance={"responses": "live", "steps": 2}, sampling__max_new_tokens=16)
    go(config)
    lengths = [row["prefix_length"] for row in tiny.records(config.output)]
    assert lengths[2:] == [0, 0]
    assert lengths[0] > 0


def test_all_responses_to_a_prompt_begin_alike(recipe):
    config = recipe(guidance__responses="live", sampling__max_new_tokens=12)
    ready, batch, _ = first_step(config)
    found = ready.step.roll_out(ready.model, batch).completions
    begun = [one.tokens[: one.prefix] for one in found]
    assert begun[::2] == begun[1::2]
    assert any(begun)
    assert all(len(one.tokens) > one.prefix for one in found)
    assert not any(tiny.END in one for one in begun)
    # Each prompt draws a length of its own.
    assert len({one.prefix for one in found}) > 1


@pytest.mark.parametrize("ends", [3, 7])
def test_a_beginning_holds_no_end_of_either_side(recipe, models, ends):
    """A teacher that ends texts by another token writes what ends the student's."""
    config = recipe(
        guidance__responses="live", sampling__max_new_tokens=20, from_teacher=models(1, end=ends, spread=1.0)
    )
    ready, batch, _ = first_step(config)
    for step in range(3):
        ready.step.begin(step % 3)
        for one in ready.step.roll_out(ready.model, batch).completions:
            assert tiny.END not in one.tokens[: one.prefix]
            assert len(one.tokens) > one.prefix
        batch = [ready.train[(step + place) % 8] for place in range(4)]


def test_a_beginning_leaves_room_in_the_context(recipe, models):
    """Prompts of 5 tokens in a context of 8: a teacher that never ends would fill it."""
    shape = {"context": 8, "end": 14}
    config = recipe(
        guidance__responses="live",
        sampling__max_new_tokens=6,
        student=models(0, **shape),
        from_teacher=models(1, **shape),
        training__epochs=1,
    )
    ready = prepare(config, tiny.context(config))
    longest = max(ready.train.prompts, key=lambda one: len(one.ids))
    for step in range(30):
        ready.step.begin(0)
        ready.step.config = config.model_copy(update={"seed": step})
        (one, *_) = ready.step.roll_out(ready.model, [(step, longest)]).completions
        assert one.prefix < len(one.tokens) <= 8 - len(longest.ids)


def test_stops_end_responses_and_beginnings(recipe):
    config = recipe(
        guidance__responses="live",
        sampling={"max_new_tokens": 20, "stop": ["cat", "on mat"], "batch_size": 3},
    )
    ready, batch, _ = first_step(config)
    for seed in range(5):
        ready.step.config = config.model_copy(update={"seed": seed})
        found = ready.step.roll_out(ready.model, batch).completions
        assert any(one.stopped for one in found)
        for one in found:
            begun = ready.step.writer.decode(one.tokens[: one.prefix])
            assert "cat" not in begun
            assert "cat" not in ready.step.text(one)


def test_prompts_are_judged_by_the_teacher_of_their_domain(recipe, models, tmp_path):
    rows = [tiny.QUESTIONS[:4], tiny.QUESTIONS[4:]]
    files = [
        Path(tiny.write_questions(tmp_path / f"{name}.jsonl", part, name))
        for name, part in zip(("math", "code"), rows, strict=True)
    ]
    both = tmp_path / "both.jsonl"
    both.write_text("".join(file.read_text() for file in files))
    # Tables of different sizes: what all three share counts.
    domains = {"math": models(1, rows=17), "code": models(2, rows=21)}
    for kind in ("tropd", "gkd"):
        config = recipe(
            objective__kind=kind, data__train=str(both), teacher={"domains": domains}, output=tmp_path / kind
        )
        ready, _, _ = first_step(config)
        batch = [ready.train[number] for number in (0, 5, 1, 6)]
        rollout = ready.step.roll_out(ready.model, batch)
        sequences = ready.step.pack(rollout)
        tokens, _ = ready.step.compare(sequences, rollout, 0)
        names = [prompt.question.dataset for prompt in rollout.prompts]
        assert names == ["math"] * 2 + ["code"] * 2 + ["math"] * 2 + ["code"] * 2
        for row, (name, one) in enumerate(zip(names, rollout.completions, strict=True)):
            model = ready.teachers.of(name).head.model
            ids = torch.tensor([[*one.prompt, *one.tokens]])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(one.prompt) - 1 : -1, :15]
            wanted = torch.log_softmax(logits, -1).gather(-1, torch.tensor(one.tokens)[:, None])[:, 0]
            torch.testing.assert_close(
                tokens.teacher_log_probs[row, : len(wanted)], wanted, rtol=1e-4, atol=1e-4
            )
        assert go(config)["status"] == "completed"
        assert all(check.ok for check in verify(tmp_path / kind))
    manifest = json.loads((tmp_path / "gkd" / "petkit.json").read_text())
    assert {"teacher math", "teacher code"} <= set(manifest["lineage"][0]["inputs"])
    unknown = recipe(data__train=str(both), teacher={"domains": {"math": models(1), "text": models(2)}})
    with pytest.raises(
        InputError, match=r"teacher.domains must name a teacher for data set 'code', got math, text"
    ):
        plan(unknown, tiny.context(unknown))


@pytest.mark.parametrize(("student", "teacher"), [(24, None), (None, 24), (32, 19)])
def test_tables_may_be_filled_up_to_different_sizes(recipe, models, student, teacher):
    config = recipe(
        student=models(0, rows=student),
        from_teacher=models(1, rows=teacher),
        guidance__responses="live",
        sampling={"max_new_tokens": 12, "temperature": 3.0},
    )
    assert go(config)["status"] == "completed"
    ready, batch, _ = first_step(config)
    shared = min(student or 15, teacher or 15)
    found = ready.step.roll_out(ready.model, batch).completions
    assert max(token for one in found for token in one.tokens) < shared


@pytest.mark.parametrize("kind", ["tropd", "gkd"])
def test_a_student_that_ends_at_once_is_taught_that(recipe, models, kind):
    config = recipe(objective__kind=kind, student=models(0, end_bias=1.0), guidance__responses="none")
    assert go(config)["status"] == "completed"
    row = tiny.records(config.output)[0]
    assert (row["response_length"], row["finished"], row["reward"]) == (1, 1, 0)
    ready, batch, _ = first_step(config)
    found = ready.step.roll_out(ready.model, batch).completions
    assert {one.tokens for one in found} == {(tiny.END,)}
    assert {ready.step.text(one) for one in found} == {""}


def test_a_teacher_that_ends_at_once_begins_nothing(recipe, models):
    config = recipe(from_teacher=models(1, end_bias=1.0), guidance__responses="live")
    assert go(config)["status"] == "completed"
    assert all(row["prefix_length"] == 0 for row in tiny.records(config.output))


def test_rewards_are_of_responses_with_known_answers(recipe, tmp_path):
    file = tmp_path / "partly.jsonl"
    file.write_text('{"question": "the cat", "answer": "dog"}\n{"question": "on"}\n')
    ready = prepare(recipe(data__train=str(file), training__batch_size=2), tiny.context(recipe()))
    words = ready.loaded.tokenizer.get_vocab()

    def completion(*text):
        return Completion((5,), tuple(words[word] for word in text), 0, finished=True)

    known, unknown = ready.train.prompts
    assert (known.question.answer, unknown.question.answer) == ("dog", None)
    rollout = Rollout(
        [known, known, unknown, known],
        [completion("dog", "</s>"), completion("cat", "</s>"), completion("dog"), completion("</s>")],
    )
    assert ready.step.rewards(rollout) == [1, 0, None, 0]


def test_without_answers_there_is_no_reward(recipe, tmp_path):
    file = tmp_path / "open.jsonl"
    file.write_text('{"question": "the cat"}\n' * 4)
    config = recipe(data__train=str(file))
    go(config)
    assert all("reward" not in row and "entropy" in row for row in tiny.records(config.output))
    config = recipe(data__train=str(file), data__validation=str(file))
    with pytest.raises(InputError, match="answer must be given"):
        plan(config, tiny.context(config))


def test_validation_selects_by_reward(recipe, tmp_path):
    questions = str(tmp_path / "questions.jsonl")
    config = recipe(
        data__validation=questions, training__select="validation", training__evaluate_every=1, **FAST
    )
    result = go(config)
    rows = [row for row in tiny.records(config.output) if "eval_reward" in row]
    assert [row["step"] for row in rows] == [2]
    assert {"eval_forward_kl", "eval_reverse_kl", "eval_response_length"} <= set(rows[0])
    assert result["best_step"] == 2
    config = recipe(training__select="validation")
    with pytest.raises(ConfigError, match=r"training.select validation needs prompts with answers"):
        plan(config, tiny.context(config))


def test_models_that_are_not_there_are_named_by_their_keys(recipe, tmp_path):
    here, gone = recipe(), str(tmp_path / "gone")
    for key, changes in (
        ("teacher.model", {"teacher": {"model": gone}}),
        ("teacher.domains.b", {"teacher": {"domains": {"a": here.teacher.model, "b": gone}}}),
        ("student.model.name", {"student": {"model": {"name": gone}}}),
    ):
        config = DistillConfig(**here.model_dump(mode="json") | changes)
        with pytest.raises(PetkitError, match=f"^{key} "):
            prepare(config, tiny.context(config))


def test_responses_longer_than_a_teachers_context_are_refused(recipe, models):
    config = recipe(from_teacher=models(3, context=9), sampling__max_new_tokens=5)
    with pytest.raises(
        InputError,
        match=r"max_new_tokens must be at most 4 behind the 5 tokens of question 2 of data.train, got 5: the",
    ):
        plan(config, tiny.context(config))
    config = recipe(from_teacher=models(3, context=10), sampling__max_new_tokens=5)
    plan(config, tiny.context(config))


def test_vocabularies_of_one_size_and_other_content_are_refused(recipe, models):
    words = [*tiny.WORDS[1:], tiny.WORDS[0]]
    config = recipe(from_teacher=models(1, words=words))
    with pytest.raises(
        InputError, match=r"must have one vocabulary, got 15 and 15 tokens of which 11 differ"
    ):
        plan(config, tiny.context(config))


def test_more_likeliest_tokens_than_there_are_are_refused(recipe):
    config = recipe(objective__top_k=16)
    with pytest.raises(ConfigError, match=r"objective.top_k must be at most 15, the tokens that student and"):
        plan(config, tiny.context(config))


@pytest.fixture
def broken(models, tmp_path):
    """A teacher with one weight that is no number."""
    folder = Path(shutil.copytree(models(1), tmp_path / "broken"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("changes", [{}, {"objective__kind": "gkd"}, {"guidance__responses": "live"}])
def test_a_teacher_without_a_distribution_ends_the_run(recipe, broken, changes):
    config = recipe(from_teacher=broken, **changes)
    with pytest.raises(
        PetkitError,
        match=r"(logits of the teacher .* must be finite|of the teacher .* must be a distribution), got nan",
    ) as raised:
        go(config)
    assert raised.value.exit_code == 1
    assert tiny.records(config.output) == []


def test_a_teacher_without_a_distribution_is_not_measured(recipe, broken, tmp_path):
    config = recipe(from_teacher=broken, data__validation=str(tmp_path / "questions.jsonl"))
    with pytest.raises(PetkitError, match="must be finite, got nan"):
        go(config)


def test_the_teacher_stays_as_it_was(recipe):
    config = recipe()
    ready, _, output = first_step(config)
    output.loss.backward()
    teacher = ready.teachers.of("").head.model
    assert not teacher.training
    assert all(not one.requires_grad and one.grad is None for one in teacher.parameters())
    assert any(one.grad is not None for one in ready.model.parameters())


def test_the_artifact_keeps_its_recipe(recipe):
    import yaml

    config = recipe(objective__kind="opd", training__max_steps=1)
    go(config)
    stored = yaml.safe_load((Path(config.output) / "config.yaml").read_text())
    assert stored == json.loads(json.dumps(effective(config)))
    assert stored["objective"] == {"kind": "opd"}


def test_a_linear_probe_is_refused(recipe):
    config = recipe(adapter={"method": "linear_probe"})
    with pytest.raises(ConfigError, match=r"adapter.method linear_probe trains a new head alone"):
        plan(config, tiny.context(config))
