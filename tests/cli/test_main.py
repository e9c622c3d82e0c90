"""Help, exit codes and manners of the command line as a whole."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from petkit.cli import main
from petkit.cli.main import EXTRAS, VERBS, load_verb
from petkit.errors import (
    ArtifactError,
    ConfigError,
    GateError,
    InputError,
    MissingError,
    OfflineError,
    PetkitError,
    SafetyError,
)

PETKIT = [sys.executable, "-m", "petkit"]
HEAVY = ("torch", "numpy", "pydantic", "yaml", "timm", "transformers")


def python(code, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, **options
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_module_and_help(verb, petkit):
    assert importlib.util.find_spec(f"petkit.cli.{verb}"), f"petkit/cli/{verb}.py is missing"
    assert load_verb(verb).name == verb
    code, out, err = petkit(verb, "--help")
    assert (code, err) == (0, "")
    assert f"petkit {verb}" in out


LONG = "n" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", LONG),
        ("inspect", LONG),
        ("diff", LONG, LONG),
        ("eval", LONG),
        ("quantize", LONG, "-o", "x"),
        ("export", LONG, "--format", "peft", "-o", "x"),
        ("train", "adapter", LONG),
        ("recipes", "cp", "adapter-smoke", LONG),
    ],
    ids=" ".join,
)
def test_a_path_too_long_for_the_filesystem_is_one_line(petkit, arguments):
    code, out, err = petkit(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("place", [LONG, "missing/" + "é" * 150])
@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "source", "-o"),
        ("export", "source", "--format", "peft", "-o"),
        ("export", "source", "--format", "petl-vit", "-o"),
        ("train", "adapter", "adapter-smoke", "-o"),
        ("train", "adapter", "adapter-smoke", "--dry-run", "-o"),
    ],
    ids=" ".join,
)
def test_an_output_with_too_long_a_name_is_refused_before_any_work(
    petkit, tmp_path, monkeypatch, arguments, place
):
    from tests.artifacts.support import write_small

    monkeypatch.chdir(tmp_path)
    write_small(tmp_path / "source")
    code, out, err = petkit(*arguments, place)
    assert (code, out) == (2, "")
    assert "must have a name of at most 255 bytes, got 300: choose a shorter one" in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_help_groups_the_verbs(petkit):
    code, out, _ = petkit("--help")
    assert code == 0
    for panel in ("Train", "Compress", "Use", "Look", "Set-up"):
        assert f"─ {panel} ─" in out
    assert petkit().out.split() == out.split() == petkit("-h").out.split()


def test_help_names_the_exit_codes(petkit):
    out = " ".join(petkit("--help").out.split())
    assert "Exit codes: 0 done, 1 failed, 2 usage, recipe or damaged artifact, 3 a check of the result" in out


def test_an_unknown_variable_is_warned_about_once(petkit, monkeypatch):
    monkeypatch.setenv("PETKIT_OUTPUT", "x")
    warning = "the environment variable PETKIT_OUTPUT has no effect; did you mean PETKIT_SET__OUTPUT?"
    result = petkit("recipes", "ls", "--quiet")
    assert (result.code, result.err) == (0, f"warning: {warning}\n")


def test_version(petkit):
    assert petkit("--version") == (0, "petkit 0.1.0\n", "")


def test_help_imports_nothing_heavy():
    show = (
        "import sys; from petkit.cli.main import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    )
    loaded = set(python(show).stderr.split())
    assert not loaded.intersection(HEAVY)
    light = {f"petkit.cli.{name}" for name in ("main", "output", "process", "reference")}
    assert {name for name in loaded if name.startswith("petkit.cli.")} == light


def test_help_is_quick():
    # The budget is 0.3 s. A busy machine may take longer, for torch as well, which alone takes a second.
    times = {"help": [], "torch": []}
    for _ in range(3):
        for name, command in {
            "help": [*PETKIT, "--help"],
            "torch": [sys.executable, "-c", "import torch"],
        }.items():
            start = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - start)
    assert min(times["help"]) < 0.6 * min(times["torch"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recpes"], "no such command 'recpes'. Did you mean 'recipes'? (see `petkit --help`)"),
        (["recipes"], "petkit recipes needs a command: ls, show, cp (see `petkit recipes --help`)"),
        (["train"], "petkit train needs a command: adapter, tagger, nat (see `petkit train --help`)"),
        (
            ["recipes", "ls", "--jsn"],
            "no such option: --jsn (Possible options: --json) (see `petkit recipes ls --help`)",
        ),
        (["recipes", "show"], "missing argument 'NAME' (see `petkit recipes show --help`)"),
        (
            ["recipes", "ls", "more"],
            "got unexpected extra argument(s) (more) (see `petkit recipes ls --help`)",
        ),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(arguments, message, petkit):
    code, out, err = petkit(*arguments)
    assert (code, out) == (2, "")
    assert err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PetkitError("x"), 1),
        (ConfigError("x"), 2),
        (InputError("x"), 2),
        (ArtifactError("x"), 2),
        (GateError("x"), 3),
        (MissingError("x"), 4),
        (ModuleNotFoundError("No module named 'peft'", name="peft"), 4),
        (SafetyError("x"), 5),
        (OfflineError("x"), 6),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes(error, code, petkit, monkeypatch):
    monkeypatch.setattr("petkit.cli.recipes.shipped_recipes", lambda: (_ for _ in ()).throw(error))
    result = petkit("recipes", "ls", "--json")
    assert (result.code, result.out) == (code, "")
    assert result.err.count("\n") == (0 if code == 130 else 1)
    assert "Traceback" not in result.err


def test_a_missing_extra_is_named(petkit, monkeypatch):
    assert set(EXTRAS.values()) == {"peft", "track", "demo", "gguf", "nlp", "tune", "serve"}
    error = ModuleNotFoundError("No module named 'onnx'", name="onnx")
    monkeypatch.setattr("petkit.cli.recipes.shipped_recipes", lambda: (_ for _ in ()).throw(error))
    assert (
        petkit("recipes", "ls").err
        == 'error: the package onnx is not installed; pip install "petkit[demo]"\n'
    )


def test_every_line_of_an_error_is_an_error_line(petkit, monkeypatch):
    error = ConfigError("one\ntwo")
    monkeypatch.setattr("petkit.cli.recipes.shipped_recipes", lambda: (_ for _ in ()).throw(error))
    assert petkit("recipes", "ls").err == "error: one\nerror: two\n"


def test_an_unexpected_error_keeps_its_traceback(petkit, monkeypatch):
    monkeypatch.setattr("petkit.cli.recipes.shipped_recipes", lambda: [][1])
    with pytest.raises(IndexError):
        petkit("recipes", "ls")


def test_verbose_traces_an_error(petkit):
    assert "Traceback" in petkit("recipes", "show", "nothing", "-v").err


@pytest.mark.parametrize("arguments", [["--offline", "recipes", "ls"], ["recipes", "ls", "--offline"]])
def test_offline_stands_anywhere_and_reaches_the_libraries(arguments, petkit, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    assert petkit(*arguments).code == 0
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"


def test_what_follows_two_dashes_is_no_flag():
    assert main._globals_first(["a", "-q", "--", "-v"]) == ["-q", "a", "--", "-v"]


def test_quiet_silences_the_log_and_nothing_else(petkit, tmp_path):
    assert "wrote" in petkit("recipes", "cp", "adapter-smoke", tmp_path / "a.yaml").err
    assert petkit("recipes", "cp", "adapter-smoke", tmp_path / "b.yaml", "--quiet").err == ""
    assert petkit("recipes", "ls", "-q").out != ""


BLOCK_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'torchvision', 'numpy', 'timm', 'transformers'):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from petkit.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["recipes", "ls", "--json"], 0),
        (["config", "validate", "adapter-smoke"], 0),
        (["config", "schema", "train", "adapter", "--json"], 0),
        (["list", "tasks"], 0),
        (["env", "--json"], 0),
        (["doctor", "--json"], 4),
        (["list", "models", "vit*"], 4),
    ],
)
def test_without_torch(arguments, code):
    done = python(BLOCK_TORCH, *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["recipes", "ls"], ["recipes", "ls", "--json"], ["list", "tasks"]]
)
def test_a_closed_pipe_ends_quietly(arguments):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*PETKIT, *arguments], stdout=write, stderr=subprocess.PIPE, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_closed_pipe_keeps_the_exit_code():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*PETKIT, "recipes", "show", "nothing"], stdout=write, stderr=write, timeout=120)
    os.close(write)
    assert done.returncode == 2


def shell(line):
    """Run `petkit` by a shell, which alone can close a stream."""
    command = line.replace("petkit", f"{sys.executable} -m petkit", 1)
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("arguments", ["--help", "recipes ls", "recipes ls --json", "env"])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_like_dev_null(arguments, closed):
    done = shell(f"petkit {arguments} {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == ((" " + closed).count(" >&-") == 0)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_keeps_the_exit_code(closed):
    done = shell(f"petkit recipes show nothing {closed}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", ["--help", "recipes ls", "recipes ls --json", "env"])
def test_a_full_disk_is_one_error_line(arguments):
    done = shell(f"petkit {arguments} >/dev/full")
    message = "error: the result cannot be written to stdout: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, message)


def test_a_log_that_cannot_be_written_fails_nothing(tmp_path):
    assert shell(f"petkit recipes cp adapter-smoke {tmp_path}/a.yaml 2>/dev/full").returncode == 0
    assert (tmp_path / "a.yaml").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["recipes", "ls"], ["env"], ["doctor"]])
def test_a_latin_1_pipe(arguments):
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run([*PETKIT, *arguments], capture_output=True, env=environment, timeout=120)
    assert b"Traceback" not in done.stderr
    assert done.stdout.decode("latin-1")


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", b"--- +-| 0.7 +/- 0.1 a... ???\n"),
        ("latin-1", b"--- +-| 0.7 \xb1 0.1 a... ?\xe9?\n"),
        ("utf-8", "──━ ╭─│ 0.7 ± 0.1 a… 猫é☃\n".encode()),
    ],
)
def test_a_stream_gets_what_it_can_encode(encoding, printed):
    code = (
        "from petkit.cli.process import adopt_manners\nadopt_manners()\nprint('──━ ╭─│ 0.7 ± 0.1 a… 猫é☃')\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, timeout=120)
    assert (done.stdout, done.stderr) == (printed, b"")


def test_tables_and_panels_are_drawn_in_ascii_where_the_stream_knows_no_more():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for arguments in (["--help"], ["recipes", "ls"], ["list", "methods"]):
        done = subprocess.run([*PETKIT, *arguments], capture_output=True, env=environment, timeout=120)
        assert done.returncode == 0
        text = done.stdout.decode("ascii")
        assert "---" in text
        assert "??" not in text


def test_no_colour_off_a_terminal():
    environment = {**os.environ, "FORCE_COLOR": "1", "NO_COLOR": "1"}
    for arguments in (["--help"], ["recipes", "ls"]):
        done = subprocess.run(
            [*PETKIT, *arguments], capture_output=True, text=True, env=environment, timeout=120
        )
        assert "\x1b[3" not in done.stdout


def test_sigterm_unwinds_and_exits_143():
    code = """
import time
from petkit.cli import main
def slow():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("unwound", flush=True)
import petkit.cli.recipes
petkit.cli.recipes.shipped_recipes = slow
import sys
sys.argv = ["petkit", "recipes", "ls"]
main.main()
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGTERM)
    assert child.communicate(timeout=60)[0] == "unwound\n"
    assert child.returncode == 143


def test_leaving_waits_for_threads_and_runs_exit_handlers():
    code = """
import atexit, threading, time
from petkit.cli import process
atexit.register(print, "handler")
def work():
    time.sleep(0.05)
    print("thread")
threading.Thread(target=work).start()
process.leave(5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("thread\nhandler\n", "", 5)


def test_only_rank_0_prints(petkit, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert petkit("recipes", "ls")[:2] == (0, "")
    assert petkit("recipes", "show", "nothing").err.startswith("[rank 1] error: ")


def test_json_is_one_versioned_object(petkit):
    payload = json.loads(petkit("recipes", "ls", "--json").out)
    assert payload["schema_version"] == 1


def test_a_log_line_leaves_at_once():
    code = (
        "import sys, time; from petkit.cli import process; process.adopt_manners()\n"
        "print('now', file=sys.stderr); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        # Blocks for a minute when the line waits in a buffer; the test's own time-out is no judge of that.
        line = child.stderr.readline()
        assert child.poll() is None
        child.kill()
    assert line == b"now\n"
