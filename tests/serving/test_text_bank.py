import pytest
import torch

from petkit.errors import InputError
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.loading import load_adapted, load_model
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
