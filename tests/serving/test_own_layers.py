"""Adapters that PEFT made for classifiers with hidden layers, quantised, in one bank."""

import json
from functools import partial

import pytest
import torch

from petkit.artifacts import read_artifact, write_artifact
from petkit.artifacts.importing import import_peft, with_base, write_imported
from petkit.errors import ArtifactError, InputError
from petkit.models.config import ModelConfig
from petkit.models.loading import load_adapted, load_model
from petkit.quantization.artifact import quantize_artifact, write_quantized
from petkit.quantization.config import QuantizationConfig
from petkit.serving.bank import BankModel
from tests.artifacts.peft_models import OWN, TOKENS, bert, distilbert, fresh, save_adapter, save_headless

pytestmark = [
    # PEFT 0.21 asks transformers for an attribute under the name it is about to lose.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # PEFT looks up the base's name on the hub to see whether its vocabulary changed; ours have no name.
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
]

OPTIONS = {case: {key: value for key, value in OWN[case][2].items() if key != "rank_pattern"} for case in OWN}


def base_of(folder, make):
    if not folder.exists():
        save_headless(make, folder)
    return {"name": str(folder), "pooling": "own"}


def write_adapter(root, name, make, options, classes=3, seed=0):
    """What `petkit convert --from peft --base` and `petkit quantize` do."""
    model = base_of(root / "base", make)
    save_adapter(root / f"peft-{name}", partial(make, classes), options, seed=seed)
    imported = import_peft(root / f"peft-{name}", task=None if "task_type" in options else task_of(make))
    loaded = load_model(ModelConfig(**model), imported.manifest.task.type, classes)
    imported = with_base(imported, model, loaded.base_sha256)
    dense, _ = write_imported(imported, root / f"dense-{name}")
    quantized = quantize_artifact(dense, QuantizationConfig(bits=1))
    write_quantized(quantized, root / "bank" / name)
    return root / "bank" / name


def task_of(make):
    return "image_classification" if make.__name__ == "swin" else "text_classification"


def inputs_of(case, count):
    given = OWN[case][1]
    (name, tensor), *_ = given.items()
    rows = tensor.repeat(count, *[1] * (tensor.ndim - 1))[:count]
    return {name: rows} if name == "pixel_values" else {name: (rows + torch.arange(count)[:, None]) % 30}


@pytest.mark.parametrize("case", OWN)
@torch.no_grad()
def test_a_mixed_batch_gives_what_each_adapter_gives_alone(tmp_path, case):
    make = OWN[case][0]
    for number, name in enumerate("abc"):
        write_adapter(tmp_path, name, make, OPTIONS[case], classes=2 + number, seed=number)
    bank = BankModel.from_folder(tmp_path / "bank")
    inputs = inputs_of(case, 5)
    outputs = bank(inputs, list("cabca"))
    assert [len(logits) for logits in outputs] == [4, 2, 3, 4, 2]
    for row, name in enumerate("cabca"):
        alone = load_adapted(tmp_path / "bank" / name).model
        expected = alone(**{key: value[row : row + 1] for key, value in inputs.items()})[0]
        torch.testing.assert_close(outputs[row], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def berts(tmp_path_factory):
    root = tmp_path_factory.mktemp("berts")
    for seed, name in enumerate("ab"):
        write_adapter(root, name, bert, OPTIONS["bert"], seed=seed)
    return root


def test_adapters_come_and_go_with_their_layers(berts):
    bank = BankModel.from_folder(berts / "bank")
    first, second = bank(TOKENS, ["a", "b"])
    assert not torch.allclose(first, bank(TOKENS, ["b", "b"])[0])
    bytes_of_two = bank.nbytes
    bank.drop("a")
    assert bank.nbytes < bytes_of_two
    bank.add("again", berts / "bank" / "a")
    again = bank(TOKENS, ["again", "b"])
    torch.testing.assert_close(torch.stack(again), torch.stack([first, second]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [None, "base"])
def test_the_frozen_model_alone_has_no_last_layers(berts, name):
    bank = BankModel.from_folder(berts / "bank")
    with pytest.raises(InputError, match="whose last layers come with the adapters: name an adapter"):
        bank(TOKENS, ["a", name])


def test_adapters_with_other_layers_are_refused_by_name(tmp_path):
    options = OPTIONS["bert"]
    write_adapter(tmp_path, "a", bert, options)
    more = {**options, "modules_to_save": ["classifier", "pooler"]}
    other = write_adapter(tmp_path, "b", bert, more)
    with pytest.raises(
        InputError, match=r"b: backbone\.bert\.pooler\.dense\.bias must not be there: adapter a"
    ):
        BankModel.from_folder(tmp_path / "bank").add("c", other)
    (tmp_path / "bank" / "a").rename(tmp_path / "bank" / "z")
    with pytest.raises(
        InputError, match=r"z: backbone\.bert\.pooler\.dense\.bias must be there as in adapter b"
    ):
        BankModel.from_folder(tmp_path / "bank")


def test_layers_that_nobody_has_are_refused(tmp_path):
    folder = write_adapter(tmp_path, "a", distilbert, OPTIONS["distilbert"])
    artifact = read_artifact(folder)
    kept = {name: value for name, value in artifact.dense.items() if "pre_classifier" not in name}
    packed, config = artifact.packed, artifact.config
    write_artifact(
        folder, manifest=artifact.manifest, config=config, packed=packed, dense=kept, overwrite=True
    )
    with pytest.raises(ArtifactError, match=r"both lack pre_classifier\.bias, pre_classifier\.weight"):
        BankModel.from_folder(tmp_path / "bank")


def test_another_number_of_class_names_than_rows_is_refused(tmp_path):
    folder = write_adapter(tmp_path, "a", bert, OPTIONS["bert"])
    path = folder / "petkit.json"
    manifest = json.loads(path.read_text())
    for classes, message in (
        (["only", "two"], "names 2 classes, no saved layer has as many rows"),
        (["same", "same", "other"], "must be different names, got 'same' more than once"),
        ([], r"a: task\.classes must name the classes, got none"),
    ):
        manifest["task"]["classes"] = classes
        path.write_text(json.dumps(manifest))
        with pytest.raises(InputError, match=message):
            BankModel.from_folder(tmp_path / "bank")


def test_adapters_of_the_bases_own_classifier_share_a_bank(tmp_path):
    # Loaded whole, so that the base's files hold the classifier too.
    save_headless(bert, tmp_path / "base")
    fresh(bert).save_pretrained(tmp_path / "base")
    for seed, name in enumerate("ab"):
        write_adapter(tmp_path, name, bert, {"target_modules": ["query"]}, seed=seed)
    bank = BankModel.from_folder(tmp_path / "bank")
    outputs = bank(TOKENS, ["b", "a"])
    for row, name in enumerate("ba"):
        alone = load_adapted(tmp_path / "bank" / name).model
        torch.testing.assert_close(outputs[row], alone(**TOKENS)[row], rtol=1e-5, atol=1e-5)
