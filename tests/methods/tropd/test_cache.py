"""A cache says what its teacher says, is refused where it does not fit, and is gone on with after a kill."""

import json
from pathlib import Path

import pytest
import torch

from petkit.errors import ArtifactError, ConfigError, InputError
from petkit.methods.tropd import filling
from petkit.methods.tropd.cache import MANIFEST, log_tail, pack_rows, read_cache, shard_name, unpack_rows
from petkit.methods.tropd.config import DistillConfig
from petkit.methods.tropd.filling import fill
from petkit.methods.tropd.recipe import plan, prepare, run
from petkit.methods.tropd.step import Rollout
from tests.methods.tropd import tiny


@pytest.fixture
def filled(recipe, tmp_path):
    """`filled("student", top_k=4)` gives the folder of a cache of the recipe's prompts."""

    def make(writer="teacher", top_k=6, name="cache", **changes):
        config = recipe(**changes)
        fill(config, tiny.context(config), tmp_path / name, writer, top_k)
        return tmp_path / name

    return make


def from_cache(config, folder, **objective):
    content = config.model_dump(mode="json")
    content["teacher"] = {"cache": str(folder)}
    content["objective"] = {"kind": "fkl", "top_k": 6, **objective}
    return DistillConfig(**content)


def test_rows_survive_the_disk(filled):
    folder = filled()
    manifest, rows = read_cache(folder)
    assert len(rows) == 8 * manifest.samples == 16
    content = pack_rows(rows)
    again = unpack_rows(content, folder)
    for one, other in zip(rows, again, strict=True):
        assert (one.number, one.finished) == (other.number, other.finished)
        for name in ("prompt", "token_ids", "log_probs", "entropy", "top_ids", "top_log_probs", "tail"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    assert pack_rows(again) == content


@pytest.mark.parametrize("writer", ["teacher", "student"])
def test_a_cache_says_what_its_teacher_says(recipe, filled, writer):
    folder = filled(writer)
    live = recipe()
    config = from_cache(live, folder, kind="fkl" if writer == "teacher" else "tropd")
    here, cached = prepare(live, tiny.context(live)), prepare(config, tiny.context(config))
    batch = [cached.train[index] for index in range(4)]
    rollout = cached.step.roll_out(cached.model, batch)
    sequences = cached.step.pack(rollout)
    datasets = [prompt.question.dataset for prompt in rollout.prompts]
    own, other = (one.teachers.scores(sequences, datasets, 6, 1.0) for one in (here, cached))
    for name in ("log_probs", "entropy", "top_log_probs"):
        torch.testing.assert_close(getattr(own, name), getattr(other, name), atol=2e-6, rtol=1e-5)
    assert torch.equal(own.top_ids, other.top_ids)
    assert cached.teachers.recorded(None) == min(64, cached.teachers.cached.manifest.top_k)
    given = sequences.mask if writer == "teacher" else torch.zeros_like(sequences.mask)
    assert torch.equal(sequences.prefix_mask, given)


def test_every_response_comes_in_its_turn(recipe, filled):
    config = from_cache(recipe(), filled(samples=3))
    content = config.model_dump(mode="json") | {"samples": 1}
    ready = prepare(DistillConfig(**content), tiny.context(config))
    seen = []
    for step in range(6):
        ready.step.begin(step)
        (one,) = ready.step.roll_out(ready.model, [ready.train[2]]).completions
        seen.append(one.tokens)
    _, rows = read_cache(ready.teachers.cached.folder)
    wanted = [tuple(row.token_ids.tolist()) for row in rows if row.number == 2]
    assert seen == wanted * 2


def test_each_data_sets_teacher_is_asked_of_equal_responses(recipe, models, tmp_path):
    files = [
        Path(tiny.write_questions(tmp_path / f"{name}.jsonl", dataset=name)) for name in ("math", "code")
    ]
    both = tmp_path / "both.jsonl"
    both.write_text("".join(file.read_text() for file in files))
    domains = {"math": models(1), "code": models(2)}
    # Towards temperature 0 the student says the same to the same question.
    live = recipe(
        data__train=str(both),
        teacher={"domains": domains},
        samples=1,
        sampling__temperature=1e-3,
        objective__kind="opd",
    )
    fill(live, tiny.context(live), tmp_path / "cache", "student", 6)
    config = from_cache(live, tmp_path / "cache", kind="opd", top_k=None)
    here, cached = prepare(live, tiny.context(live)), prepare(config, tiny.context(config))
    rollout = cached.step.roll_out(cached.model, [cached.train[number] for number in range(16)])
    answers = [one.tokens for one in rollout.completions]
    assert answers[:8] == answers[8:]
    sequences = cached.step.pack(rollout)
    datasets = [prompt.question.dataset for prompt in rollout.prompts]
    assert datasets == ["math"] * 8 + ["code"] * 8
    own, other = (one.teachers.scores(sequences, datasets, 6, 1e-3) for one in (here, cached))
    torch.testing.assert_close(own.log_probs, other.log_probs, atol=2e-3, rtol=1e-5)
    assert not torch.allclose(other.log_probs[:8], other.log_probs[8:])


def test_the_longest_response_of_a_cache_bounds_the_plan(recipe, filled):
    config = from_cache(recipe(), filled())
    short = DistillConfig(**config.model_dump(mode="json") | {"sampling": {"max_new_tokens": 2}})
    planned = plan(short, tiny.context(short))
    longest = max(len(row.token_ids) for row in read_cache(Path(config.teacher.cache))[1])
    assert longest > 2
    assert planned["most_tokens"] == planned["responses"] * longest


def test_another_students_responses_are_told_of(recipe, filled, models):
    folder = filled("student")
    config = from_cache(recipe(student=models(5)), folder, kind="opd", top_k=None)
    run(config, tiny.context(config))
    sha256 = read_cache(folder)[0].student_sha256
    card = (Path(config.output) / "README.md").read_text()
    assert f"on the responses of another student (sha256 `{sha256}`), kept in a cache" in card


def test_a_full_cache_asks_nobody(filled, monkeypatch):
    folder = filled()
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    monkeypatch.delattr(filling, "_rows")
    filled()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("max_new_tokens", 3, r"5 -> 3"),
        ("top_p", 0.5, r"1\.0 -> 0\.5"),
        ("top_k", 2, r"0 -> 2"),
        ("stop", ["x"], r"\(\) -> \('x',\)"),
        ("temperature", 0.5, r"1\.0 -> 0\.5"),
    ],
)
def test_a_cache_is_not_gone_on_with_under_other_draws(filled, key, value, told):
    filled()
    with pytest.raises(ConfigError, match=rf"of other settings \(sampling\.{key}: {told}\): choose another"):
        filled(**{f"sampling__{key}": value})
    filled(sampling__batch_size=3)


def test_tails_are_what_is_left():
    top = torch.tensor([[0.5, 0.25], [0.75, 0.25]]).log()
    assert log_tail(top)[0] == pytest.approx(torch.tensor(0.25).log().item())
    assert log_tail(top)[1] < -15


@pytest.mark.parametrize("kind", ["fkl", "opd", "eopd", "reopold", "tropd"])
def test_students_learn_from_a_cache(recipe, filled, kind):
    folder = filled("teacher" if kind == "fkl" else "student")
    config = from_cache(recipe(), folder, kind=kind, top_k=6 if kind in ("fkl", "eopd", "tropd") else None)
    result = run(config, tiny.context(config))
    assert (result["status"], result["steps"]) == ("completed", 4)
    lineage = json.loads((Path(config.output) / "petkit.json").read_text())["lineage"]
    assert "teacher" in lineage[0]["inputs"]
    # Who was asked, and not nobody.
    card = (Path(config.output) / "README.md").read_text()
    assert f"| teacher | `{recipe().teacher.model}` |" in card
    whose = "the teacher's responses" if kind == "fkl" else "its own responses before it was trained"
    assert f"distilled from a teacher on {whose}, kept in a cache" in card
    rows = [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert all({"forward_kl", "entropy", "teacher_entropy"} <= set(row) for row in steps)
    assert all(("reverse_kl" in row) == (kind != "fkl") for row in steps)
    assert all(row["forward_kl"] > 0 for row in steps)


@pytest.mark.parametrize(("writer", "kind"), [("teacher", "fkl"), ("student", "opd")])
def test_a_cache_names_the_teacher_that_was_asked(recipe, filled, writer, kind):
    here = recipe()
    wanted = prepare(here, tiny.context(here)).teachers.facts()
    config = from_cache(here, filled(writer), kind=kind)
    ready = prepare(config, tiny.context(config))
    assert ready.teachers.facts() == {"": wanted[""] | {"cache": ready.teachers.cached.sha256}}
    manifest = ready.teachers.cached.manifest
    assert manifest.student_sha256 == (ready.loaded.base_sha256 if writer == "student" else None)


def test_a_cache_is_gone_on_with(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(filling, "SHARD_PROMPTS", 3)
    config = recipe()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fill(config, tiny.context(config), whole, "teacher", 4)
    asked, write = [], filling._rows

    def dying(*arguments):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(1)
        return write(*arguments)

    monkeypatch.setattr(filling, "_rows", dying)
    with pytest.raises(KeyboardInterrupt):
        fill(config, tiny.context(config), broken, "teacher", 4)
    monkeypatch.setattr(filling, "_rows", write)
    assert len(list(broken.glob("scores-*"))) == 2
    with pytest.raises(ConfigError, match=r"the responses of 6 of \d+ prompts: fill it to the end"):
        prepare(from_cache(config, broken), tiny.context(config))
    # A shard that was damaged meanwhile is made again.
    (broken / shard_name(0)).write_bytes(b"broken")
    fill(config, tiny.context(config), broken, "teacher", 4)
    for file in whole.iterdir():
        assert (broken / file.name).read_bytes() == file.read_bytes()


def test_what_does_not_fit_is_refused(recipe, filled, tmp_path):
    folder, config = filled(), recipe()
    with pytest.raises(ConfigError, match=r"is a cache of other settings \(samples: 2 -> 3\)"):
        filled(samples=3)
    for changes, message in (
        ({"objective": {"kind": "tropd", "top_k": 6}}, r"objective\.kind must be fkl with responses that"),
        ({"objective": {"kind": "fkl", "top_k": 7}}, r"objective\.top_k must be at most 6"),
        ({"sampling": {"temperature": 0.5}}, r"is a cache of other sampling\.temperature: it has 1\.0"),
        ({"data": {"train": config.data.train, "train_size": 4}}, "is a cache of other prompts"),
    ):
        other = DistillConfig(**from_cache(config, folder).model_dump(mode="json") | changes)
        with pytest.raises(ConfigError, match=message):
            prepare(other, tiny.context(other))
    with pytest.raises(InputError, match="must be a cache of `petkit distill cache`"):
        prepare(from_cache(config, tmp_path), tiny.context(config))


def test_altered_and_missing_shards_are_refused(filled):
    folder = filled()
    raw = bytearray((folder / shard_name(0)).read_bytes())
    raw[-1] ^= 1
    (folder / shard_name(0)).write_bytes(raw)
    with pytest.raises(ArtifactError, match="was altered"):
        read_cache(folder)
    (folder / shard_name(0)).unlink()
    with pytest.raises(ArtifactError, match="is missing, which"):
        read_cache(folder)
    (folder / MANIFEST).write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(ArtifactError, match="by another version of petkit: make the cache anew"):
        read_cache(folder)
    (folder / MANIFEST).write_text('{"schema_version": 2}')
    with pytest.raises(ArtifactError, match="is broken"):
        read_cache(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teachers": {}}, "cache.json is broken: teachers: Dictionary should have at least 1 item"),
        ({"teachers": {"": {}}}, r"cache.json is broken: teachers\.\.id: Field required"),
        ({"teachers": {"": {"id": "x"}}}, r"cache.json is broken: teachers\.\.sha256: Field required"),
        ({"top_k": 9}, "must have the 9 likeliest tokens that cache.json says, got 6"),
        ({"samples": 0}, "cache.json is broken: samples: "),
        ({"schema_version": None}, "was written by another version of petkit"),
    ],
)
def test_a_broken_description_is_refused(filled, changes, message):
    folder = filled()
    content = json.loads((folder / MANIFEST).read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not None}
    (folder / MANIFEST).write_text(json.dumps(kept))
    with pytest.raises(ArtifactError, match=message):
        read_cache(folder)
    (folder / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match=r"cache\.json is broken: Invalid JSON"):
        read_cache(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"kind": "gkd"}}, "gkd needs the teacher's whole distribution, of which a cache"),
        ({"guidance": {"responses": "live"}}, "guidance.responses live needs a teacher that writes"),
    ],
)
def test_what_a_cache_cannot_do(recipe, changes, message):
    content = from_cache(recipe(), "cache").model_dump(mode="json") | changes
    with pytest.raises(ValueError, match=message):
        DistillConfig(**content)


def test_a_cache_is_not_made_of_a_cache(recipe, filled, tmp_path):
    config = from_cache(recipe(), filled())
    with pytest.raises(ConfigError, match="must name who is asked"):
        fill(config, tiny.context(config), tmp_path / "again", "teacher", None)


def test_rollouts_are_taken_as_they_are(recipe, filled):
    config = from_cache(recipe(), filled())
    ready = prepare(config, tiny.context(config))
    found = ready.step.roll_out(ready.model, [ready.train[0]])
    assert isinstance(found, Rollout)
    assert all(one.prefix == len(one.tokens) for one in found.completions)
