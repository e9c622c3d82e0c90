import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from petkit.data.chat import Chat
from petkit.data.images import normalize
from petkit.errors import InputError
from petkit.models.config import AdapterConfig
from petkit.models.loading import load_adapted
from petkit.serving.bank import BankModel
from petkit.serving.predict import ManyAdapters, OneAdapter, classify, generate, most_likely
from petkit.serving.samples import Sample
from tests.quantization.artifacts import write
from tests.serving.text_models import save_bert, save_llama, write_text

CONFIG = AdapterConfig(bits=1, bottleneck=4, dropout=0.0)


@pytest.fixture
def pictures(tmp_path):
    generator = np.random.default_rng(0)
    paths = []
    for index in range(4):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(paths[-1])
    return paths


def samples(paths, adapter=None):
    return [Sample(str(path), image=Path(path), adapter=adapter) for path in paths]


def test_probabilities_are_the_softmax_of_the_logits():
    logits = torch.tensor([1.0, 3.0, 2.0])
    expected = np.exp([3, 2]) / np.exp([1, 2, 3]).sum()
    names, values = zip(*most_likely(logits, ("a", "b", "c"), 2), strict=True)
    assert names == ("b", "c")
    np.testing.assert_allclose(values, expected)
    assert [name for name, _ in most_likely(logits, (), 9)] == ["1", "2", "0"]
    with pytest.raises(InputError, match="names 2 classes, its head has 3"):
        most_likely(logits, ("a", "b"), 1)


def test_one_adapter_sees_the_pictures_as_its_artifact_says(tmp_path, pictures):
    adapted = load_adapted(write(tmp_path / "a", CONFIG)[0])
    found = list(classify(OneAdapter(adapted), samples(pictures), top_k=3, batch_size=3))
    assert [one.name for one in found] == [str(path) for path in pictures]
    pixels = torch.from_numpy(np.array(Image.open(pictures[0]))).permute(2, 0, 1)
    ready = normalize(pixels, adapted.preprocess["mean"], adapted.preprocess["std"])
    with torch.no_grad():
        expected = torch.softmax(adapted.model(ready[None])[0].double(), -1)
    for name, probability in found[0].classes:
        assert probability == pytest.approx(float(expected[int(name[-1])]), abs=1e-5)


def test_a_bank_gives_each_sample_what_its_adapter_gives_alone(tmp_path, pictures):
    for seed, name in enumerate("xy"):
        write(tmp_path / "bank" / name, CONFIG, seed=seed, classes=2 + seed)
    bank = ManyAdapters(BankModel.from_folder(tmp_path / "bank"))
    mixed = [samples([path], name)[0] for path, name in zip(pictures, "xyxy", strict=True)]
    found = list(classify(bank, mixed, top_k=9))
    for one, path, name in zip(found, pictures, "xyxy", strict=True):
        alone = OneAdapter(load_adapted(tmp_path / "bank" / name))
        (expected,) = classify(alone, samples([path]), top_k=9)
        assert one.adapter == name
        assert [label for label, _ in one.classes] == [label for label, _ in expected.classes]
        assert [p for _, p in one.classes] == pytest.approx([p for _, p in expected.classes], abs=1e-4)


def close_but_not_equal(rounded, exact):
    """bfloat16 keeps 8 bits; a dozen layers add their roundings up to a few units in the last place."""
    gap = (rounded.float() - exact).norm() / exact.norm()
    return 0 < float(gap) < 8 * 2.0**-8


class Recording:
    """A classifier that keeps the logits of another one."""

    def __init__(self, inner):
        self.inner, self.tokenizer, self.device, self.seen = inner, inner.tokenizer, inner.device, []

    def preparation(self, sample):
        return self.inner.preparation(sample)

    def logits(self, batch, samples):
        self.seen += self.inner.logits(batch, samples)
        return self.seen[-len(samples) :]


@pytest.mark.parametrize("banked", [False, True])
def test_bfloat16_rounds_the_logits_and_no_more(tmp_path, pictures, banked):
    write(tmp_path / "bank" / "x", CONFIG)
    folder = tmp_path / "bank"
    make = ManyAdapters(BankModel.from_folder(folder)) if banked else OneAdapter(load_adapted(folder / "x"))
    logits = {}
    for precision in ("fp32", "bf16"):
        model = Recording(make)
        list(classify(model, samples(pictures, "x"), precision=precision))
        logits[precision] = torch.stack(model.seen)
    assert close_but_not_equal(logits["bf16"], logits["fp32"])


def test_a_language_model_writes_in_bfloat16(tmp_path):
    config = AdapterConfig(method="lora", bits=1, bottleneck=4)
    folder = write_text(tmp_path / "a", save_llama(tmp_path / "llama"), config, task="causal_lm")
    first = {}
    for precision in ("fp32", "bf16"):
        adapted, seen = load_adapted(folder), []
        adapted.model.lm_head.register_forward_hook(lambda *call, seen=seen: seen.append(call[-1]))
        list(generate(adapted, [Sample("p", text="the cat")], 2, precision))
        first[precision] = seen[0]
    assert (first["fp32"].dtype, first["bf16"].dtype) == (torch.float32, torch.bfloat16)
    assert close_but_not_equal(first["bf16"], first["fp32"])


def test_unreadable_pictures_are_named_and_left_out_on_request(tmp_path, pictures, caplog):
    pictures[1].write_bytes(b"nothing")
    model = OneAdapter(load_adapted(write(tmp_path / "a", CONFIG)[0]))
    with pytest.raises(InputError, match=r"1\.png is not a readable image .*; repair it or pass --skip-bad"):
        list(classify(model, samples(pictures)))
    left_out = []
    with caplog.at_level(logging.WARNING):
        found = list(classify(model, samples(pictures), skip_bad=True, batch_size=2, left_out=left_out))
    assert [Path(one.name).name for one in found] == ["0.png", "2.png", "3.png"]
    assert "1.png is not a readable image" in caplog.text
    assert [one.name for one in left_out] == [str(pictures[1])]
    assert "1.png is not a readable image (cannot identify image file" in left_out[0].reason
    assert list(classify(model, samples(pictures[1:2]), skip_bad=True)) == []


def test_texts_of_a_batch_are_padded_without_changing_the_result(tmp_path):
    folder = write_text(
        tmp_path / "a", save_bert(tmp_path / "bert"), AdapterConfig(method="lora", bits=1, bottleneck=4)
    )
    model = OneAdapter(load_adapted(folder))
    texts = [Sample(text, text=text) for text in ("the cat sat on the mat", "good")]
    together = list(classify(model, texts))
    for one, text in zip(together, texts, strict=True):
        (alone,) = classify(model, [text])
        assert [p for _, p in one.classes] == pytest.approx([p for _, p in alone.classes], abs=1e-5)


def test_text_for_an_image_model_is_refused(tmp_path):
    model = OneAdapter(load_adapted(write(tmp_path / "a", CONFIG)[0]))
    with pytest.raises(InputError, match="text needs a model with a tokenizer"):
        list(classify(model, [Sample("hi", text="hi")]))


@pytest.mark.parametrize("chat", [True, False])
def test_a_language_model_writes_greedily(tmp_path, chat):
    base = save_llama(tmp_path / "llama", chat)
    config = AdapterConfig(method="lora", bits=1, bottleneck=4)
    adapted = load_adapted(write_text(tmp_path / "a", base, config, task="causal_lm"))
    (found,) = generate(adapted, [Sample("p", text="the cat")], 5)
    prompt = "user the cat assistant" if chat else "the cat"
    ids = adapted.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    written = []
    with torch.no_grad():
        while len(written) < 5:
            written.append(int(adapted.model(torch.tensor([ids + written])).logits[0, -1].argmax()))
            if written[-1] == adapted.tokenizer.eos_token_id:
                break
    assert found.text == adapted.tokenizer.decode(written, skip_special_tokens=True)
    assert found.payload() == {"input": "p", "text": found.text}
    talk = Sample("m", chat=Chat(({"role": "user", "content": "the cat"},)), row="r.jsonl:1")
    if chat:
        (same,) = generate(adapted, [talk], 5)
        assert same.payload() == {"input": "m", "row": "r.jsonl:1", "text": found.text}
    else:
        with pytest.raises(InputError, match=r"r\.jsonl:1: messages need a model with a chat template"):
            list(generate(adapted, [talk], 5))


def test_conversations_that_the_template_refuses_are_left_out_on_request(tmp_path, caplog):
    config = AdapterConfig(method="lora", bits=1, bottleneck=4)
    base = save_llama(tmp_path / "llama", chat=True)
    adapted = load_adapted(write_text(tmp_path / "a", base, config, task="causal_lm"))
    user = ({"role": "user", "content": "the cat"},)
    bad = Sample("m", chat=Chat(user, ({"name": "f"},)), row="r.jsonl:1")
    reason = "the model's chat template has no place for tools: remove the key tools"
    with pytest.raises(InputError) as caught:
        list(generate(adapted, [bad], 1))
    assert str(caught.value) == f"r.jsonl:1: {reason}; repair it or pass --skip-bad"
    left_out = []
    good = Sample("n", chat=Chat(user))
    found = list(generate(adapted, [bad, good], 1, skip_bad=True, left_out=left_out))
    assert [one.name for one in found] == ["n"]
    assert [one.payload() for one in left_out] == [{"input": "m", "row": "r.jsonl:1", "reason": reason}]
    assert f"left out: r.jsonl:1: {reason}" in caplog.text


def test_a_prompt_without_tokens_is_refused(tmp_path):
    config = AdapterConfig(method="lora", bits=1, bottleneck=4)
    base = save_llama(tmp_path / "llama", chat=False)
    adapted = load_adapted(write_text(tmp_path / "a", base, config, task="causal_lm"))
    with pytest.raises(InputError, match="a prompt needs at least one token"):
        list(generate(adapted, [Sample("", text=" ")], 1))
