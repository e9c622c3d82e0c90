import errno
import json
import math

import numpy as np
import pytest
from PIL import Image

from petkit.errors import InputError, PetkitError
from petkit.report.figures import MARKERS, PALETTE, colour, marker, new_figure, percent_axis, step_axis
from petkit.report.plots import (
    SizePoint,
    accuracy_bytes,
    grouped_intervals,
    named_intervals,
    noise_curve,
    read_metrics,
    training_curves,
)
from petkit.report.statistics import Interval

ACCURACY = Interval(0.8, 0.78, 0.82)
ONE_SEED = Interval(0.8, math.nan, math.nan)


def write_metrics(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def assert_drawn(path):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5
    assert path.stat().st_size < 100_000


def draw_sizes(out):
    return accuracy_bytes(
        [SizePoint("1 bit", 90_000, ACCURACY), SizePoint("full", 86_000_000, ONE_SEED)], out
    )


def test_accuracy_bytes_draws(tmp_path):
    assert_drawn(draw_sizes(tmp_path / "deep" / "a.png"))


def test_the_same_numbers_give_the_same_file(tmp_path):
    first, second = draw_sizes(tmp_path / "a.png"), draw_sizes(tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()


def test_noise_curve_draws(tmp_path):
    assert_drawn(noise_curve({"1 bit": [ACCURACY, ONE_SEED]}, [0.0, 0.5], tmp_path / "n.png"))


def test_grouped_intervals_draw_with_a_series_missing_in_one_group(tmp_path):
    groups = {"1 bit": {"PTQ": ACCURACY, "QAT": ACCURACY}, "2 bit": {"QAT": ACCURACY}}
    assert_drawn(grouped_intervals(groups, tmp_path / "g.png", x_label="bits per weight"))


def test_a_reference_is_drawn_across_the_groups(tmp_path):
    groups = {"1": {"QAT": ACCURACY}, "32": {"32 bit": ACCURACY}}
    across = grouped_intervals(groups, tmp_path / "a.png", reference="32 bit")
    alone = grouped_intervals(groups, tmp_path / "b.png")
    assert_drawn(across)
    assert across.read_bytes() != alone.read_bytes()


def test_named_intervals_draw_equal_values_side_by_side(tmp_path):
    names = ["1 bit, h 32", "a name that is far too long for one line of the axis", "8 bit"]
    assert_drawn(named_intervals(dict.fromkeys(names, ACCURACY), tmp_path / "n.png"))


def test_no_two_series_look_alike():
    looks = {(colour(index), marker(index)) for index in range(len(PALETTE) * len(MARKERS))}
    assert len(looks) == len(PALETTE) * len(MARKERS)


def test_training_curves_draw_every_family(tmp_path):
    rows = [
        {"step": s, "train/loss": 1 / s, "learning_rate": 1e-3, "note": "text", "ok": True}
        for s in range(1, 40)
    ]
    rows += [{"step": 39, "validation/accuracy": 0.5, "validation/loss": math.nan}]
    assert_drawn(training_curves(write_metrics(tmp_path / "metrics.jsonl", rows), tmp_path / "t.png"))


def test_drawing_leaves_no_pyplot_behind(tmp_path):
    import sys

    loaded_before = "matplotlib.pyplot" in sys.modules
    draw_sizes(tmp_path / "a.png")
    assert ("matplotlib.pyplot" in sys.modules) == loaded_before


def test_read_metrics_leaves_out_a_last_line_that_was_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"a": 1\n{"a": 2}\n', r":1 must be a JSON object"), ("[1]\n", r":1 must be a JSON object, got list")],
)
def test_read_metrics_names_a_bad_line(tmp_path, text, message):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_metrics(path)


def test_refusals(tmp_path):
    out = tmp_path / "x.png"
    with pytest.raises(InputError, match="no such file"):
        training_curves(tmp_path / "missing.jsonl", out)
    with pytest.raises(InputError, match="must log loss, accuracy or learning_rate"):
        training_curves(write_metrics(tmp_path / "m.jsonl", [{"step": 1, "seconds": 2.0}]), out)
    with pytest.raises(InputError, match="rows must hold at least one entry"):
        accuracy_bytes([], out)
    with pytest.raises(InputError, match="rows must hold at least one entry"):
        named_intervals({}, out)
    with pytest.raises(InputError, match="at least 1 to lie on a logarithmic axis"):
        accuracy_bytes([SizePoint("none", 0, ACCURACY)], out)
    with pytest.raises(InputError, match="series '1 bit' must have 2 values"):
        noise_curve({"1 bit": [ACCURACY]}, [0.0, 0.5], out)
    assert not out.exists()


def test_a_plot_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(PetkitError, match=r"cannot write .*sizes.png: No space left on device"):
        draw_sizes(tmp_path / "sizes.png")


def labels(axis):
    return [tick.get_text() for tick in axis.get_ticklabels() if tick.get_text()]


def test_a_single_step_has_a_whole_number():
    figure, (axes,) = new_figure(1)
    axes.plot([1], [0.0])
    percent_axis(axes)
    step_axis(axes)
    figure.canvas.draw()
    assert labels(axes.xaxis) == ["0", "1", "2"]
    # Nothing is rewarded with less than nothing.
    assert float(labels(axes.yaxis)[0].rstrip("%")) == 0
