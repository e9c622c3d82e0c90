import math

import pytest

from petkit.cli import output
from petkit.errors import InputError
from petkit.report.statistics import Interval
from petkit.report.tables import Table, bytes_text, format_cell

TABLE = Table(
    ("system", "accuracy", "bytes"),
    (
        ("linear probe", Interval(0.713, 0.70, 0.726), 15400),
        ("1 bit", Interval(0.83, math.nan, math.nan), None),
    ),
    title="Runs",
    note="three seeds",
    formats={"accuracy": ".1%"},
)


def test_plain_text_is_aligned_and_has_no_colour():
    assert TABLE.plain().splitlines() == [
        "Runs",
        "system             accuracy    bytes",
        "────────────────────────────────────",
        "linear probe   71.3% ± 1.3%   15,400",
        "1 bit                 83.0%",
        "three seeds",
    ]
    assert TABLE.render(tty=False) == TABLE.plain()


def test_tables_of_the_command_line_look_the_same(capsys):
    columns, rows = ("name", "count"), (("a", 3), ("long name", 12))
    output.print_result(output.table(columns, rows), {}, as_json=False)
    assert capsys.readouterr().out.rstrip("\n") == Table(columns, rows).plain()


def test_terminal_text_is_drawn_and_shows_the_same_cells():
    text = TABLE.render(tty=True, width=100)
    assert "71.3% ± 1.3%" in text
    assert "\x1b[" in text or "─" in text


def test_a_cell_that_looks_like_markup_prints_as_it_is():
    assert "[red]dog[/red]" in Table(("class",), (("[red]dog[/red]",),)).render(tty=True, width=60)


def test_markdown_escapes_bars_and_aligns_numbers():
    table = Table(("a", "n"), (("x|y", 3),))
    assert table.markdown().splitlines() == ["| a | n |", "| --- | ---: |", "| x\\|y | 3 |"]


def test_records_become_columns_in_order_of_appearance():
    table = Table.from_records([{"a": 1}, {"b": 2.5, "a": 3}], title="t")
    assert table.columns == ("a", "b")
    assert table.rows == ((1, None), (3, 2.5))


@pytest.mark.parametrize(
    ("cell", "specification", "text"),
    [
        (None, "", ""),
        (True, "", "yes"),
        (False, "", "no"),
        (1234567, "", "1,234,567"),
        (0.123456, "", "0.1235"),
        (123456.7, "", "123,500"),
        (0.5, ".1%", "50.0%"),
        ("x", ".1%", "x"),
    ],
)
def test_format_cell(cell, specification, text):
    assert format_cell(cell, specification) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (73920, "72.2 KiB"), (3 * 2**30, "3.0 GiB"), (2**51, "2048.0 TiB")],
)
def test_bytes_text(count, text):
    assert bytes_text(count) == text


def test_a_short_row_is_refused():
    with pytest.raises(InputError, match="row 1 must have 2 cells, got 1"):
        Table(("a", "b"), ((1, 2), (1,)))
