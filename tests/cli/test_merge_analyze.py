"""`petkit merge analyze`: its help, its folder and its faults."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file


def perturbed(folder, target, seed, density=0.5):
    shutil.copytree(folder, target)
    source = torch.Generator().manual_seed(seed)
    tensors = {
        name: one
        + (torch.rand(one.shape, generator=source) < density) * 0.1 * torch.randn(one.shape, generator=source)
        for name, one in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def config(tmp_path, llama):
    """Two experts of a tiny language model, and one of both."""
    shutil.copytree(llama, tmp_path / "base")
    for seed, name in enumerate(("maths", "code", "merged")):
        perturbed(llama, tmp_path / name, seed)
    path = tmp_path / "merge.yml"
    path.write_text(
        f"merge_method: linear\nbase_model: {tmp_path}/base\nmodels:\n"
        f"  - {{model: {tmp_path}/maths, parameters: {{weight: 1}}}}\n"
        f"  - {{model: {tmp_path}/code, parameters: {{weight: 1}}}}\n"
    )
    return path


@pytest.fixture
def scores(tmp_path):
    flags = []
    for name, values in (
        ("base", [0, 0, 1]),
        ("maths", [1, 0, 1]),
        ("code", [0, 1, 1]),
        ("merged", [1, 1, 1]),
    ):
        rows = [json.dumps({"id": str(i), "score": value}) + "\n" for i, value in enumerate(values)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
        flags += ["--scores", f"{name}={tmp_path}/{name}.jsonl"]
    return flags


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [("the cat", "maths"), ("dog ran", "maths"), ("on the mat", "poems")]
    path.write_text("".join(json.dumps({"prompt": text, "domain": domain}) + "\n" for text, domain in rows))
    return path


def test_help(petkit):
    shown = petkit("merge", "analyze", "--help").out
    for flag in ("--eta", "--dimensions", "--prompts", "--merged", "--scores", "--overwrite"):
        assert flag in shown
    assert "analyze" in petkit("merge", "--help").out


def test_no_configuration(petkit):
    done = petkit("merge", "analyze")
    assert (done.code, done.out) == (2, "")
    assert "missing argument 'CONFIG'" in done.err


def test_weights(petkit, config, tmp_path):
    folder = tmp_path / "out"
    done = petkit("merge", "analyze", config, "-o", folder)
    assert done.code == 0
    assert "maths · code" in done.out
    assert "standard deviation is about 0.0625" in done.out
    assert {one.name for one in folder.iterdir()} == {"analysis.json", "plots", "report.html", "result.json"}
    result = json.loads((folder / "analysis.json").read_text())
    assert result["weights"]["whole"]["models"][0]["footprint"] == pytest.approx(0.5, abs=0.05)
    assert result["weights"]["whole"]["pairs"][0]["sign_conflict"] == pytest.approx(0.5, abs=0.1)
    assert list(result["weights"]["layers"]) == ["0", "1", "outside"]
    assert json.loads((folder / "result.json").read_text())["status"] == "completed"


def test_everything_as_json(petkit, config, tmp_path, scores, prompts):
    flags = ("--merged", tmp_path / "merged", "--prompts", prompts, *scores, "--max-new-tokens", 3, "--json")
    done = petkit("merge", "analyze", config, "-o", tmp_path / "out", "--expert", "poems=code", *flags)
    assert done.code == 0
    result = json.loads(done.out)
    assert [one["role"] for one in result["models"]] == ["expert", "expert", "merged"]
    assert len(result["weights"]["whole"]["pairs"]) == 3
    own = result["neighbourhood"]["merged"]["merged"]
    assert len(own["cells"]) == 4
    assert result["neighbourhood"]["own_experts"] == {"maths": "maths", "poems": "code"}
    assert {(one["domain"], one["expert"]) for one in own["neighbours_per_token"]} == {
        ("maths", "code"),
        ("poems", "maths"),
    }
    cosines = {one["model"]: one["cosine"] for one in result["gains"]["models"]}
    assert cosines == pytest.approx({"maths": 0.5**0.5, "code": 0.5**0.5, "merged": 1.0})
    again = petkit("merge", "analyze", config, "-o", tmp_path / "again", "--expert", "poems=code", *flags)
    for one in (first := json.loads(done.out)), (second := json.loads(again.out)):
        del one["seconds"], one["folder"]
    assert first == second


def test_a_domain_without_an_expert_is_told(petkit, config, tmp_path, prompts):
    flags = ("--merged", tmp_path / "merged", "--prompts", prompts, "--max-new-tokens", 2)
    done = petkit("merge", "analyze", config, "-o", tmp_path / "out", *flags)
    assert done.code == 0
    assert "domain poems has no expert of its own, so no neighbours: add --expert poems=MODEL" in done.err
    assert "KL(expert || merged), nats a token" in done.out


def test_a_model_that_changed_nothing_is_told(petkit, config, tmp_path):
    shutil.copy(tmp_path / "base/model.safetensors", tmp_path / "code/model.safetensors")
    done = petkit("merge", "analyze", config, "-o", tmp_path / "out")
    assert done.code == 0
    assert f"warning: code changed no weight of {tmp_path}/base by more than 0.001 of it" in done.err


def test_a_folder_is_replaced_only_when_asked(petkit, config, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine").touch()
    done = petkit("merge", "analyze", config, "-o", folder)
    assert (done.code, done.out) == (2, "")
    assert "is not empty" in done.err
    assert petkit("merge", "analyze", config, "-o", folder, "--overwrite").code == 2
    (folder / "mine").unlink()
    assert petkit("merge", "analyze", config, "-o", folder).code == 0
    assert petkit("merge", "analyze", config, "-o", folder).code == 2
    assert petkit("merge", "analyze", config, "-o", folder, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--prompts", "@/prompts.jsonl"), "--prompts needs --merged FOLDER"),
        (("--merged", "@/maths"), "maths is there twice"),
        (("--merged", "@/gone"), "gone is missing"),
        (("--expert", "a=b"), "--expert has no effect without --prompts"),
        (
            ("--merged", "@/merged", "--prompts", "@/prompts.jsonl", "--expert", "poem=code"),
            "did you mean poems?",
        ),
        (
            ("--merged", "@/merged", "--prompts", "@/prompts.jsonl", "--expert", "poems=kode"),
            "did you mean code?",
        ),
        (("--scores", "base"), "--scores must be MODEL=FILE, got 'base'"),
        (("--scores", "base=@/prompts.jsonl"), "none are given for maths, add maths=FILE"),
        (("--dimensions", "100"), "dimensions must be a power of 2 from 16 to 4096, got 100"),
        (("--eta", "1"), "eta must be at least 0 and below 1, got 1"),
    ],
)
def test_flags_that_do_not_fit(petkit, config, tmp_path, prompts, flags, message):
    given = [flag.replace("@", str(tmp_path)) for flag in flags]
    done = petkit("merge", "analyze", config, "-o", tmp_path / "out", *given)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("base_model: @/base\n", "", "analyze needs base_model"),
        (
            "  - {model: @/code, parameters: {weight: 1}}\n",
            "",
            "at least two are needed beside base_model, got 1",
        ),
        ("base_model", "base_modl", "did you mean base_model?"),
    ],
)
def test_configurations_that_do_not_fit(petkit, config, tmp_path, old, new, message):
    config.write_text(config.read_text().replace(old.replace("@", str(tmp_path)), new))
    done = petkit("merge", "analyze", config, "-o", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_weights_that_are_no_numbers_are_named(petkit, config, tmp_path):
    path = tmp_path / "code/model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][0, 0] = torch.nan
    save_file(tensors, path)
    done = petkit("merge", "analyze", config, "-o", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert f"{tmp_path}/code must hold finite numbers, lm_head.weight holds nan or inf" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--samples", 2), "--samples has no effect without --prompts"),
        (("--plain-prompts",), "--plain-prompts has no effect without --prompts"),
        (("--scores", "mahts=x.jsonl"), "did you mean maths?"),
    ],
)
def test_options_in_vain(petkit, config, tmp_path, flags, message):
    done = petkit("merge", "analyze", config, "-o", tmp_path / "out", *flags)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


@pytest.mark.parametrize("place", ["merged", "merged/report", "."])
def test_nothing_that_is_read_can_be_replaced(petkit, config, tmp_path, place):
    merged = tmp_path / "merged"
    before = sorted(path.name for path in merged.iterdir())
    flags = ("--merged", merged, "--overwrite")
    done = petkit("merge", "analyze", config, "-o", tmp_path / place, *flags)
    assert (done.code, done.out) == (2, "")
    assert "must lie apart from what is read" in done.err
    assert sorted(path.name for path in merged.iterdir()) == before
