import re
import threading
from pathlib import Path

import pytest
import torch

from petkit.artifacts import Base, read_artifact
from petkit.errors import ArtifactError, InputError, SafetyError
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import load_packed
from petkit.models.loading import load_model
from petkit.serving.bank import BankModel, artifact_folders
from tests.quantization.artifacts import MODEL, adapted_model, write

CONFIG = AdapterConfig(bits=1, bottleneck=4, dropout=0.0, scale=0.5)
# The bank adds the same products in another order than one packed adapter does.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def variant(**changes):
    return CONFIG.model_copy(update=changes)


def alone(folder):
    """The model that computes with one artifact's packed bits, without a bank."""
    artifact = read_artifact(folder)
    config = AdapterConfig(**artifact.manifest.adapter)
    model = adapted_model(config, classes=len(artifact.manifest.task.classes)).model
    load_packed(model, artifact.packed, artifact.dense, artifact.manifest.scaling)
    return model.eval()


def empty_bank(config=CONFIG):
    return BankModel(load_model(MODEL, "image_classification", 1), config)


def pictures(count, seed=0):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folders(tmp_path):
    return {
        f"a{index}": write(tmp_path / f"a{index}", CONFIG, seed=index, classes=2 + index)[0]
        for index in range(3)
    }


@pytest.fixture
def bank(folders):
    bank = empty_bank()
    bank.add_many(folders)
    return bank


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        variant(method="lora"),
        variant(method="lora", targets=("q", "k", "mlp")),
        variant(method="houlsby", bits=2),
        variant(bits=4, codebook="petl_vit", bottleneck=3),
        variant(bits=8, bottleneck=1),
        variant(head="binary"),
        variant(method="linear_probe"),
    ],
    ids=lambda config: f"{config.method}-{config.bits}-{config.head}",
)
def test_a_mixed_batch_gives_what_each_adapter_gives_alone(tmp_path, config):
    classes = {"x": 2, "y": 3, "z": 5}
    for seed, (name, count) in enumerate(classes.items()):
        write(tmp_path / name, config, seed=seed, classes=count)
    bank = BankModel.from_folder(tmp_path)
    names, inputs = ["y", "x", "z", "x", "y"], pictures(5)
    outputs = bank(inputs, names)
    assert [len(logits) for logits in outputs] == [classes[name] for name in names]
    with torch.no_grad():
        for index, name in enumerate(names):
            expected = alone(tmp_path / name)(inputs[index : index + 1])[0]
            torch.testing.assert_close(outputs[index], expected, **TOLERANCE)


def test_adapters_really_differ(bank):
    one, other = bank(pictures(1).expand(2, -1, -1, -1), ["a0", "a1"])
    assert len(one) != len(other)
    assert not torch.allclose(one, other[:2], atol=1e-2)


def test_sites_with_scales_of_their_own_keep_them(tmp_path):
    sites = {f"blocks.{index}.adaptformer": 0.1 * (index + 1) for index in range(6)}
    folder, _ = write(tmp_path / "a", CONFIG, scaling=sites)
    bank = empty_bank()
    bank.add("a", folder)
    with torch.no_grad():
        expected = alone(folder)(pictures(2))
    torch.testing.assert_close(torch.stack(bank(pictures(2), ["a", "a"])), expected, **TOLERANCE)


@pytest.mark.parametrize("nobody", [None, "base"])
def test_no_adapter_gives_the_features_of_the_frozen_model(bank, nobody):
    model = load_model(MODEL, "image_classification", 1).model.eval()
    model.head = torch.nn.Identity()
    with torch.no_grad():
        expected = model(pictures(2))
    outputs = bank(pictures(2), [nobody, "a1"])
    torch.testing.assert_close(outputs[0], expected[0], **TOLERANCE)
    assert outputs[1].shape == (3,)


def test_a_dropped_place_is_used_again_and_the_others_stay(bank, folders, tmp_path):
    before = bank(pictures(1), ["a2"])[0]
    size = bank.nbytes
    bank.drop("a0")
    assert bank.names == ("a1", "a2")
    with pytest.raises(InputError, match="adapter 'a0' is not in the bank of 2 adapters"):
        bank(pictures(1), ["a0"])
    bank.add("again", folders["a0"])
    assert bank.nbytes == size
    torch.testing.assert_close(bank(pictures(1), ["a2"])[0], before, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(
            bank(pictures(1), ["again"])[0], alone(folders["a0"])(pictures(1))[0], **TOLERANCE
        )


def test_adding_one_by_one_grows_by_half(folders):
    bank = empty_bank()
    for index in range(9):
        bank.add(f"n{index}", folders["a0"])
    assert len(bank) == 9
    assert next(iter(bank._sites.values())).bank.n < 15


def test_many_at_once_take_no_more_than_their_own_bytes(folders):
    bank = empty_bank()
    bank.add_many({f"n{index}": folders["a0"] for index in range(100)})
    assert bank.nbytes <= 1.2 * 100 * read_artifact(folders["a0"]).nbytes


def test_adding_is_all_or_nothing(bank, folders, tmp_path):
    wrong, _ = write(tmp_path / "wrong", variant(bottleneck=8))
    with pytest.raises(InputError, match="adapter wrong: "):
        bank.add_many({"fine": folders["a0"], "wrong": wrong})
    assert bank.names == ("a0", "a1", "a2")
    bank.add("fine", folders["a0"])


def test_requests_go_on_while_adapters_come_and_go(bank, folders):
    expected = bank(pictures(2), ["a1", "a2"])
    stop, failures = threading.Event(), []

    def ask():
        while not stop.is_set():
            got = bank(pictures(2), ["a1", "a2"])
            if not all(torch.equal(one, other) for one, other in zip(got, expected, strict=True)):
                failures.append(got)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for index in range(12):
        bank.add(f"n{index}", folders["a0"])
        if index % 2:
            bank.drop(f"n{index}")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(bank) == 9


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"bits": 32}, {}, "adapters must be packed, got 32 bits: run `petkit quantize"),
        ({"bits": 2}, {}, r"adapter\.bits must be 1 as in the bank, got 2"),
        ({"method": "houlsby"}, {}, r"adapter\.method must be adaptformer as in the bank, got houlsby"),
        ({"codebook": "petl_vit"}, {}, r"adapter\.codebook must be normal_l1"),
        (
            {"bottleneck": 5},
            {},
            r"adapter\.bottleneck must be 4 as in the bank, got 5",
        ),
        (
            {},
            {"model": MODEL.model_copy(update={"image_size": 48})},
            "image_size must be 32 as in the bank, got 48",
        ),
        (
            {},
            {"model": ModelConfig(name="timm/test_vit2", pretrained=False, image_size=32)},
            r"base\.sha256 must be",
        ),
    ],
)
def test_adapters_that_do_not_belong_are_refused_by_name(bank, tmp_path, changes, options, message):
    folder, _ = write(tmp_path / "x", variant(**changes), **options)
    with pytest.raises(InputError, match="adapter new: .*" + message):
        bank.add("new", folder)
    assert "new" not in bank


def test_every_misfit_of_a_folder_is_named_with_the_first_that_it_does_not_fit(tmp_path):
    write(tmp_path / "h4", CONFIG)
    write(tmp_path / "h8", variant(bottleneck=8))
    write(tmp_path / "one", CONFIG)
    write(tmp_path / "two", variant(bits=2))
    with pytest.raises(InputError) as caught:
        BankModel.from_folder(tmp_path)
    assert str(caught.value).splitlines() == [
        "adapter h8: adapter.bottleneck must be 4 as in adapter h4, the first of the folder, got 8",
        "adapter two: adapter.bits must be 1 as in adapter h4, the first of the folder, got 2",
        "a bank holds adapters of one base, task, method, bits, bottleneck, codebook and image size: "
        "move the others to a folder of their own",
    ]


@pytest.mark.parametrize("name", ["a", "b"])
def test_an_adapter_whose_sections_no_recipe_could_have_is_refused(tmp_path, name):
    for each in ("a", "b"):
        write(tmp_path / each, CONFIG)
    path = tmp_path / name / "petkit.json"
    path.write_text(path.read_text().replace(f'"{CONFIG.method}"', '"banana"'))
    with pytest.raises(ArtifactError, match=r"adapter\.method"):
        BankModel.from_folder(tmp_path)


def test_at_most_twenty_misfits_are_named(bank, tmp_path):
    wrong, _ = write(tmp_path / "wrong", variant(bottleneck=8))
    with pytest.raises(InputError) as caught:
        bank.add_many({f"n{index}": wrong for index in range(100)})
    assert len(str(caught.value).splitlines()) == 20 + 1
    assert len(bank) == 3


def test_a_first_adapter_of_32_bits_is_named(tmp_path):
    write(tmp_path / "full", variant(bits=32))
    with pytest.raises(InputError, match=r"got adapter\.bits 32 in adapter full, the first of the folder"):
        BankModel.from_folder(tmp_path)


def test_the_base_may_be_in_another_place(tmp_path):
    from safetensors.torch import save_file

    from petkit.artifacts import read_manifest
    from petkit.models.config import ModelConfig
    from petkit.models.loading import load_model

    write(tmp_path / "bank" / "x", CONFIG)
    section = {**read_manifest(tmp_path / "bank" / "x").model, "image_size": None}
    state = load_model(ModelConfig(**section), "image_classification").model.state_dict()
    save_file(state, tmp_path / "base.safetensors")
    bank = BankModel.from_folder(tmp_path / "bank", base=str(tmp_path / "base.safetensors"))
    expected = alone(tmp_path / "bank" / "x")(pictures(1))
    torch.testing.assert_close(bank(pictures(1), ["x"])[0], expected[0], **TOLERANCE)
    save_file({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "base.safetensors")
    with pytest.raises(InputError, match="it was trained on another model"):
        BankModel.from_folder(tmp_path / "bank", base=str(tmp_path / "base.safetensors"))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
            r"must be a tensor of torch\.float32, got torch\.uint8",
        ),
        (torch.zeros(1, 3, 32, 32, dtype=torch.float64), r"got torch\.float64: convert it first"),
        ([[0.0]], "must be a tensor or a mapping of tensors, got list"),
    ],
)
def test_inputs_of_another_dtype_are_refused(bank, inputs, message):
    with pytest.raises(InputError, match=message):
        bank(inputs, ["a0"])


def test_other_places_are_refused(tmp_path):
    query, _ = write(tmp_path / "q", variant(method="lora", targets=("q",)))
    both, _ = write(tmp_path / "qv", variant(method="lora", targets=("q", "v")))
    one, two = empty_bank(variant(method="lora", targets=("q",))), empty_bank(variant(method="lora"))
    with pytest.raises(
        InputError, match=r"lora_v\.down must not be there: the bank has no adapter in this place"
    ):
        one.add("x", both)
    with pytest.raises(InputError, match=r"lora_v\.down must be there as in the bank, got none"):
        two.add("x", query)


def test_an_adapter_that_does_not_know_its_base_is_refused(bank, tmp_path):
    folder, _ = write(tmp_path / "x", CONFIG, base=Base(id="timm/test_vit"))
    with pytest.raises(InputError, match=r"base\.sha256 must be recorded, got none: convert it again"):
        bank.add("new", folder)


def test_damaged_artifacts_are_refused(bank, folders):
    path = folders["a0"] / "adapter_packed.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactError):
        bank.add("new", folders["a0"])


def test_names_are_checked(bank, folders):
    for name in ("", "../x", "a b", "x" * 129):
        with pytest.raises(SafetyError, match="adapter name must match"):
            bank.add(name, folders["a0"])
    with pytest.raises(InputError, match="'base' stands for the frozen model"):
        bank.add("base", folders["a0"])
    with pytest.raises(InputError, match="'a1' is in the bank already: drop it first"):
        bank.add("a1", folders["a0"])
    with pytest.raises(InputError, match="did you mean 'a1'"):
        bank(pictures(1), ["a1x"])
    with pytest.raises(InputError, match="'nobody' is not in the bank"):
        bank.drop("nobody")


@pytest.mark.parametrize(("count", "names"), [(2, ["a0"]), (0, []), (1, [])])
def test_a_batch_needs_one_name_a_sample(bank, count, names):
    with pytest.raises(InputError, match="names must hold one adapter name a sample and at least one"):
        bank(pictures(count), names)


@pytest.mark.parametrize("shape", [(1, 3, 32, 48), (1, 3, 16, 16), (1, 1, 32, 32), (3, 32, 32), (1,)])
def test_pictures_of_another_shape_are_refused(bank, shape):
    message = f"pixel_values must have shape (batch, 3, 32, 32), got {shape}"
    with pytest.raises(InputError, match=re.escape(message)):
        bank(torch.zeros(shape), ["a0"] * shape[0])


def test_inputs_of_another_kind_are_refused(bank):
    with pytest.raises(InputError, match="inputs must hold pixel_values for this base, got input_ids"):
        bank({"input_ids": torch.zeros(1, 4, dtype=torch.int64)}, ["a0"])


def test_the_frozen_model_is_no_adapter_with_classes(bank):
    assert "'base' is the frozen model, which has features and no classes" in bank.fault("base")
    with pytest.raises(InputError, match="'base' is the frozen model"):
        bank.entry("base")


def test_unpacked_banks_are_refused():
    with pytest.raises(InputError, match=r"adapter\.bits 32 in the bank: run `petkit quantize`"):
        empty_bank(variant(bits=32))


def test_folders_without_artifacts_are_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(InputError, match=r"must hold artifacts in subfolders"):
        artifact_folders(tmp_path)
    with pytest.raises(InputError, match="got no such folder"):
        artifact_folders(tmp_path / "missing")


def test_the_banks_sites_say_what_they_hold(bank):
    assert "slots=3, hidden=4, bits=1, activation=relu" in repr(bank._model.blocks[0])


def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        write(tmp_path / "bank" / name, CONFIG, classes=10)
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "serving.md"
    exec(page.read_text().partition("```python\n")[2].partition("```")[0], {})
    assert "('two', 'three')" in capsys.readouterr().out
