from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from petkit.artifacts import read_artifact
from petkit.artifacts.exporting import _same_changes, export_peft, export_petl_vit
from petkit.artifacts.importing import import_petl_vit, write_imported
from petkit.errors import InputError, SafetyError
from tests.artifacts.support import adapter_matrices, head, manifest, write_small

PATH = Path(__file__).parents[1] / "data" / "petl_vit" / "lora-kitti-bit1-dim32.bin"


def test_a_changed_weight_is_noticed_when_a_peft_folder_is_read_back(tmp_path):
    packed = adapter_matrices({"a.qkv.lora_q": (8, 2, 8)}, 1)
    artifact = read_artifact(
        write_small(tmp_path / "a", packed=packed, dense=head(8), manifest=manifest("lora"))
    )
    export_peft(artifact, tmp_path / "peft")
    assert _same_changes(artifact, tmp_path / "peft", {"a.qkv": "a.qkv"}).ok
    file = tmp_path / "peft" / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["base_model.model.a.qkv.lora_B.weight"] += np.float32(1e-3)
    safetensors.numpy.save_file(tensors, file)
    check = _same_changes(artifact, tmp_path / "peft", {"a.qkv": "a.qkv"})
    assert not check.ok
    assert check.exit_code == 3


def test_a_data_set_name_makes_no_path(tmp_path):
    imported = import_petl_vit(PATH)
    settings = {**imported.manifest.source.settings, "dataset": "../../kitti"}
    source = imported.manifest.source.model_copy(update={"settings": settings})
    object.__setattr__(imported, "manifest", imported.manifest.model_copy(update={"source": source}))
    artifact, _ = write_imported(imported, tmp_path / "a")
    with pytest.raises(SafetyError, match="data set's name"):
        export_petl_vit(artifact, tmp_path / "out")


def test_files_that_exist_are_kept(tmp_path):
    artifact, _ = write_imported(import_petl_vit(PATH), tmp_path / "a")
    (tmp_path / "x.yaml").write_text("mine")
    with pytest.raises(InputError, match=r"output .*x\.yaml exists"):
        export_petl_vit(artifact, tmp_path / "x.bin")
    assert not (tmp_path / "x.bin").exists()
    with pytest.raises(InputError, match="cannot make"):
        export_petl_vit(artifact, tmp_path / "x.yaml" / "y.bin")
