"""Whether adapters and a base belong together."""

import pytest
from safetensors.torch import load_file, save_file

from petkit.artifacts import Base, Manifest, Task
from petkit.errors import InputError
from petkit.merging.bases import base_sha256, check_named, model_type, same_base, same_name
from petkit.merging.sources import open_model
from petkit.models.config import ModelConfig
from petkit.models.loading import load_model
from tests.artifacts import peft_models
from tests.merging.peft_adapters import save_base
from tests.serving.text_models import save_bert, save_llama, save_tokenizer

KNOWN, OTHER = "0" * 64, "1" * 64


def manifest(base, task="causal_lm"):
    return Manifest(base=base, model={"name": base.id}, task=Task(type=task))


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    assert same_name("hf/a/b", "a/b")
    assert same_name("m", str(tmp_path / "m"))
    assert not same_name("m", "n")
    assert same_base(Base(id="a", sha256=KNOWN), Base(id="b", sha256=KNOWN))
    assert not same_base(Base(id="a", sha256=KNOWN), Base(id="a", sha256=OTHER))
    assert same_base(Base(id="a", sha256=KNOWN), Base(id="a"))


def test_a_named_base(tmp_path):
    known = manifest(Base(id="a", sha256=KNOWN))
    check_named("a", known, "x", lambda: OTHER)
    check_named(str(tmp_path), known, "x", lambda: KNOWN)
    for name, digest in ((str(tmp_path), OTHER), ("b", KNOWN)):
        with pytest.raises(InputError, match=rf"base_model {name} is not the base of x, .* a of sha256 0+"):
            check_named(name, known, "x", lambda digest=digest: digest)
    with pytest.raises(InputError, match="which is a"):
        check_named(str(tmp_path), manifest(Base(id="a")), "x", lambda: KNOWN)


def test_hashes_are_those_of_the_loaded_model(tmp_path, monkeypatch):
    folders = {
        "llama": (save_llama(tmp_path / "llama"), "causal_lm"),
        "bert": (save_bert(tmp_path / "bert"), "text_classification"),
        # The output layer is tied to the embedding, and in no file.
        "gpt2": (save_base(tmp_path / "gpt2", peft_models.gpt2), "causal_lm"),
    }
    save_tokenizer(tmp_path / "gpt2", chat=False)
    for folder, task in folders.values():
        wanted = load_model(ModelConfig(name=str(folder)), task).base_sha256
        known = manifest(Base(id=str(folder), sha256=wanted), task)
        hashes = {}
        with open_model(folder) as model:
            assert base_sha256(model, known, hashes) == wanted
            assert list(hashes.values()) == [wanted]
    # A language model is not loaded for that.
    monkeypatch.setattr("petkit.models.loading.load_model", None)
    for name in ("llama", "gpt2"):
        folder = folders[name][0]
        known = manifest(Base(id=str(folder), sha256=_streamed(folder)))
        with open_model(folder) as model:
            assert base_sha256(model, known, {}) == known.base.sha256


def _streamed(folder):
    from petkit.merging.bases import _streamed as streamed

    with open_model(folder) as model:
        return streamed(model)


def test_a_base_that_does_not_load(tmp_path):
    (tmp_path / "m").mkdir()
    save_file(load_file(save_llama(tmp_path / "l") / "model.safetensors"), tmp_path / "m/model.safetensors")
    known = manifest(Base(id="a", sha256=KNOWN))
    with open_model(tmp_path / "m") as model, pytest.raises(InputError, match="since it does not load"):
        base_sha256(model, known, {})


def test_types(tmp_path):
    assert model_type(save_llama(tmp_path / "l")) == "llama"
    assert model_type(tmp_path) == ""
