import pytest
from PIL import Image

from petkit.errors import InputError
from petkit.report.figures import colour, marker
from petkit.report.routing import write_routing_page
from petkit.report.sparkline import sparkline
from petkit.report.trajectories import _frontier, draw_frontier, draw_planes, draw_reliability, draw_traces

ITEM = {"id": "1", "decision": "cot", "regime": "convergent", "cumulative": 3.0, "spearman": -0.5,
        "von_neumann": 0.4, "reason": "falls <b>"}  # fmt: skip
SPREAD = {"mean": 0.5, "low": 0.4, "high": 0.6}
POLICY = {"policy": "always cot", "accuracy": SPREAD, "tokens": SPREAD, "tokens_saved": SPREAD,
          "modes": {"cot": 2}}  # fmt: skip


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
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_every_policy_of_a_comparison_has_its_own_colour_and_marker():
    """Eleven policies, this router and the learned one among them, and a spare."""
    assert len({colour(place) for place in range(14)}) == len({marker(place) for place in range(14)}) == 14
    assert len({(colour(place), marker(place)) for place in range(50)}) == 50
