"""`petkit merge` over adapters: what it writes is used by the other commands; what cannot be is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from petkit.artifacts import read_artifact
from petkit.models.config import AdapterConfig
from petkit.models.loading import load_adapted
from tests.artifacts import peft_models
from tests.artifacts.peft_models import TOKENS, logits
from tests.merging.peft_adapters import load_base, save_adapter, save_base, with_adapters, write_yaml
from tests.quantization.artifacts import write
from tests.serving.text_models import save_llama, write_text

# PEFT 0.21 asks transformers for an attribute under the name it is about to lose.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LORA = {"method": "lora", "dropout": 0.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A language model with adapters of petkit, of 32 bits and of 1, and of PEFT; to be left as it is."""
    folder = tmp_path_factory.mktemp("world")
    base = save_llama(folder / "base")
    for name, seed, options in (
        ("a", 1, {"bits": 32, "bottleneck": 3, "scale": 0.5}),
        ("b", 2, {"bits": 1, "bottleneck": 4, "targets": ("q", "mlp")}),
    ):
        write_text(folder / name, base, AdapterConfig(**LORA, **options), task="causal_lm", seed=seed)
    (folder / "same").symlink_to(folder / "a")
    save_adapter(
        folder / "p",
        base,
        target_modules=["q_proj", "o_proj"],
        rank_pattern={"o_proj": 2},
        use_rslora=True,
        task_type="CAUSAL_LM",
    )
    return folder


def asked(tmp_path, world, method, weights, **keys):
    models = [(world / name, {"weight": weight}) for name, weight in weights.items()]
    return write_yaml(tmp_path / "c.yml", method, models, **keys)


def result_of(done):
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_help(petkit):
    shown = petkit("merge", "--help").out
    assert "--rank" in shown
    assert "--bits" in shown


def test_a_mixed_merge_adds_what_each_adds(petkit, tmp_path, world):
    weights = {"a": 0.5, "b": -0.25, "p": 0.75}
    config = asked(tmp_path, world, "task_arithmetic", weights, parameters={"lambda": 2.0})
    result = result_of(petkit("merge", config, "-o", tmp_path / "out", "--json"))
    assert (result["status"], result["rank"], result["bits"]) == ("completed", 11, 32)
    assert (result["rank_error"], result["bits_error"]) == (0, 0)
    assert [one["ok"] for one in result["checks"]] == [True] * 3
    # Of q_proj, which all have: the change of its output on the same input is the sum, in float64.
    merged = load_adapted(tmp_path / "out").model
    site = "model.layers.0.self_attn.q_proj.lora"
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    found = merged.get_submodule(site)(x).double()
    lora = load_file(world / "p/adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    down, up = (lora[f"{name}.lora_{part}.weight"].double() for part in "AB")
    of_peft = 8 / 4**0.5 * x.double() @ down.T @ up.T
    own = [load_adapted(world / one, mode="dense").model.get_submodule(site)(x).double() for one in "ab"]
    wanted = 2 * (0.5 * own[0] - 0.25 * own[1] + 0.75 * of_peft)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_what_was_merged_is_used_by_the_others(petkit, tmp_path, world):
    config, folder = asked(tmp_path, world, "linear", {"a": 1, "b": 1}), tmp_path / "out"
    result_of(petkit("merge", config, "-o", folder, "--rank", 2, "--bits", 4, "--json"))
    assert petkit("verify", folder).code == 0
    shown = petkit("inspect", folder).out
    assert "lineage  petkit merge" in shown
    assert "bits 4" in shown
    assert petkit("predict", folder, "the cat", "--max-new-tokens", 2).code == 0
    assert petkit("export", folder, "--format", "peft", "-o", tmp_path / "peft").code == 0
    assert petkit("diff", folder, folder).code == 0
    whole = tmp_path / "whole"
    result_of(petkit("merge", config, "-o", whole, "--json"))
    assert petkit("quantize", whole, "--bits", 1, "-o", tmp_path / "one").code == 0
    again = write_yaml(tmp_path / "again.yml", "linear", [(folder, {"weight": 1}), (whole, {"weight": 1})])
    result_of(petkit("merge", again, "-o", tmp_path / "twice", "--json"))


def test_classifiers_are_evaluated(petkit, tmp_path):
    from PIL import Image

    config = AdapterConfig(**LORA, bits=1, bottleneck=2)
    for seed in (1, 2):
        write(tmp_path / str(seed), config, seed=seed)
    yaml = asked(tmp_path, tmp_path, "linear", {"1": 3, "2": 1})
    result = result_of(petkit("merge", yaml, "-o", tmp_path / "out", "--json"))
    assert result["averaged"] == ["head.bias", "head.weight"]
    heads = [read_artifact(tmp_path / name).dense["head.weight"] for name in ("1", "2", "out")]
    torch.testing.assert_close(heads[2], 0.75 * heads[0] + 0.25 * heads[1])
    for place in range(3):
        (tmp_path / f"data/test/class-{place}").mkdir(parents=True)
        Image.new("RGB", (32, 32), (80 * place, 9, 9)).save(tmp_path / f"data/test/class-{place}/x.png")
    assert petkit("eval", tmp_path / "out", "--data", tmp_path / "data").code == 0


@pytest.mark.parametrize("name", ["a", "b", "p"])
def test_one_adapter_at_weight_one_is_itself(petkit, tmp_path, world, name):
    config = asked(tmp_path, world, "linear", {name: 1.0})
    result_of(petkit("merge", config, "-o", tmp_path / "out", "--json"))
    checks = json.loads((tmp_path / "out/checks.json").read_text())["checks"]
    assert "equals its only input" in [check["name"] for check in checks if check["ok"]]
    found = logits(load_adapted(tmp_path / "out").model, TOKENS)
    if name == "p":
        base = world / "base"
        wanted = logits(with_adapters(base, world / "p"), TOKENS)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        petkit("export", tmp_path / "out", "--format", "peft", "-o", tmp_path / "peft")
        before, after = (
            load_file(folder / "adapter_model.safetensors") for folder in (world / "p", tmp_path / "peft")
        )
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    else:
        assert torch.equal(found, logits(load_adapted(world / name, mode="dense").model, TOKENS))


def test_it_computes_what_peft_computes_of_the_same(petkit, tmp_path):
    base = save_base(tmp_path / "base", peft_models.llama)
    save_llama(tmp_path / "words")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (base / file).write_bytes((tmp_path / "words" / file).read_bytes())
    targets = (["q_proj", "v_proj"], ["q_proj", "down_proj"])
    adapters = [
        save_adapter(tmp_path / str(seed), base, seed, r=rank, target_modules=own, task_type="CAUSAL_LM")
        for seed, rank, own in zip((1, 2), (2, 5), targets, strict=True)
    ]
    model = with_adapters(base, *adapters)
    model.add_weighted_adapter(["0", "1"], [0.7, 0.4], "both", combination_type="cat")
    model.set_adapter("both")
    config = asked(tmp_path, tmp_path, "task_arithmetic", {"1": 0.7, "2": 0.4}, base_model=str(base))
    result_of(petkit("merge", config, "-o", tmp_path / "out", "--json"))
    wanted = logits(model, TOKENS)
    found = logits(load_adapted(tmp_path / "out").model, TOKENS)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    # The merged adapter, added to its base, is a model; and so is its export.
    folded = write_yaml(tmp_path / "f.yml", "passthrough", [f"{base}+{tmp_path / 'out'}"])
    result_of(petkit("merge", folded, "-o", tmp_path / "model", "--json"))
    torch.testing.assert_close(logits(load_base(tmp_path / "model"), TOKENS), wanted, rtol=1e-5, atol=1e-5)
    petkit("export", tmp_path / "out", "--format", "peft", "-o", tmp_path / "peft")
    exported = with_adapters(base, tmp_path / "peft")
    torch.testing.assert_close(logits(exported, TOKENS), wanted, rtol=1e-5, atol=1e-5)


def test_adapters_with_an_activation_merge_side_by_side(petkit, tmp_path):
    for seed in (1, 2):
        write(tmp_path / str(seed), AdapterConfig(bits=1, bottleneck=4, dropout=0.0, scale=seed), seed=seed)
    yaml = asked(tmp_path, tmp_path, "task_arithmetic", {"1": 0.5, "2": -1})
    result = result_of(petkit("merge", yaml, "-o", tmp_path / "out", "--json"))
    assert (result["rank"], result["rank_error"]) == (8, 0)
    site, x = result["sites"][0]["site"], torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    first, other, found = (
        load_adapted(tmp_path / name, mode="dense").model.get_submodule(site)(x) for name in ("1", "2", "out")
    )
    torch.testing.assert_close(found, 0.5 * first - other, rtol=1e-4, atol=1e-5)
    refused = petkit("merge", yaml, "-o", tmp_path / "x", "--rank", 2)
    assert (refused.code, "rank is for LoRA" in refused.err) == (2, True)
    assert result_of(petkit("merge", yaml, "-o", tmp_path / "x", "--bits", 1, "--json"))["bits_error"] < 1


def test_errors_are_reported(petkit, tmp_path, world):
    config = asked(tmp_path, world, "linear", {"a": 1, "b": 1})
    result = result_of(petkit("merge", config, "-o", tmp_path / "out", "--rank", 2, "--bits", 8, "--json"))
    assert 0 < result["rank_error"] < 1
    assert 0 < result["bits_error"] < 0.1
    assert {"site", "ranks", "rank", "rank_error", "bits_error"} == set(result["sites"][0])
    assert result["matrices"][0].keys() >= {"name", "relative_error", "cosine"}
    recorded = json.loads((tmp_path / "out/result.json").read_text())
    assert recorded["rank_error"] == result["rank_error"]
    shown = petkit("merge", config, "-o", tmp_path / "out", "--rank", 2, "--overwrite").out
    assert "What each site lost" in shown
    assert "of the exact merge's norm" in shown
    manifest = read_artifact(tmp_path / "out").manifest
    assert [step.command for step in manifest.lineage] == ["merge"]
    assert manifest.lineage[0].inputs.keys() == {str(world / "a"), str(world / "b")}
    assert len(str(manifest.lineage[0].config_sha256)) == 64


def test_ties_on_products(petkit, tmp_path, world):
    models = [(world / name, {"weight": 1, "density": 0.5}) for name in "ap"]
    config = write_yaml(tmp_path / "c.yml", "ties", models)
    refused = petkit("merge", config, "-o", tmp_path / "out")
    assert (refused.code, "give --rank N" in refused.err) == (2, True)
    assert result_of(petkit("merge", config, "-o", tmp_path / "out", "--rank", 4, "--json"))["rank"] == 4


def test_draws_are_those_of_the_seed(petkit, tmp_path, world):
    models = [(world / name, {"weight": 1, "density": 0.5}) for name in "ab"]
    config = write_yaml(tmp_path / "c.yml", "dare_linear", models)
    digests = []
    for place, seed in enumerate((3, 3, 4)):
        folder = tmp_path / str(place)
        assert petkit("merge", config, "-o", folder, "--rank", 4, "--seed", seed).code == 0
        digests.append(read_artifact(folder).manifest.tensors_sha256)
    assert digests[0] == digests[1] != digests[2]


def test_a_plan_writes_nothing(petkit, tmp_path, world):
    config = asked(tmp_path, world, "linear", {"a": 1, "b": 1, "p": 1})
    plan = result_of(petkit("merge", config, "-o", tmp_path / "out", "--dry-run", "--json"))
    assert (plan["status"], plan["kind"], plan["rank"], plan["exact"]) == ("plan", "adapter", 11, True)
    assert not (tmp_path / "out").exists()
    text = petkit("merge", config, "-o", tmp_path / "out", "--dry-run", "--rank", 3).out
    assert "no: errors are reported" in text


@pytest.mark.parametrize("weights", [{"a": 0.0, "b": 0.0}, {"a": 1.0, "same": -1.0}])
def test_a_merge_that_equals_its_base_exits_with_3(petkit, tmp_path, world, weights):
    config = asked(tmp_path, world, "task_arithmetic", weights)
    done = petkit("merge", config, "-o", tmp_path / "out")
    assert done.code == 3
    assert "differs from its base: 0 of " in done.err
    assert "the weights cancel out, or what was merged is 0" in done.err
    assert json.loads((tmp_path / "out/result.json").read_text())["status"] == "gate_failed"
    assert petkit("verify", tmp_path / "out").code == 3


def test_adapters_of_zeros_exit_with_3(petkit, tmp_path, world):
    adapter = save_adapter(tmp_path / "z", world / "base", target_modules=["q_proj"], task_type="CAUSAL_LM")
    file = adapter / "adapter_model.safetensors"
    save_file({name: one * ("lora_A" in name) for name, one in load_file(file).items()}, file)
    config = asked(tmp_path, tmp_path, "linear", {"z": 1.0})
    assert petkit("merge", config, "-o", tmp_path / "out").code == 3


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("method", "weights", "flags", "message"),
    [
        ("linear", {"a": 1, "b": -1}, (), "must not sum to 0 to be normalised"),
        ("linear", {"a": 1, "b": 1}, ("--rank", 0), "--rank"),
        ("linear", {"a": 1, "b": 1}, ("--rank", 8), "rank must be from 1 to 7"),
        ("linear", {"a": 1, "b": 1}, ("--bits", 3), "--bits must be one of 1, 2, 4, 8, 32, got 3"),
        ("linear", {"a": 1, "b": 1}, ("--shard-size", 2), "--shard-size has no effect on adapters"),
        ("linear", {"a": 1, "b": 1}, ("--check-logits",), "--check-logits is for whole models"),
        ("linear", {"a": 1, "b": 1}, ("--seed", 0), "--seed has no effect with linear"),
        ("tis", {"a": 1, "b": 1}, (), "did you mean ties?"),
        ("slerp", {"a": 1, "b": 1}, (), "adapters merge by linear, task_arithmetic, and with --rank by"),
        ("linear", {"a": 1, "base": 1}, (), "adapters and whole models do not merge with each other"),
        ("linear", {"base": 1}, ("--rank", 2), "--rank has no effect on whole models"),
        ("linear", {"base": 1}, ("--bits", 1), "--bits has no effect on whole models"),
        ("linear", {"base+a": 1}, ("--bits", 1), "--bits has no effect on whole models"),
    ],
)
def test_faults_exit_with_2(petkit, tmp_path, world, method, weights, flags, message, dry):
    weights = {name.replace("+", f"+{world}/"): weight for name, weight in weights.items()}
    done = petkit("merge", asked(tmp_path, world, method, weights), "-o", tmp_path / "out", *flags, *dry)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not (tmp_path / "out").exists()


def refused(petkit, tmp_path, models, **keys):
    config = write_yaml(tmp_path / "c.yml", "linear", [(one, {"weight": 1}) for one in models], **keys)
    done = petkit("merge", config, "-o", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    return done.err


def test_adapters_that_do_not_belong_together(petkit, tmp_path, world):
    other = save_base(tmp_path / "other", peft_models.llama)
    stranger = save_adapter(tmp_path / "s", other, target_modules=["q_proj"], task_type="CAUSAL_LM")
    message = refused(petkit, tmp_path, [world / "a", stranger])
    assert f"{world}/a and {stranger} must have the same base, got {world}/base of sha256" in message
    assert f"and {other}" in message
    for seed, classes in ((1, 2), (2, 3)):
        write(tmp_path / str(seed), AdapterConfig(**LORA, bottleneck=2), seed=seed, classes=classes)
    assert "must have the same classes" in refused(petkit, tmp_path, [tmp_path / "1", tmp_path / "2"])


def test_a_base_that_is_not_theirs(petkit, tmp_path, world):
    other = save_llama(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    save_file(
        {**tensors, "model.norm.weight": torch.zeros(16)}, other / "model.safetensors", {"format": "pt"}
    )
    message = refused(petkit, tmp_path, [world / "a"], base_model=str(other))
    assert f"base_model {other} is not the base of {world}/a, which is {world}/base of sha256" in message
    assert f"base_model {other} is not" in refused(petkit, tmp_path, [world / "p"], base_model=str(other))
    assert "is an adapter" in refused(petkit, tmp_path, [world / "a"], base_model=str(world / "b"))
    copy = save_llama(tmp_path / "copy")
    config = asked(tmp_path, world, "linear", {"a": 1}, base_model=str(copy))
    assert petkit("merge", config, "-o", tmp_path / "out").code == 0


def test_damaged_adapters(petkit, tmp_path, world):
    folder, _ = write(tmp_path / "cut", AdapterConfig(**LORA, bottleneck=2))
    file = folder / "adapter_packed.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    assert "adapter_packed.safetensors is truncated" in refused(petkit, tmp_path, [folder])
    (folder / "petkit.json").write_text("{")
    assert "petkit.json is not valid JSON" in refused(petkit, tmp_path, [folder])
    dora = save_adapter(
        tmp_path / "dora", world / "base", target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM"
    )
    assert "petkit cannot keep DoRA (use_dora)" in refused(petkit, tmp_path, [dora])
    assert "expected a model folder" in refused(petkit, tmp_path, [tmp_path / "gone"])


def test_analyses_and_searches_are_of_whole_models(petkit, tmp_path, world):
    adapters = asked(tmp_path, world, "linear", {"a": 1, "b": 1}, base_model=str(world / "base"))
    for command, flags in (("analyze", ()), ("tune", ("--metric", "true {model}"))):
        done = petkit("merge", command, adapters, "-o", tmp_path / "out", *flags)
        assert (done.code, done.out) == (2, "")
        assert f"{command} works on whole models, {world}/a is an adapter: write BASE+{world}/a" in done.err
    whole = {"base+a": 1, "base+b": 1}
    text = asked(tmp_path, world, "linear", whole, base_model=str(world / "base")).read_text()
    (tmp_path / "c.yml").write_text(text.replace("base+", f"base+{world}/"))
    result = result_of(petkit("merge", "analyze", tmp_path / "c.yml", "-o", tmp_path / "out", "--json"))
    assert all(one["footprint"] > 0 for one in result["weights"]["whole"]["models"])


def test_matrices_of_a_lora_without_its_configuration(petkit, tmp_path, world):
    for name in "pq":
        (tmp_path / name).mkdir()
        shutil.copy(world / "p/adapter_model.safetensors", tmp_path / name)
    done = petkit("merge", asked(tmp_path, tmp_path, "linear", {"p": 1, "q": 1}), "-o", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert f"{tmp_path}/p holds LoRA matrices such as" in done.err


def test_nan_in_an_adapter_of_peft_is_named(petkit, tmp_path, world):
    shutil.copytree(world / "p", tmp_path / "bad")
    state = load_file(tmp_path / "bad/adapter_model.safetensors")
    next(iter(state.values()))[0, 0] = torch.nan
    save_file(state, tmp_path / "bad/adapter_model.safetensors")
    done = petkit("merge", asked(tmp_path, tmp_path, "linear", {"bad": 1}), "-o", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert f"{tmp_path}/bad: " in done.err
    assert "holds NaN or infinity" in done.err
