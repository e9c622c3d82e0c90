import pytest
import torch

from petkit.artifacts import read_artifact, write_artifact
from petkit.errors import InputError
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.loading import load_adapted, load_model
from petkit.quantization.nearest import nearest
from petkit.serving.bank import BankModel
from tests.serving.text_models import save_bert, save_llama, write_text


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("models") / "bert")


def config(method="lora", **changes):
    return AdapterConfig(method=method, bits=1, bottleneck=4, dropout=0.0, **changes)


@pytest.mark.parametrize("method", ["lora", "adaptformer", "houlsby"])
def test_a_mixed_batch_of_texts_gives_what_each_adapter_gives_alone(tmp_path, bert, method):
    for seed, name in enumerate("xyz"):
        write_text(tmp_path / name, bert, config(method), seed=seed, classes=2 + seed)
    bank = BankModel.from_folder(tmp_path)
    ids = torch.randint(4, 15, (4, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    outputs = bank({"input_ids": ids, "attention_mask": mask}, list("yxzy"))
    for index, name in enumerate("yxzy"):
        alone = load_adapted(tmp_path / name).model
        with torch.no_grad():
            expected = alone(input_ids=ids[index : index + 1], attention_mask=mask[index : index + 1])[0]
        torch.testing.assert_close(outputs[index], expected, rtol=1e-4, atol=1e-5)


def test_texts_of_another_shape_are_refused(tmp_path, bert):
    write_text(tmp_path / "a", bert, config())
    bank = BankModel.from_folder(tmp_path)
    with pytest.raises(InputError, match=r"input_ids must have shape \(batch, tokens\), got \(4,\)"):
        bank({"input_ids": torch.zeros(4, dtype=torch.int64)}, ["a"] * 4)
    with pytest.raises(InputError, match="inputs must hold input_ids for this base, got pixel_values"):
        bank(torch.zeros(1, 3, 32, 32), ["a"])


def test_inputs_that_the_base_would_stumble_over_are_refused(tmp_path, bert):
    write_text(tmp_path / "a", bert, config())
    bank = BankModel.from_folder(tmp_path)
    ids = torch.tensor([[5, 6, 7], [5, 6, 0]])
    for batch, message in (
        (
            {"input_ids": torch.full((1, 33), 5)},
            "input_ids must have at most 32 tokens for this base, got 33",
        ),
        ({"input_ids": torch.tensor([[5, 99]])}, "input_ids must be tokens from 0 to 15, got 99"),
        ({"input_ids": torch.tensor([[5, -1]])}, "input_ids must be tokens from 0 to 15, got -1"),
        ({"input_ids": ids}, "inputs must hold attention_mask where texts are padded"),
        ({"input_ids": ids, "attention_mask": ids[:, :2]}, r"attention_mask must have shape \(2, 3\)"),
    ):
        with pytest.raises(InputError, match=message):
            bank(batch, ["a"] * len(batch["input_ids"]))
    with pytest.raises(
        InputError, match="names must be a list with one adapter name a sample, got the text 'aa'"
    ):
        bank({"input_ids": ids, "attention_mask": (ids != 0).long()}, "aa")


def test_ranks_that_differ_within_an_adapter_are_no_bank(tmp_path, bert):
    folder = write_text(tmp_path / "a", bert, config())
    artifact = read_artifact(folder)
    name = next(name for name in artifact.packed if name.endswith(".down"))
    packed = dict(artifact.packed)
    for part in ("down", "up"):
        key = name.removesuffix("down") + part
        weight = torch.as_tensor(packed[key].dequantize())
        packed[key] = nearest(weight[:2] if part == "down" else weight[:, :2], 1)
    write_artifact(
        folder, manifest=artifact.manifest, config={}, packed=packed, dense=artifact.dense, overwrite=True
    )
    with pytest.raises(InputError, match=r"a: its places have different ranks \(2, 4\)") as caught:
        BankModel.from_folder(tmp_path)
    assert "move the others" not in str(caught.value)


def test_another_pooling_is_refused(tmp_path, bert):
    write_text(tmp_path / "a", bert, config())
    bank = BankModel.from_folder(tmp_path)
    other = write_text(tmp_path / "b", bert, config(), model=ModelConfig(name=str(bert), pooling="mean"))
    with pytest.raises(InputError, match=r"adapter b: model\.pooling must be None as in adapter a"):
        bank.add("b", other)


def test_another_task_is_refused(tmp_path, bert):
    bank = BankModel(load_model(ModelConfig(name=str(bert)), "text_classification", 1), config())
    folder = write_text(tmp_path / "a", bert, config())
    with pytest.raises(InputError, match="task must be image_classification as in the bank, got text_cl"):
        bank.add("a", folder)


def test_language_models_are_refused(tmp_path):
    base = load_model(ModelConfig(name=str(save_llama(tmp_path / "llama"))), "causal_lm")
    with pytest.raises(InputError, match="a bank serves classifiers, got a causal language model"):
        BankModel(base, config())
