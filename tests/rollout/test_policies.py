"""Log-probabilities, and divergences that agree with enumeration."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from petkit.errors import InputError, PetkitError
from petkit.merging.analysis.neighbourhood import Response, estimate
from petkit.models.config import ModelConfig
from petkit.models.loading import load_model
from petkit.rollout.policies import (
    Prompt,
    Sampling,
    divergences,
    log_prob,
    read_prompts,
    response_count,
)
from tests.serving.text_models import save_llama

PROMPTS = [Prompt("the cat", "cats"), Prompt("dog ran on the", "dogs"), Prompt("mat", "dogs")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny language model, and one whose head was changed."""
    folder = tmp_path_factory.mktemp("policies")
    save_llama(folder / "a")
    shutil.copytree(folder / "a", folder / "b")
    tensors = load_file(folder / "b/model.safetensors")
    head = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = head + 0.3 * torch.randn(
        head.shape, generator=torch.Generator().manual_seed(1)
    )
    save_file(tensors, folder / "b/model.safetensors", metadata={"format": "pt"})
    return {"a": str(folder / "a"), "b": str(folder / "b")}


@pytest.fixture(scope="module")
def model(folders):
    return load_model(ModelConfig(name=folders["b"]), "causal_lm").model.eval()


def distribution(model, ids):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()


def test_log_probabilities_are_those_of_one_token_after_another(model):
    prompt, response = [4, 5, 6], [7, 3, 9, 9]
    wanted = sum(
        np.log(distribution(model, [*prompt, *response[:place]])[token])
        for place, token in enumerate(response)
    )
    assert log_prob(model, prompt, response, "m") == pytest.approx(wanted, abs=1e-5)


def test_logits_that_are_no_distribution_are_named(folders):
    broken = load_model(ModelConfig(name=folders["a"]), "causal_lm").model.eval()
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(PetkitError, match="the logits of here must be finite"):
        log_prob(broken, [4], [5], "here")


def test_a_model_does_not_diverge_from_itself(folders):
    found = divergences(folders, {"merged": folders["a"]}, PROMPTS, Sampling(max_new_tokens=5, samples=2))
    cells = found["merged"]
    assert set(cells) == {(expert, domain) for expert in "ab" for domain in ("cats", "dogs")}
    assert cells["a", "dogs"].per_sequence.estimate == 0
    assert cells["a", "dogs"].prompts == 2
    assert cells["a", "dogs"].responses == 4
    assert cells["b", "cats"].per_sequence.estimate != 0
    assert cells["b", "cats"].per_sequence.standard_error is None


def test_divergences_agree_with_enumeration(folders, model):
    told = []
    sampling = Sampling(max_new_tokens=1, samples=150, batch_size=150, chat_template=False)
    asked = [Prompt("the cat", "cats"), Prompt("dog", "cats")]
    found = divergences({"b": folders["b"]}, {"m": folders["a"]}, asked, sampling, told.append)
    other = load_model(ModelConfig(name=folders["a"]), "causal_lm").model.eval()
    wanted, spread = [], []
    for ids in ([4, 5], [6]):
        p, q = distribution(model, ids), distribution(other, ids)
        exact = (p * np.log(p / q)).sum()
        wanted.append(exact)
        spread.append((p * (np.log(p / q) - exact) ** 2).sum())
    cell = found["m"]["b", "cats"]
    assert cell.per_token.estimate == pytest.approx(np.mean(wanted), abs=4 * (np.mean(spread) / 300) ** 0.5)
    assert len(told) == 2 * response_count(["b"], asked, sampling) == 600


def test_seeds_give_the_same_again(folders):
    def cell(seed):
        sampling = Sampling(max_new_tokens=4, seed=seed)
        return divergences({"b": folders["b"]}, {"m": folders["a"]}, PROMPTS, sampling)["m"]["b", "dogs"]

    assert cell(0) == cell(0) != cell(1)


def test_given_responses_are_scored_as_they_are(folders, model):
    prompts = [Prompt("the cat", "cats", "sat on", "b")]
    found = divergences(folders, {"m": folders["a"]}, prompts, Sampling(chat_template=False))["m"]
    other = load_model(ModelConfig(name=folders["a"]), "causal_lm").model.eval()
    ratio = log_prob(model, [4, 5], [7, 9], "b") - log_prob(other, [4, 5], [7, 9], "a")
    assert found["b", "cats"] == estimate([Response(0, 2, ratio)])
    assert found["a", "cats"] is None
    assert response_count(list(folders), prompts, Sampling()) == 1


def test_chat_templates_are_used_unless_told_otherwise(folders):
    cells = [
        divergences({"b": folders["b"]}, {"m": folders["a"]}, PROMPTS[:1], Sampling(3, chat_template=chat))
        for chat in (True, False)
    ]
    assert cells[0] != cells[1]


def test_other_vocabularies_are_refused(folders, tmp_path):
    shutil.copytree(folders["a"], tmp_path / "c")
    path = tmp_path / "c/tokenizer.json"
    path.write_text(path.read_text().replace('"cat"', '"cow"'))
    with pytest.raises(InputError, match="must have one vocabulary, token 'cat'"):
        divergences(folders, {"m": str(tmp_path / "c")}, PROMPTS, Sampling())


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "maths.jsonl"
    rows = [
        {"prompt": "1 + 1", "id": 3},
        {"question": "hello", "domain": "chat"},
        {"prompt": "x", "response": "y", "model": "a"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_prompts(path, ["a"]) == [
        Prompt("1 + 1", "maths"),
        Prompt("hello", "chat"),
        Prompt("x", "maths", "y", "a"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "x"}', "expected one of prompt and question, got neither"),
        ('{"prompt": "x", "question": "y"}', "got prompt and question"),
        ('{"prompt": " "}', "prompt must be a text that is not empty"),
        ('{"prompt": "x", "domain": 3}', "domain must be a text that is not empty, got 3"),
        ('{"prompt": "x", "response": "y"}', "response and model go together"),
        ('{"prompt": "x", "response": "y", "model": "c"}', "model must be one of a, b, got 'c'"),
        ("", "must hold at least one prompt"),
    ],
)
def test_faulty_prompts_are_named(tmp_path, row, message):
    path = tmp_path / "p.jsonl"
    path.write_text(row)
    with pytest.raises(InputError, match=message):
        read_prompts(path, ["a", "b"])
