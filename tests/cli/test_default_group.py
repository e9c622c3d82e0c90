"""A verb that is a command and has others beneath it."""

import pytest

from petkit.cli.main import run


@pytest.mark.parametrize(
    ("line", "meant"), [(["merge", "analyse"], "merge analyze"), (["distill", "cahce"], "distill cache")]
)
def test_a_misspelt_command_is_no_file(line, meant, capsys):
    assert run(line) == 2
    text = f"there is neither a file nor a command {line[1]}; did you mean `petkit {meant}`?"
    assert text in capsys.readouterr().err


def test_a_file_of_such_a_name_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cahce").write_text("student: [", "utf-8")
    assert run(["distill", "cahce", "-o", "out"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_messages_point_to_the_verb(capsys):
    assert run(["merge", "m.yml"]) == 2
    assert "(see `petkit merge --help`)" in capsys.readouterr().err
