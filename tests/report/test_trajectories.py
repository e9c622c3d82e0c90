import itertools

import numpy as np
import pytest
from PIL import Image

from petkit.errors import InputError
from petkit.report import trajectories
from petkit.report.figures import PALETTE, colour, marker
from petkit.report.routing import Estimates, write_routing_page
from petkit.report.sparkline import sparkline
from petkit.report.trajectories import _frontier, draw_frontier, draw_planes, draw_reliability, draw_traces

ITEM = {"id": "1", "decision": "cot", "regime": "convergent", "cumulative": 3.0, "spearman": -0.5,
        "von_neumann": 0.4, "reason": "falls <b>"}  # fmt: skip
SPREAD = {"mean": 0.5, "low": 0.4, "high": 0.6}
POLICY = {"policy": "always cot", "accuracy": SPREAD, "tokens": SPREAD, "tokens_saved": SPREAD,
          "accuracy_gain": {"mean": -0.1, "low": -0.2, "high": 0.05}, "modes": {"cot": 2}}  # fmt: skip


def test_sparkline():
    assert sparkline([0, 1, 2, 8]) == "▁▂▃█"
    assert sparkline([0, 0]) == "▁▁"
    assert sparkline([]) == ""


def test_pictures(tmp_path):
    paths = [
        draw_traces(
            [("convergent", [1.0, 0.5]), ("overload", [2.0]), ("exploratory", [])], tmp_path / "a.png"
        ),
        draw_planes([ITEM, {**ITEM, "regime": "overload"}], tmp_path / "b.png"),
        draw_frontier([POLICY], tmp_path / "c.png"),
        draw_reliability([{"n": 3, "confidence": 0.6, "best": 0.5}], tmp_path / "e.png"),
    ]
    for path in paths:
        with Image.open(path) as image:
            assert image.size[0] > 300
    with pytest.raises(InputError, match="traces must hold at least one"):
        draw_traces([], tmp_path / "d.png")


def test_planes_show_the_thresholds_and_a_single_point(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(trajectories, "save", lambda figure, path: figures.append(figure) or path)
    thresholds = {"cumulative": 32.0, "spearman": 0.07, "von_neumann": 2.0, "overload": "direct"}
    draw_planes([ITEM], tmp_path / "a.png", thresholds)
    first, second, third = figures[0].axes
    for axes in (first, third):
        low, high = axes.get_xlim()
        assert -3 < low < 0
        assert 32 < high < 35
    low, high = second.get_ylim()
    assert (low < 0.4, high > 2) == (True, True)
    found = [sorted(float(line.get_xdata()[0]) for line in axes.lines) for axes in (second,)]
    assert found == [[-0.07, 0.0, 0.07]]
    # The two ends of the band, and the other descriptor's threshold.
    assert [len(axes.lines) for axes in (first, second, third)] == [3, 3, 2]
    draw_planes([ITEM], tmp_path / "b.png")
    assert not any(axes.lines for axes in figures[1].axes)


def test_points_at_100_per_cent_are_whole(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(trajectories, "save", lambda figure, path: figures.append(figure) or path)
    draw_reliability([{"n": 3, "confidence": 1.0, "best": 1.0}], tmp_path / "a.png")
    (dots,) = figures[0].axes[0].collections
    assert not dots.get_clip_on()


def test_the_page_tells_thresholds_estimates_and_the_calibration(tmp_path):
    result = {
        "policies": [POLICY],
        "datasets": {},
        "dataset_level": {"d": {"mean_point": {"direct": 6, "standard": 0, "cot": 2},
                                "mean_trajectory": {"direct": 8, "standard": 0, "cot": 0}}},
        "reliability": None,
        "fit": [("reached", "34.2 (NOT kept)")],
    }  # fmt: skip
    thresholds = {"cumulative": 32.0, "spearman": 0.07, "von_neumann": 2.0}
    told = {
        "thresholds": thresholds,
        "estimates": Estimates({"largest": 4.43, "mean": 0.521}, "1 of 2 sums <may> lie above"),
    }
    items = [{**ITEM, "entropy_bias": 0.6149}, ITEM]
    page = write_routing_page(tmp_path, [("convergent", [1.0])] * 2, items, result, **told).read_text()
    assert "34.2 (NOT kept)" in page
    assert "Thresholds: cumulative 32, spearman 0.07, von_neumann 2." in page
    assert "the true ones are larger by 4.43 nats at most, 0.521 on average over all tokens;" in page
    assert "<p>Warning: 1 of 2 sums &lt;may&gt; lie above.</p>" in page
    assert '<th class="number">entropy_bias</th>' in page
    assert '<td class="number">0.6149</td>' in page
    assert '<td class="whole">6 / 0 / 2</td><td class="whole">differ</td>' in page
    assert '<td class="whole">8 / 0 / 0</td><td class="whole">agree</td>' in page


def policy_at(name, tokens, accuracy):
    spread = {"accuracy": accuracy, "tokens": tokens}
    bars = {key: {"mean": mean, "low": mean * 0.9, "high": mean * 1.1} for key, mean in spread.items()}
    return {**POLICY, "policy": name, **bars}


def test_points_that_hide_each_other_are_named_together(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(trajectories, "save", lambda figure, path: figures.append(figure) or path)
    places = {"a": (50, 0.3), "b": (50, 0.3), "c": (50.1, 0.3), "d": (90, 0.3), "e": (90, 0.5)}
    draw_frontier([policy_at(name, *place) for name, place in places.items()], tmp_path / "a.png")
    (axes,) = figures[0].axes
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a\n= b\n≈ c", "d", "e"]
    markers = [line for line in axes.lines if line.get_marker() in "o^Dsv" and line.get_zorder() == 4]
    assert len(markers) == 3
    # Every policy's bars, thin and below every marker.
    assert len(axes.containers) == 5
    for bars in axes.containers:
        assert all(part.get_zorder() < 4 for part in bars.get_children())


def test_small_markers_keep_their_colours(tmp_path):
    policies = [policy_at(str(place), 10 + 7 * place, 0.1 + 0.06 * (place % 5)) for place in range(14)]
    with Image.open(draw_frontier(policies, tmp_path / "a.png")) as image:
        found = image.convert("RGB").getcolors(300)
    counts = {f"#{red:02X}{green:02X}{blue:02X}": count for count, (red, green, blue) in found}
    assert all(counts[colour(place)] >= 20 for place in range(14))
    assert max(counts, key=counts.get) == "#FFFFFF"


def test_ids_and_modes_stay_whole_and_reasons_have_room(tmp_path):
    reason = "spearman -0.178 < -0.07 and von Neumann 1.926 < 2: converges, reason on"
    items = [{**ITEM, "id": "set0-0", "reason": reason}, {**ITEM, "decision": "standard", "reason": "short"}]
    page = write_routing_page(tmp_path, [("convergent", [1.0])] * 2, items).read_text()
    assert '<td class="whole">set0-0</td><td class="whole">cot</td><td class="long">spearman -0.178' in page
    assert '<td class="long">short</td><td class="number">3</td>' in page


def test_the_frontier_holds_what_nothing_surpasses():
    assert _frontier([(10, 0.5), (20, 0.4), (30, 0.7), (10, 0.3)]) == [(10, 0.5), (30, 0.7)]


def test_the_page_is_self_contained_and_escaped(tmp_path):
    result = {
        "policies": [POLICY],
        "datasets": {"d": [POLICY]},
        "dataset_level": {"d": {"mean_point": {"direct": 7, "standard": 0, "cot": 1}}},
        "reliability": {"bins": [{"n": 3, "confidence": 0.6, "best": 0.5}], "error": 0.1},
    }
    page = write_routing_page(tmp_path, [("convergent", [1.0])], [ITEM], result).read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "falls &lt;b&gt;" in page
    assert "7 / 0 / 1" in page
    assert page.count("<th>accuracy against it</th>") == 2
    # The ends of an interval stay together.
    assert "<td>-10.0% (-20.0%\u00a0to\u00a0+5.0%)</td>" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_every_policy_of_a_comparison_has_its_own_colour_and_marker():
    """Eleven policies, this router and the learned one among them, and a spare."""
    assert len({colour(place) for place in range(14)}) == len({marker(place) for place in range(14)}) == 14
    assert len({(colour(place), marker(place)) for place in range(50)}) == 50
    pairs = itertools.combinations(PALETTE, 2)
    # In CIELAB, where 2.3 is a difference that is just seen.
    assert min(np.linalg.norm(_lab(one) - _lab(other)) for one, other in pairs) > 25


def _lab(code):
    """CIELAB of a colour in sRGB under D65."""
    red_green_blue = np.array(list(bytes.fromhex(code[1:]))) / 255
    linear = np.where(
        red_green_blue <= 0.04045, red_green_blue / 12.92, ((red_green_blue + 0.055) / 1.055) ** 2.4
    )
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.maximum(np.array(to_xyz) @ linear / [0.9505, 1, 1.089], 216 / 24389))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
