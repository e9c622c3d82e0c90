"""Names that transformers gives tensors when it reads a folder."""

from safetensors.torch import load_file

from petkit.models.checkpoint_names import checkpoint_names
from tests.artifacts import peft_models
from tests.merging.peft_adapters import save_base


def test_renamed_tensors(tmp_path):
    names = checkpoint_names(save_base(tmp_path / "vit", peft_models.vit))
    assert (
        names["vit.layers.0.attention.q_proj.weight"]
        == "vit.encoder.layer.0.attention.attention.query.weight"
    )
    assert set(names.values()) == set(load_file(tmp_path / "vit/model.safetensors"))


def test_what_transformers_does_not_know(tmp_path):
    assert checkpoint_names(tmp_path) == {}
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["pipeline"]}')
    assert checkpoint_names(tmp_path) == {}
