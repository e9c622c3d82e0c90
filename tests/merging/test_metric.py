"""The user's command: what is refused, what it may print, and that nothing of it is left."""

import shlex
import sys
import time
from pathlib import Path

import pytest

from petkit.errors import ConfigError
from petkit.merging import metric
from petkit.merging.metric import MetricError, measure, read_metric, read_score


def python(code):
    return f"{shlex.quote(sys.executable)} -S -c {shlex.quote(code)} {{model}}"


def measured(code, tmp_path, **options):
    model = tmp_path / "a {model} of mine"
    model.mkdir(exist_ok=True)
    return measure(read_metric(python(code), **options), model, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a command with {model}, got nothing"),
        ("python 'x {model}", "cannot be split into words: no closing quotation"),
        ("python score.py", "must hold {model}, where the merged model's folder goes"),
        ("python {modle}", "unknown placeholder {modle}; did you mean {model}?"),
        ("python {model} {xyz}", "unknown placeholder {xyz}; there is {model}; {{xyz}} is {xyz} itself"),
        ("python {{model}}", "must hold {model}"),
        ("no-such-program {model}", "the command no-such-program is not found"),
        ("python {model} | tail -1", r"run without a shell, | has no meaning: use sh -c '...'"),
    ],
)
def test_commands_that_are_refused(text, message):
    with pytest.raises(ConfigError) as refused:
        read_metric(text)
    assert message in str(refused.value)


def test_a_file_that_is_not_executable(tmp_path):
    (tmp_path / "score").write_text("")
    with pytest.raises(ConfigError, match="score is not executable"):
        read_metric(f"{tmp_path}/score {{model}}")


def test_the_model_is_named_and_double_braces_are_single(tmp_path):
    code = "import sys, os; print({{nothing}}) if 0 else print(os.path.isdir(sys.argv[1]) + 0.5)"
    assert measured(code.replace("{{nothing}}", "1"), tmp_path) == 1.5
    assert metric._replaced("{{a}} {model}/x {model}", "{b}") == "{a} {b}/x {b}"


def test_stdin_is_closed_and_the_environment_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("OWN", "0.25")
    code = "import os, sys; print(len(sys.stdin.read()) + float(os.environ['OWN']))"
    assert measured(code, tmp_path) == 0.25


@pytest.mark.parametrize(
    ("text", "key", "score"),
    [
        ("loading\n0.5\n", None, 0.5),
        ("1e-3", None, 0.001),
        ("-2\n\n", None, -2),
        ('x\n{"accuracy": 0.75}\n', "accuracy", 0.75),
        ('{"a": {"b": 3}}', "a.b", 3),
        ('{"a.b": 4, "a": {"b": 3}}', "a.b", 4),
        ('{\n  "accuracy": 0.75\n}\n', "accuracy", 0.75),
    ],
)
def test_scores(text, key, score):
    assert read_score(text, key) == score


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("", None, "printed nothing"),
        ("done", None, "the last line must be a number, got 'done'"),
        ('{"a": 1}', None, "name its key with --key"),
        ("nan", None, "must be finite, got nan"),
        ("-inf", None, "must be finite, got -inf"),
        ("0.5", "a", "must be a JSON object for --key, got '0.5'"),
        ('{"accuracy": 1}', "acuracy", "no acuracy; did you mean accuracy?"),
        ("{}", "a", "there are none"),
        ('{"a": true}', "a", "a must be a number, got True"),
        ('{"a": NaN}', "a", "must be finite"),
        ('{"a": {"b": "1"}}', "a.b", "a.b must be a number, got '1'"),
        ("[" * 5000, "a", "must be a JSON object"),
    ],
)
def test_what_is_no_score(text, key, message):
    with pytest.raises(MetricError) as failed:
        read_score(text, key)
    assert message in str(failed.value)


def test_a_failure_shows_the_end_of_stderr(tmp_path):
    code = "import sys; [print('line', i, file=sys.stderr) for i in range(9)]; print(1); sys.exit(7)"
    with pytest.raises(MetricError, match=r"^ended with code 7: line 4 \| line 5 .* line 8$"):
        measured(code, tmp_path)
    with pytest.raises(MetricError, match=r"^was ended by SIGKILL$"):
        measured("import os; os.kill(os.getpid(), 9)", tmp_path)


def ends(file: Path) -> bool:
    """Whether a process ends soon; one that nobody has collected yet has ended too."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{file.read_text()}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


# A child that outlives its parent, and does not listen to SIGTERM.
STUBBORN = (
    "import os, signal, sys, time\n"
    "read, write = os.pipe()\n"
    "if os.fork() == 0:\n"
    "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "    open({file!r}, 'w').write(str(os.getpid()))\n"
    "    os.write(write, b'x')\n"
    "    time.sleep(60)\n"
    "os.read(read, 1)\n"
)


def test_a_time_out_ends_the_whole_group(tmp_path, monkeypatch):
    monkeypatch.setattr(metric, "GRACE_SECONDS", 0.1)
    file = tmp_path / "pid"
    code = STUBBORN.format(file=str(file)) + "print('hung', file=sys.stderr, flush=True)\ntime.sleep(60)"
    start = time.monotonic()
    with pytest.raises(MetricError, match=r"^took longer than 1.5 s and was stopped: hung$"):
        measured(code, tmp_path, seconds=1.5)
    assert time.monotonic() - start < 10
    assert ends(file)


def test_what_a_command_leaves_behind_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(metric, "GRACE_SECONDS", 0.1)
    file = tmp_path / "pid"
    assert measured(STUBBORN.format(file=str(file)) + "print(1)", tmp_path) == 1
    assert ends(file)
