"""Teachers behind servers say what the same models say here, and a server that is gone loses nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file

from petkit.errors import ConfigError, InputError
from petkit.methods.tropd.config import DistillConfig
from petkit.methods.tropd.recipe import run
from petkit.methods.tropd.teachers import grouped_entropy, load_teachers
from petkit.models.config import ModelConfig
from petkit.models.loading import load_model
from petkit.rollout.connection import ServerGone
from petkit.rollout.entropy import entropy_from_top
from petkit.rollout.scoring import pack
from petkit.training.checkpoint import newest
from petkit.training.context import RunContext
from tests.rollout.fault_server import serving
from tests.rollout.token_stub import drop, sglang, vllm
from tests.serving.text_models import WORDS, save_llama

PROMPTS = [[4, 5, 6], [7], [8, 9]]
RESPONSES = [[10, 11, 3], [12, 13, 14, 4], [5]]
STUBS = {"vllm": vllm, "sglang": sglang}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("teachers")
    save_llama(root / "student")
    teacher = save_llama(root / "teacher")
    other = load_model(ModelConfig(name=str(teacher)), "causal_lm")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    other.model.save_pretrained(teacher)
    rows = [{"question": f"{WORDS[i % 9]} {WORDS[i // 9]}"} for i in range(32)]
    (root / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture
def server():
    with serving() as found:
        yield found


def recipe(folders, server=None, **teacher):
    if server is not None:
        teacher = {"model": f"{server.url}#teacher", "tokenizer": str(folders / "teacher"), **teacher}
    return {
        "output": str(folders / "run"),
        "student": {"model": {"name": str(folders / "student")}},
        "adapter": {"method": "lora", "bits": 1, "bottleneck": 2, "dropout": 0.0},
        "teacher": teacher,
        "objective": {"kind": "tropd", "top_k": 4},
        "data": {"train": str(folders / "train.jsonl")},
        "sampling": {"max_new_tokens": 4},
        "samples": 1,
        "training": {"epochs": 1, "batch_size": 8, "warmup_epochs": 0, "learning_rate": 0.01},
    }


def teachers_of(folders, content):
    config = DistillConfig(**content)
    student = load_model(config.student.model, "causal_lm")
    return load_teachers(config, student, 0, torch.device("cpu"))


@pytest.mark.parametrize("kind", sorted(STUBS))
def test_a_served_teacher_says_what_the_model_says_here(folders, server, kind):
    here = teachers_of(folders, recipe(folders, model=str(folders / "teacher")))
    server.play(STUBS[kind](here.heads[0].model))
    away = teachers_of(folders, recipe(folders, server, served={"server": kind}))
    sequences = pack(PROMPTS, RESPONSES, [0, 0, 0], 0, torch.device("cpu"))
    own, other = (one.scores(sequences, ["", "", ""], 4, 1.0) for one in (here, away))
    assert torch.allclose(own.log_probs, other.log_probs, atol=1e-5)
    assert torch.equal(own.top_ids, other.top_ids)
    assert torch.allclose(own.top_log_probs, other.top_log_probs, atol=1e-5)
    assert (other.entropy <= own.entropy + 1e-5).all()
    assert not away.are_here
    assert (here.recorded(None), here.recorded(5), away.recorded(None)) == (64, 5, 0)


def test_grouped_entropies_are_those_of_one_token_after_the_other():
    generator = torch.Generator().manual_seed(0)
    top = torch.randn(20, 30, generator=generator).log_softmax(-1).topk(6).values
    wanted = [entropy_from_top(row.tolist(), 30).estimate for row in top]
    assert torch.allclose(grouped_entropy(top), torch.tensor(wanted), atol=1e-6)


def test_every_data_set_has_its_own_teacher(folders):
    names = {"sums": str(folders / "teacher"), "words": str(folders / "student")}
    both = teachers_of(folders, recipe(folders, domains=names))
    sequences = pack(PROMPTS, RESPONSES, [0, 0, 0], 0, torch.device("cpu"))
    found = both.scores(sequences, ["words", "sums", "words"], 3, 1.0)
    for name, rows in (("teacher", [1]), ("student", [0, 2])):
        alone = teachers_of(folders, recipe(folders, model=str(folders / name)))
        wanted = alone.scores(sequences, [""] * 3, 3, 1.0)
        for got, expected in zip(
            (found.log_probs, found.entropy, found.top_ids, found.top_log_probs),
            (wanted.log_probs, wanted.entropy, wanted.top_ids, wanted.top_log_probs),
            strict=True,
        ):
            torch.testing.assert_close(got[rows], expected[rows])
    with pytest.raises(InputError, match=r"teacher\.domains must name a teacher for data set 'other'"):
        both.of("other")


def test_a_served_teacher_needs_a_tokenizer_to_compare(folders, server):
    with pytest.raises(ConfigError, match=r"teacher\.tokenizer must name"):
        teachers_of(folders, recipe(folders, server, tokenizer=None))


def test_a_teacher_with_other_tokens_of_the_same_number_is_refused(folders, server, tmp_path):
    other = save_llama(tmp_path / "other")
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"cat"', '"cow"'))
    for content in (
        recipe(folders, model=str(other)),
        recipe(folders, server, tokenizer=str(other)),
    ):
        with pytest.raises(
            InputError, match="must have one vocabulary, got 15 and 15 tokens of which 2 differ"
        ):
            teachers_of(folders, content)


def test_what_needs_a_whole_distribution_refuses_a_server(folders, server):
    content = recipe(folders, server) | {"objective": {"kind": "gkd"}}
    with pytest.raises(ValueError, match="needs the teacher's whole distribution"):
        DistillConfig(**content)
    content = recipe(folders, server) | {"sampling": {"temperature": 0.7}}
    with pytest.raises(ValueError, match=r"sampling\.temperature must be 1 with a served teacher"):
        DistillConfig(**content)


def test_nothing_is_lost_when_the_server_is_gone(folders, server, tmp_path, caplog):
    here = teachers_of(folders, recipe(folders, model=str(folders / "teacher")))
    config = DistillConfig(**recipe(folders, server, served={"attempts": 1, "max_in_flight": 1}))
    good = vllm(here.heads[0].model)
    # Two steps of eight prompts, and one request of the third.
    server.play(*[good] * 17, drop)
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    with pytest.raises(ServerGone, match="1 of 8 requests are done"):
        run(config, RunContext(broken))
    assert "checkpoint-2: go on with --resume" in caplog.text
    server.play(good)
    assert run(config, RunContext(broken, resume=newest(broken)))["steps"] == 4
    run(config, RunContext(whole))
    one, other = (load_file(folder / "adapter_packed.safetensors") for folder in (broken, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)


def cut_short(body):
    """An answer whose last position has a token fewer than asked for."""
    body["choices"][0]["prompt_logprobs"][-1] = dict(
        list(body["choices"][0]["prompt_logprobs"][-1].items())[:2]
    )
    return body


def test_nothing_is_lost_when_an_answer_lacks_something(folders, server, tmp_path, caplog):
    here = teachers_of(folders, recipe(folders, model=str(folders / "teacher")))
    config = DistillConfig(**recipe(folders, server, served={"attempts": 1, "max_in_flight": 1}))
    good, poor = (vllm(here.heads[0].model, *spoil) for spoil in ((), (cut_short,)))
    server.play(*[good] * 17, poor)
    folder = tmp_path / "run"
    with pytest.raises(InputError, match=r"request 1: expected 4 log-probabilities .* --max-logprobs 4"):
        run(config, RunContext(folder))
    assert "checkpoint-2: go on with --resume when the cause is mended" in caplog.text
    server.play(good)
    assert run(config, RunContext(folder, resume=newest(folder)))["steps"] == 4
