"""A reward of the user's own counts, and one that raises, hangs, dies or answers nonsense is told of."""

import gc
import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from petkit.data.questions import Question
from petkit.errors import ConfigError, InputError, PetkitError
from petkit.methods.tropd.config import RewardConfig
from petkit.rollout import own_reward
from petkit.rollout.own_reward import OwnReward, by_answers, printable

QUESTIONS = [Question("1", "one and one", answer="2", dataset="sums"), Question("2", "why")]

CODE = """
import json, os, sys, time
from beside import BONUS

def score(question, choices, answer, dataset, response):
    print("printed, and no answer")
    if response == "raise":
        raise ValueError("no good")
    if response == "hang":
        time.sleep(60)
    if response == "die":
        os._exit(7)
    if response == "exit":
        sys.exit(3)
    if response == "say":
        return json.loads(question)
    if response == "colour":
        raise ValueError("\\x1b[31mred\\x1b[0m\\nand more")
    if response == "where":
        return float(os.getcwd() == os.environ["HOME"] and "SECRET_TOKEN" not in os.environ)
    return BONUS * (answer == response)
"""


@pytest.fixture
def code(tmp_path):
    (tmp_path / "beside.py").write_text("BONUS = 0.5")
    path = tmp_path / "rewards.py"
    path.write_text(CODE)
    return path


@pytest.fixture
def reward(code):
    return OwnReward(f"{code}:score", 20.0)


def test_a_function_is_called_with_everything(reward):
    assert reward(QUESTIONS, ["2", "2"]) == [0.5, 0.0]
    assert by_answers(QUESTIONS, ["it is 2", "2"]) == [1.0, None]


def test_the_process_has_a_folder_of_its_own_and_no_tokens(reward, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    assert reward(QUESTIONS[:1], ["where"]) == [1.0]


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("raise", r"raised ValueError: no good \(rewards\.py:8\) for the response 'raise' to question 1"),
        ("exit", r"raised SystemExit: 3 \(rewards\.py:14\)"),
        ("die", r"ended its process \(exit code 7\) for the response 'die'"),
    ],
)
def test_a_function_that_fails_is_told_of_and_called_again(reward, response, message):
    with pytest.raises(PetkitError, match=message) as caught:
        reward(QUESTIONS[:1], [response])
    assert caught.value.exit_code == 1
    assert reward(QUESTIONS[:1], ["2"]) == [0.5]


def test_control_characters_are_shown_and_not_obeyed(reward, code):
    odd = Question("\x1b[2J", "one and one")
    with pytest.raises(PetkitError) as caught:
        reward([odd], ["colour"], "data.train")
    assert str(caught.value).endswith(
        "raised ValueError: \\x1b[31mred\\x1b[0m\\nand more (rewards.py:18) for the response 'colour' to "
        "question \\x1b[2J of data.train"
    )
    assert printable("größer, 大") == "größer, 大"
    code.write_text("raise ValueError('\\x1b[31mred')")
    with pytest.raises(InputError, match=r"cannot be used: ValueError: \\x1b\[31mred"):
        OwnReward(f"{code}:score", 1.0).check()


def test_a_function_that_hangs_is_ended_with_all_that_it_started(code, tmp_path):
    code.write_text(
        "import subprocess, time\n"
        "def score(response, **more):\n"
        "    if response == 'hang':\n"
        f"        child = subprocess.Popen(['sleep', '60'])\n"
        f"        open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "        time.sleep(60)\n"
        "    return 1\n"
    )
    reward = OwnReward(f"{code}:score", 1.0)
    assert reward(QUESTIONS[:1], ["2"]) == [1.0]
    with pytest.raises(PetkitError, match=r"took more than 1 s \(reward\.timeout\) for the response 'hang'"):
        reward(QUESTIONS[:1], ["hang"])
    assert is_gone(int((tmp_path / "pid").read_text()))
    assert reward(QUESTIONS[:1], ["2"]) == [1.0]


@pytest.mark.parametrize("value", [None, "good", 1.5, -0.1, float("nan"), True, [1.0]])
def test_only_numbers_from_0_to_1_are_rewards(reward, value):
    question = Question("1", json.dumps(value))
    if value is True:
        assert reward([question], ["say"]) == [1.0]
        return
    with pytest.raises(PetkitError, match="must return a number from 0 to 1, got "):
        reward([question], ["say"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def score(:", "cannot be used: SyntaxError"),
        ("import nothing_of_this_name", r"cannot be used: ModuleNotFoundError: .* \(rewards\.py:1\)"),
        ("x = 1", "cannot be used: ImportError: it has no function score"),
        ("import os; os._exit(3)", "cannot be used: exit code 3"),
    ],
)
def test_what_is_no_function_is_told_of_at_once(code, text, message):
    code.write_text(text)
    with pytest.raises(InputError, match=message):
        OwnReward(f"{code}:score", 1.0).check()


def test_the_import_has_a_bound_of_its_own(code, monkeypatch):
    assert f"{own_reward.START_SECONDS:g} s" in RewardConfig.model_fields["timeout"].description
    monkeypatch.setattr(own_reward, "START_SECONDS", 0.5)
    code.write_text("import time; time.sleep(60)")
    reward = OwnReward(f"{code}:score", 0.01)
    with pytest.raises(InputError, match=r"took more than 0\.5 s, the bound whatever reward\.timeout is"):
        reward.check()


def test_names_of_functions(code):
    for wrong in ("rewards.py", "rewards:score", f"{code}:two words", ":score"):
        with pytest.raises(ConfigError, match=r"must be FILE\.py:NAME, got"):
            OwnReward(wrong, 1.0)
    with pytest.raises(InputError, match=r"there is no file gone\.py"):
        OwnReward("gone.py:score", 1.0)


def test_the_hash_is_that_of_the_code_that_judges(reward, code):
    known = hashlib.sha256(code.read_bytes()).hexdigest()
    assert reward(QUESTIONS[:1], ["2"]) == [0.5]
    code.write_text("def score(**more):\n    return 1")
    assert reward(QUESTIONS[:1], ["2"]) == [0.5]
    assert reward.sha256 == known


def test_the_process_ends_with_the_object(code):
    reward = OwnReward(f"{code}:score", 20.0)
    reward.check()
    process = reward._child._process
    del reward
    gc.collect()
    assert process.poll() is not None


def is_gone(pid):
    for _ in range(50):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or ") Z " in state.read_text():
            return True
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False
