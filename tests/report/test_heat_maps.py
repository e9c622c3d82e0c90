from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from petkit.errors import InputError
from petkit.report import heat_maps
from petkit.report.heat_maps import NAMED_ROWS, Scale, draw_heat_map

COSINE = Scale("cosine", centre=0.0)


@pytest.fixture
def figures(monkeypatch):
    found = []
    monkeypatch.setattr(heat_maps, "save", lambda figure, path: found.append(figure) or path)
    return found


def test_a_picture(tmp_path):
    names = ["maths", "code with a long name"]
    path = draw_heat_map(names, names, [[None, 0.5], [-0.5, None]], COSINE, tmp_path / "a/b.png")
    with Image.open(path) as image:
        assert image.size[0] > 300
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    # The ends of the scale and the missing cells keep their colours.
    ends = [tuple(round(255 * part) for part in COSINE.colours(place)[:3]) for place in (0.0, 1.0)]
    assert {*ends, (0xE4, 0xE4, 0xE4)} <= colours


def test_numbers_are_in_the_cells_while_there_is_room(figures, tmp_path):
    draw_heat_map(["a"], ["b", "c", "d"], [[0.126, -0.001, None]], COSINE, tmp_path / "a.png")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["0.13", "0.00"]
    rows = [str(row) for row in range(300)]
    draw_heat_map(rows, ["b"], [[0.1]] * 300, COSINE, tmp_path / "b.png")
    axes = figures[1].axes[0]
    assert not axes.texts
    named = [label.get_text() for label in axes.get_yticklabels()]
    assert (named[0], named[-1], len(named) <= NAMED_ROWS + 1) == ("0", "299", True)


@pytest.mark.parametrize("rows", [1, 2, 39, 40, 41, 81, 85])
def test_named_rows_do_not_touch(figures, tmp_path, rows):
    draw_heat_map([str(row) for row in range(rows)], ["b"], [[0.1]] * rows, COSINE, tmp_path / "a.png")
    places = figures[0].axes[0].get_yticks()
    assert places[-1] == rows - 1
    assert len(places) == 1 or min(np.diff(places)) >= max(1, np.diff(places)[0])


@pytest.mark.parametrize("count", [2, 3, 6])
def test_names_do_not_overlap(figures, tmp_path, count):
    names = ["instructions", "maths", "merged-ties-0.3", "code", "agents-and-tools-of-many-kinds", "law"][
        :count
    ]
    pairs = [f"{one}\n{other}" for one in names for other in names if one < other]
    draw_heat_map(names, pairs, [[0.2] * len(pairs)] * count, COSINE, tmp_path / "a.png", row_label="model")
    figure = figures[0]
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    for labels, side in ((axes.get_xticklabels(), 0), (axes.get_yticklabels(), 1)):
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.min[side])
        assert all(one.max[side] <= other.min[side] for one, other in pairwise(boxes))
        assert all(box.min.min() >= 0 and (box.max <= figure.bbox.max).all() for box in boxes)


def test_small_numbers_do_not_look_large():
    assert COSINE.norm([0.001])(0.001) == pytest.approx(0.51)
    assert Scale("share").norm([0.01])(0.01) == pytest.approx(0.2)
    assert COSINE.norm([])(0.0) == 0.5
    conflict = Scale("conflict", centre=0.5, flipped=True)
    assert conflict.colours(0.0) == COSINE.colours(1.0)


def test_what_is_no_table(tmp_path):
    with pytest.raises(InputError, match="rows must hold at least one entry"):
        draw_heat_map([], ["a"], [], COSINE, tmp_path / "a.png")
    with pytest.raises(InputError, match="values must be 1 rows of 2 numbers"):
        draw_heat_map(["a"], ["b", "c"], [[1.0]], COSINE, tmp_path / "a.png")
