import json
import re

import pytest

from petkit.errors import ArtifactError, InputError
from petkit.report.html import Section, flatten, write_page, write_report
from petkit.report.plots import noise_curve
from petkit.report.statistics import Interval
from petkit.report.tables import Table


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "my-run"
    folder.mkdir()
    (folder / "result.json").write_text(
        json.dumps(
            {
                "status": "complete",
                "stopped": "max_steps",
                "split": "test",
                "accuracy": 0.83,
                "interval": [0.8, 0.8549],
                "n": 1000,
                "unit": "examples",
                "per_class": {"cat": 0.9, "dog": None},
                "images_per_second": {"train": 25.0},
                "bytes": {"adapter": 2048, "head": 100, "full_model_fp32": 4096000, "ratio": 1906.9},
                "errors": [{"name": "blocks.0.down", "relative_error": 0.61, "note": None}],
                "checks": [{"name": "reload"}],
            }
        )
    )
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": 1.0}\n')
    (folder / "checks.json").write_text(
        json.dumps(
            {"checks": [{"name": "reload", "ok": True, "detail": "equal"}, {"name": "gate", "ok": False}]}
        )
    )
    (folder / "config.yaml").write_text("output: <my-run>\n")
    (folder / "petkit.json").write_text(
        json.dumps(
            {"base": {"id": "timm/test_vit"}, "lineage": [{"command": "train adapter", "version": "0.1.0"}]}
        )
    )
    return folder


def test_a_report_shows_every_file_of_the_run(run_folder):
    page = write_report(run_folder).read_text()
    assert "petkit run: my-run" in page
    assert "complete (stopped: max_steps)" in page
    assert "83.0%, 95 % interval 80.0% to 85.5%" in page
    assert "1,000 examples of the test split" in page
    assert "2,048 bytes (2.0 KiB)" in page
    size = "4,096,000 bytes (3.9 MiB): the full model takes 1,907 times the bytes of adapter and head"
    assert size in page
    assert '<td class="whole">cat</td><td class="number">90.0%</td>' in page
    assert "<h2>Errors</h2>" in page
    assert "blocks.0.down" in page
    assert "images_per_second.train" in page
    assert '<td class="whole good">passed</td>' in page
    assert '<td class="whole bad">FAILED</td>' in page
    assert "timm/test_vit" in page
    assert "output: &lt;my-run&gt;" in page
    assert (run_folder / "plots" / "training.png").is_file()


def test_numbers_are_written_for_people(tmp_path):
    result = {
        "accuracy": 0.7904999852180481,
        "interval": [0.45244602997442135, 0.6438546202048803],
        "n": 12345,
        "loss": 1.4150656127929688,
        "images_per_second": {"train": 53.38005583002305, "eval": 4271.9},
        "seed": 20261124,
        "trainable_parameters": 6794,
        "bytes": {"adapter": 864, "full_model_fp32": 1202984, "ratio": 12347.28175519630486},
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    page = write_report(tmp_path).read_text()
    rows = re.findall(r"<td[^>]*>([^<]*)</td><td[^>]*>([^<]*)</td>", page)
    # Nothing twice: as many rows as names.
    assert len(rows) == len(dict(rows))
    assert dict(rows) == {
        "accuracy": "79.0%, 95 % interval 45.2% to 64.4%",
        "measured on": "12,345 examples",
        "adapter": "864 bytes",
        "full model in float32": "1,202,984 bytes (1.1 MiB): the full model takes 12,347 times the bytes of "
        "adapter and head",
        "loss": "1.415",
        "images_per_second.train": "53.4",
        "images_per_second.eval": "4,270",
        "seed": "20261124",
        "trainable_parameters": "6,794",
    }


def test_scores_are_told_first_with_their_intervals(tmp_path):
    result = {
        "bleu": {"value": 25.57992564335381, "interval": [21.361429127999063, 29.330960102524458]},
        "chrf": {"value": 60.92221564029175, "interval": None},
        "spans": {"f1": {"value": 0.8549, "interval": [0.814, 0.899]}, "gold": 5},
        "n": 150,
    }
    (tmp_path / "result.json").write_text(json.dumps(result))
    page = write_report(tmp_path).read_text()
    rows = re.findall(r"<td[^>]*>([^<]*)</td><td[^>]*>([^<]*)</td>", page)
    assert rows == [
        ("F1 of spans", "85.5%, 95 % interval 81.4% to 89.9%"),
        ("BLEU", "25.6, 95 % interval 21.4 to 29.3"),
        ("chrF", "60.9"),
        ("measured on", "150 examples"),
        ("spans.gold", "5"),
    ]


def test_a_page_asks_nothing_of_the_network_and_runs_no_script(run_folder):
    page = write_report(run_folder).read_text()
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:image/png;base64,)", page)
    assert "http" not in page
    assert "prefers-color-scheme: dark" in page


def test_a_run_without_metrics_or_checks_still_gets_a_report(tmp_path):
    (tmp_path / "result.json").write_text('{"status": "complete"}')
    assert "complete" in write_report(tmp_path).read_text()


def test_text_from_outside_is_escaped(tmp_path):
    table = Table(("class",), (("<script>alert(1)</script>",),), title="<b>", note="<i>")
    page = write_page(tmp_path / "p.html", "<x>", [Section("<y>", ("<z>",), (table,))]).read_text()
    for raw in ("<script", "<b>", "<i>", "<x>", "<y>", "<z>"):
        assert raw not in page


def test_names_stay_whole_and_long_texts_have_room(tmp_path):
    rows = (("set-0", "a name of words", "x" * 64), ("set-1", "words that may be wrapped", "y"))
    table = Table(("id", "policy", "hash"), rows)
    page = write_page(tmp_path / "p.html", "t", [Section("s", tables=(table,))]).read_text()
    whole, long = '<td class="whole">', '<td class="long">'
    assert f"{whole}set-0</td><td>a name of words</td>{long}xxx" in page
    assert f"{whole}set-1</td><td>words that may be wrapped</td>{long}y</td>" in page
    # What is wider than a narrow screen is scrolled, pictures too.
    assert "td.number, td.whole { white-space: nowrap; }" in page
    assert "@media (max-width: 60rem) { img { max-width: none; } }" in page
    assert '<div class="wide"><table>' in page


def test_images_are_inlined_with_their_captions(tmp_path):
    image = noise_curve({"1 bit": [Interval(0.5, 0.4, 0.6)]}, [0.0], tmp_path / "noise.png")
    section = Section("Noise", images=(image,), captions={"noise.png": "accuracy under noise"})
    page = write_page(tmp_path / "p.html", "t", [section]).read_text()
    assert "data:image/png;base64," in page
    assert "accuracy under noise" in page


def test_a_language_models_run_shows_its_perplexity(tmp_path):
    (tmp_path / "result.json").write_text(
        '{"status": "complete", "perplexity": 12.345, "n": 900, "unit": "tokens"}'
    )
    assert "12.35" in write_report(tmp_path).read_text()


def test_flatten_joins_names_with_dots():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}


@pytest.mark.parametrize("content", [None, "{", "3"])
def test_a_missing_or_damaged_result_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"result\.json must"):
        write_report(tmp_path)


def test_images_that_are_not_png_files_are_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(b"GIF89a")
    for name in ("x.png", "missing.png"):
        with pytest.raises(InputError, match="must be a PNG file"):
            write_page(tmp_path / "p.html", "t", [Section("s", images=(tmp_path / name,))])
    assert not (tmp_path / "p.html").exists()
