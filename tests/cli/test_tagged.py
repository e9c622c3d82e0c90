"""Taggers on the command line."""

import json

import pytest

from tests.serving.text_models import save_bert

SAMPLE = ["train", "tagger", "tagger-smoke", "--threads", "1", "--device", "cpu"]
SHORT = ["--set", "training.epochs=3", "--set", "training.warmup_epochs=0"]


@pytest.fixture
def tagger(petkit, tmp_path):
    folder = tmp_path / "run"
    result = petkit(*SAMPLE, *SHORT, "-o", folder, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["status"] == "completed"
    return folder


def conll(path, text):
    path.write_text(text)
    return path


def test_the_smoke_recipe_finds_most_names(petkit, tmp_path):
    result = petkit(*SAMPLE, "-o", tmp_path / "run")
    assert result.code == 0, result.err
    assert "test          F1 " in result.out
    payload = json.loads((tmp_path / "run" / "result.json").read_text())
    assert payload["spans"]["f1"]["value"] > 0.75
    assert (tmp_path / "run" / "report.html").exists()


def test_eval_measures_the_recipes_split_and_files(petkit, tagger, tmp_path):
    own = json.loads(petkit("eval", tagger, "--json").out)
    assert (own["sentences"], own["unit"]) == (120, "words")
    text = "Anna B-PER\nlives O\nin O\nAston B-LOC\n. O\n"
    result = petkit("eval", tagger, "--data", conll(tmp_path / "a.conll", text))
    assert result.code == 0, result.err
    assert "1 sentence of 5 words; an interval needs at least 2 sentences" in " ".join(result.out.split())
    assert " to " not in result.out
    one = json.loads(petkit("eval", tagger, "--data", tmp_path / "a.conll", "--json").out)
    assert [one["interval"], *(one["spans"][name]["interval"] for name in ("f1", "recall"))] == [None] * 3
    assert petkit("eval", tagger, "--split", "train", "--json").code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Anna X\n", "a.conll:1: tag 'X' must be O or B, I with -TYPE in the scheme BIO"),
        ("Anna B-ORG\n", "a.conll:1: tag 'B-ORG' is none that the tagger knows (O, B-LOC, I-LOC, B-PER, "),
        ("Anna\n", "a.conll:1 has only 1 column, so that word and tag would be the same column"),
        ("Anna O\nB O O\n", "a.conll:2 must have 2 columns as line 1 has, got 3"),
        ("", "a.conll must hold at least one sentence"),
    ],
)
def test_eval_refuses_faulty_files_by_line(petkit, tagger, tmp_path, text, message):
    result = petkit("eval", tagger, "--data", conll(tmp_path / "a.conll", text))
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_eval_names_a_file_that_is_not_there(petkit, tagger, tmp_path):
    result = petkit("eval", tagger, "--data", tmp_path / "no.conll")
    assert (result.code, result.out) == (2, "")
    assert "no.conll does not exist: expected a file of words in columns, or a recipe" in result.err


def test_eval_reads_columns_as_it_is_told(petkit, tagger, tmp_path):
    file = conll(tmp_path / "a.conll", "1 Anna x B-PER\n2 lives x O\n")
    settings = ["--set", "data.word_column=1", "--set", "data.tag_column=3"]
    result = petkit("eval", tagger, "--data", file, *settings, "--json")
    assert json.loads(result.out)["n"] == 2, result.err
    refused = petkit("eval", tagger, "--set", "model.hidden=3")
    assert (refused.code, "the artifact says what it is" in refused.err) == (2, True)


def test_flags_without_effect_are_refused(petkit, tagger):
    for flags in (["--noise", "0.1"], ["--mode", "dense"], ["--skip-bad"]):
        result = petkit("eval", tagger, *flags)
        assert (result.code, "since the artifact is a tagger" in result.err) == (2, True)
    assert petkit("predict", tagger, "Anna", "--top-k", "2").code == 2


def test_a_gate_fails_with_3(petkit, tagger):
    assert petkit("eval", tagger, "--min-accuracy", "1").code == 3
    assert petkit("eval", tagger, "--min-accuracy", "0.1").code == 0


def test_a_gate_on_the_f1_of_spans(petkit, tagger):
    result = petkit("eval", tagger, "--min-f1", "1", "--json")
    f1 = json.loads(result.out)["spans"]["f1"]["value"]
    assert (result.code, result.err) == (
        3,
        f"error: F1 of spans must be at least 1 (--min-f1), got {f1:.4f}\n",
    )
    assert petkit("eval", tagger, "--min-f1", f1).code == 0
    both = petkit("eval", tagger, "--min-f1", "1", "--min-accuracy", "1")
    assert both.err.count("error: ") == 2


def test_a_tagger_without_spans_has_no_f1(petkit, tmp_path):
    folder = tmp_path / "run"
    assert petkit(*SAMPLE, *SHORT, "--set", "data.scheme=none", "-o", folder).code == 0
    result = petkit("eval", folder, "--min-f1", "0.5")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        f"error: --min-f1 needs a tagger of spans, and {folder} has data.scheme none: use --min-accuracy\n"
    )
    assert petkit("eval", folder, "--min-accuracy", "0.1").code == 0


def test_predict_gives_every_word_a_tag(petkit, tagger, tmp_path):
    lines = tmp_path / "a.txt"
    lines.write_text("Anna met Boris .\n\nIt rained .\n")
    columns = conll(tmp_path / "a.conll", "Anna\nmet\n\nBoris\n")
    result = petkit("predict", tagger, lines, columns, "She moved to Aston .")
    assert result.code == 0, result.err
    sentences = [[row.split(" ") for row in block.splitlines()] for block in result.out.strip().split("\n\n")]
    words = [[word for word, _ in rows] for rows in sentences]
    assert words == [
        ["Anna", "met", "Boris", "."], ["It", "rained", "."], ["Anna", "met"], ["Boris"],
        ["She", "moved", "to", "Aston", "."],
    ]  # fmt: skip
    assert {tag for rows in sentences for _, tag in rows} <= {"O", "B-LOC", "I-LOC", "B-PER", "I-PER"}
    found = json.loads(petkit("predict", tagger, lines, "--json").out)["predictions"]
    assert [one["words"] for one in found] == words[:2]
    assert all(len(one["tags"]) == len(one["words"]) for one in found)
    assert [one["row"] for one in found] == [f"{lines}:1", f"{lines}:3"]
    found = json.loads(petkit("predict", tagger, columns, "It rained", "--json").out)["predictions"]
    assert [one.get("row") for one in found] == [f"{columns}:1", f"{columns}:4", None]
    rows = petkit("predict", tagger, lines, "--jsonl").out.splitlines()
    assert [json.loads(row)["words"] for row in rows] == words[:2]
    assert petkit("predict", tagger, tmp_path / "no.conll").code == 2
    for name in (tmp_path / "no.en", tmp_path, "-"):
        refused = petkit("predict", tagger, name)
        assert (refused.code, refused.out) == (2, "")
        assert ".txt (a sentence a line) or .conll" in refused.err


def test_predict_reads_columns_as_it_is_told(petkit, tagger, tmp_path):
    file = conll(tmp_path / "a.conll", "# said\n1,Anna,x\n2,lives,x\n")
    columns = ["--set", "data.separator=,", "--set", "data.comment=#", "--set"]
    result = petkit("predict", tagger, file, *columns, "data.word_column=1")
    assert result.code == 0, result.err
    assert [row.split(",")[0] for row in result.out.splitlines()] == ["Anna", "lives"]
    # The last column, which the recipe has for tags.
    found = json.loads(petkit("predict", tagger, file, *columns, "data.word_column=-1", "--json").out)
    assert found["predictions"][0]["words"] == ["x", "x"]
    result = petkit("predict", tagger, file, *columns, "data.word_column=3")
    assert (result.code, result.out) == (2, "")
    assert result.err == f"error: {file}:2 must have a column 3 (data.word_column), got 3 columns\n"


def test_predict_takes_the_columns_of_the_recipe(petkit, tmp_path):
    train = conll(tmp_path / "train.conll", "1\tAnna\tB-PER\n2\tsleeps\tO\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output: {tmp_path / 'run'}\nmodel: {{word_size: 4, hidden: 4}}\n"
        f"data: {{train: {train}, test: {train}, word_column: 1, scheme: BIO}}\n"
        "training: {epochs: 1, batch_size: 1, warmup_epochs: 0}\n"
    )
    assert petkit("train", "tagger", recipe).code == 0
    predict = ["predict", tmp_path / "run", train, "--json"]
    found = json.loads(petkit(*predict).out)
    assert found["predictions"][0]["words"] == ["Anna", "sleeps"]
    found = json.loads(petkit(*predict, "--set", "data.word_column=0").out)
    assert found["predictions"][0]["words"] == ["1", "2"]


SETTINGS = [
    ("data.tag_column=1", "data.tag_column has no effect: petkit predict reads words alone (--set); "),
    ("seed=1", "seed has no effect: petkit predict reads words alone (--set); "),
    ("head.kind=softmax", "head.kind has no effect: the artifact says what it is (--set); "),
    ("data.word_colum=1", "unknown key data.word_colum (--set); did you mean data.word_column?"),
]


def test_predict_refuses_settings_without_effect(petkit, tagger, tmp_path):
    file = conll(tmp_path / "a.conll", "Anna\n")
    for setting, message in SETTINGS:
        result = petkit("predict", tagger, file, "--set", setting)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(f"error: {message}")


def test_columns_need_a_file_in_columns(petkit, tagger):
    result = petkit("predict", tagger, "Anna sleeps", "--set", "data.word_column=1")
    assert (result.code, result.out) == (2, "")
    assert "error: --set has no effect, since no INPUT is a file in columns (.conll, " in result.err


def test_a_file_of_unknown_shape_is_refused(petkit, tagger, tmp_path):
    """Read as columns, it would lose every word but the first of each line."""
    file = tmp_path / "sentences"
    file.write_text("Anna sleeps\n")
    result = petkit("predict", tagger, file)
    assert (result.code, result.out) == (2, "")
    assert "must end in .txt (a sentence a line) or in .conll" in result.err
    assert "got no ending: rename it" in result.err


def test_inspect_and_verify_know_taggers(petkit, tagger):
    page = petkit("inspect", tagger).out
    assert "labels   O, B-LOC, I-LOC, B-PER, I-PER" in page
    assert "crf.transitions" in page
    assert json.loads(petkit("inspect", tagger, "--json").out)["kind"] == "tagger"
    assert petkit("verify", tagger).code == 0
    (tagger / "tagger.safetensors").unlink()
    assert petkit("verify", tagger).code == 2


def test_commands_for_adapters_say_what_it_is(petkit, tagger):
    result = petkit("export", tagger, "--format", "peft", "-o", tagger.parent / "peft")
    assert result.code == 2
    assert "describes a tagger, but an adapter is needed here; petkit eval and petkit predict take it" in (
        result.err
    )


def test_a_dry_run_prints_the_plan(petkit, tmp_path):
    result = petkit(*SAMPLE, "--dry-run", "-o", tmp_path / "run")
    assert result.code == 0, result.err
    assert "300 train, 120 test" in result.out
    assert not (tmp_path / "run").exists()


def test_a_link_that_leads_out_is_a_failed_check(petkit, tagger, tmp_path):
    (tagger / "vocabulary.json").rename(tmp_path / "vocabulary.json")
    (tagger / "vocabulary.json").symlink_to(tmp_path / "vocabulary.json")
    result = petkit("verify", tagger)
    assert result.code == 5
    assert "no symlink leads out" in result.out


def test_eval_and_predict_say_that_long_sentences_go_in_parts(petkit, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"output: {tmp_path / 'run'}\nmodel: {{encoder: {save_bert(tmp_path / 'bert')}, tune: frozen}}\n"
        "data: {format: sample, scheme: BIO, train_size: 20, test_size: 20}\n"
        "training: {epochs: 1, batch_size: 20, warmup_epochs: 0, max_steps: 1}\n"
    )
    assert petkit("train", "tagger", recipe).code == 0
    # The encoder has 32 positions.
    file = conll(tmp_path / "long.conll", "cat O\n" * 40 + "\ncat O\n")
    counted = f"warning: {file}: sentences that are longer than the encoder reads, and go in parts: 1 of 2\n"
    for words in (("eval", tmp_path / "run", "--data", file), ("predict", tmp_path / "run", file)):
        result = petkit(*words)
        assert (result.code, result.err) == (0, counted)
