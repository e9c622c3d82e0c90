from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from petkit.errors import ConfigError
from tests.serving.text_models import save_llama

Petkit = Callable[..., Any]
FAST = ("--probe-tokens", "6", "--threads", "1")


@pytest.fixture
def router(petkit: Petkit, llama: Path, questions: Path, tmp_path: Path) -> Path:
    flags = ("--data", questions, "--max-new-tokens", "12", "-o", tmp_path / "router", *FAST)
    result = petkit("route", "calibrate", llama, *flags, "--json")
    assert result.code == 0, result.err
    return tmp_path / "router"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["probe", "explain", "run", "calibrate", "eval"])
def test_help(petkit: Petkit, name: str) -> None:
    result = petkit("route", name, "--help")
    assert result.code == 0
    assert "Usage: petkit route" in result.out


def test_probe_writes_what_explain_reads(
    petkit: Petkit, llama: Path, questions: Path, tmp_path: Path
) -> None:
    result = petkit("route", "probe", llama, questions, "-o", tmp_path / "out", *FAST, "--json")
    assert result.code == 0, result.err
    payload = json.loads(result.out)
    records = rows_of(tmp_path / "out" / "trajectories.jsonl")
    assert [record["id"] for record in records] == ["1", "2", "3"]
    assert all(len(record["entropies"]) == record["probe_tokens"] == 6 for record in records)
    for name in ("report.html", "plots/traces.png", "plots/planes.png", "result.json"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    again = petkit("route", "explain", tmp_path / "out" / "trajectories.jsonl", *FAST[:2], "--json")
    assert json.loads(again.out)["items"] == payload["items"]


def test_explain_rows_of_any_origin(petkit: Petkit, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    falling = [1 - n / 40 for n in range(40)]
    rows = [{"id": "a", "entropies": falling}, {"id": "b", "entropies": [9.0] * 64}, {"entropies": [1.0]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = petkit("route", "explain", path, "--json")
    assert result.code == 0, result.err
    items = json.loads(result.out)["items"]
    assert [(item["id"], item["decision"]) for item in items] == [
        ("a", "cot"),
        ("b", "direct"),
        ("3", "standard"),
    ]
    assert items[0]["spearman"] == pytest.approx(-1)
    changed = petkit("route", "explain", path, "--set", "thresholds.cumulative=1", "--json")
    assert json.loads(changed.out)["items"][0]["decision"] == "direct"
    text = petkit("route", "explain", path).out
    assert "a: cot (convergent)" in text
    assert "descriptors: cumulative 20.5, spearman -1, von Neumann 0.0" in text
    assert "thresholds: cumulative 32, spearman 0.07, von Neumann 2" in text
    found = json.loads(result.out)
    assert found["thresholds"] == {
        "cumulative": 32.0,
        "spearman": 0.07,
        "von_neumann": 2.0,
        "overload": "direct",
    }
    assert "trajectories" not in found
    assert "█" in text
    assert "overload, falls back to direct" in text


def test_explain_one_question(petkit: Petkit, llama: Path, tmp_path: Path) -> None:
    flags = ("--question", "the cat", "--model", llama, "-o", tmp_path / "e")
    result = petkit("route", "explain", *flags, "--probe-tokens", "5")
    assert result.code == 0, result.err
    assert "over 5 tokens" in result.out
    assert (tmp_path / "e" / "plots" / "traces.png").exists()
    found = json.loads((tmp_path / "e" / "result.json").read_text())
    assert found["thresholds"]["cumulative"] == 32
    (measured,) = found["trajectories"]
    assert (measured["id"], len(measured["entropies"])) == ("question", 5)
    assert sum(measured["entropies"]) == pytest.approx(found["items"][0]["cumulative"])


def test_set_names_a_key_that_exists(petkit: Petkit) -> None:
    for words in (("route", "run"), ("serve",)):
        said = " ".join(petkit(*words, "--help").out.replace("│", " ").split())
        assert "such as thresholds.cumulative=20" in said
        assert "petkit config schema route" in said
        assert "training.epochs" not in said
    result = petkit("config", "schema", "route")
    assert result.code == 0, result.err
    assert "thresholds.cumulative" in result.out


def test_a_malformed_set_gets_an_example_that_the_command_knows(petkit: Petkit) -> None:
    result = petkit("route", "run", "nowhere", "--question", "x", "--set", "foo")
    assert (result.code, result.out) == (2, "")
    assert result.err == "error: --set must be KEY=VALUE, such as thresholds.cumulative=32, got 'foo'\n"


def test_too_many_stops(petkit: Petkit) -> None:
    result = petkit("route", "run", "nowhere", "--question", "x", "--set", "stop=[a, b, c, d, e]")
    assert (result.code, result.out) == (2, "")
    assert result.err == "error: stop must hold at most 4 entries, got 5 (--set)\n"


def test_explain_leaves_faulty_rows_out(petkit: Petkit, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"entropies": [1, null]}\n{"entropies": [1, 2, 3]}\n{"entropies": [1, Infinity]}\n')
    result = petkit("route", "explain", path)
    assert (result.code, result.out) == (2, "")
    assert "repair the 2 lines or pass --skip-bad" in result.err
    result = petkit("route", "explain", path, "--skip-bad", "--json")
    assert [item["id"] for item in json.loads(result.out)["items"]] == ["2"]


def test_calibrate_shows_what_it_fitted(petkit: Petkit, llama: Path, questions: Path, tmp_path: Path) -> None:
    flags = ("--data", questions, "--max-new-tokens", "8", "--max-tokens", "100", *FAST)
    kept = ("--outcomes", tmp_path / "o.jsonl")
    result = petkit("route", "calibrate", llama, *flags, *kept, "-o", tmp_path / "r")
    assert result.code == 0, result.err
    page = (tmp_path / "r" / "report.html").read_text()
    for text in ("fitted thresholds", "cumulative ", "tokens a question <= 100", "(kept)", "measured on the"):
        assert text in result.out
    assert str(tmp_path / "r") in result.out
    assert "tokens a question &lt;= 100" in page
    assert "measured on the questions it was calibrated on" in page
    again = petkit("route", "calibrate", llama, *flags, *kept, "-o", tmp_path / "again", "--json")
    found = json.loads(again.out)
    assert (found["questions"], found["objective"]["limit"]) == (3, 100)
    assert found["reached"]["tokens"] <= 100


def test_prompts_come_from_a_file(
    petkit: Petkit, llama: Path, questions: Path, router: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text('prompts:\n  standard: "{question}\\nuser"\n')
    flags = ("--data", questions, *FAST, "--max-new-tokens", "12", "--json")
    plain = petkit("route", "eval", llama, *flags)
    changed = petkit("route", "eval", llama, *flags, "--config", file)
    assert changed.code == 0, changed.err
    settings = json.loads(changed.out)["settings"]
    assert settings["prompts"]["standard"] == "{question}\nuser"
    assert json.loads(plain.out)["settings"]["prompts"]["standard"] == "{question}"
    routed = ("--router", router, "-c", file, "--question", "the", *FAST[2:])
    result = petkit("route", "run", llama, *routed)
    assert (result.code, result.out) == (2, "")
    assert "was calibrated with prompts.standard '{question}', got " in result.err
    late = f"{{question}} {'Think before you answer. ' * 4}"
    made = ("--data", questions, *FAST, "--max-new-tokens", "12", "-o", tmp_path / "late")
    assert petkit("route", "calibrate", llama, *made, "--set", f"prompts.cot={late}Yes?").code == 0
    routed = ("--router", tmp_path / "late", "--question", "the", *FAST[2:])
    result = petkit("route", "run", llama, *routed, "--set", f"prompts.cot={late}No?")
    assert result.code == 2
    assert "with prompts.cot ... before you answer. Yes?', got ... before you answer. No?'" in result.err
    file.write_text("prompt: {}\n")
    wrong = petkit("route", "run", llama, "-c", file, "--question", "the")
    assert wrong.code == 2
    assert "did you mean prompts" in wrong.err


def test_run_answers(petkit: Petkit, llama: Path, questions: Path, router: Path, tmp_path: Path) -> None:
    flags = ("--max-new-tokens", "10", "--threads", "1")
    result = petkit(
        "route", "run", llama, "--data", questions, "-o", tmp_path / "r", *FAST, *flags[:2], "--json"
    )
    assert result.code == 0, result.err
    payload = json.loads(result.out)
    assert payload["tokens"] == sum(item["tokens"] for item in payload["items"])
    assert all({"id", "mode", "reason", "text", "tokens"} <= item.keys() for item in payload["items"])
    assert rows_of(tmp_path / "r" / "answers.jsonl") == payload["items"]
    one = petkit("route", "run", llama, "--question", "dog ran", "--router", router, *flags)
    assert one.code == 0, one.err
    assert one.out.startswith("question (")


def test_eval_compares(petkit: Petkit, llama: Path, questions: Path, router: Path, tmp_path: Path) -> None:
    flags = ("--data", questions, "--router", router, "-o", tmp_path / "e", "--threads", "1")
    result = petkit("route", "eval", llama, *flags, "--json")
    assert result.code == 0, result.err
    payload = json.loads(result.out)
    assert {"always cot", "oracle", "this router"} <= {one["policy"] for one in payload["policies"]}
    assert payload["datasets"].keys() == {"questions"}
    assert payload["reliability"]["bins"]
    assert (tmp_path / "e" / "plots" / "frontier.png").exists()
    assert (tmp_path / "e" / "plots" / "reliability.png").exists()
    page = (tmp_path / "e" / "report.html").read_text()
    assert "always cot" in page
    assert "accuracy against it" in page
    text = petkit("route", "eval", llama, *flags, "--overwrite").out
    assert re.search(r"^questions answered +direct +standard +cot$", text, re.MULTILINE)
    assert re.search(r"^always cot +0 +0 +3$", text, re.MULTILINE)
    assert f"{llama} on questions.jsonl" in page


def test_a_router_of_another_model_is_refused(
    petkit: Petkit, questions: Path, router: Path, tmp_path: Path
) -> None:
    other = save_llama(tmp_path / "other")
    content = json.loads((other / "config.json").read_text())
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    save_file({name: x + 0.01 for name, x in weights.items()}, other / "model.safetensors", {"format": "pt"})
    assert content["model_type"] == "llama"
    result = petkit("route", "run", other, "--data", questions, "--router", router)
    assert (result.code, result.out) == (2, "")
    assert "calibrate a router for it" in result.err


def test_a_limit_that_cannot_be_kept_gives_3(
    petkit: Petkit, llama: Path, questions: Path, tmp_path: Path
) -> None:
    flags = ("--data", questions, "--min-accuracy", "1", "--max-new-tokens", "8", "-o", tmp_path / "r", *FAST)
    result = petkit("route", "calibrate", llama, *flags)
    assert result.code == 3
    assert "no thresholds keep the limit on these questions: accuracy >= 1, reached 0" in result.err
    assert json.loads((tmp_path / "r" / "checks.json").read_text())["ok"] is False
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"entropies": [1, 2, 3, 4], "finished": true}\n')
    for command in (("run", llama, "--question", "the"), ("explain", trace)):
        result = petkit("route", *command, "--router", tmp_path / "r")
        assert result.code == 0, result.err
        assert "r did not keep its limit when it was calibrated: accuracy >= 1, reached 0" in result.err


def test_a_router_keeps_the_length_of_its_probes(
    petkit: Petkit, llama: Path, questions: Path, router: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"entropies": [1, 2, 3, 4], "finished": true}\n')
    commands = (
        ("route", "run", llama, "--data", questions, "--router", router),
        ("route", "eval", llama, "--data", questions, "--router", router),
        ("route", "explain", trace, "--router", router),
        ("serve", llama, "--route", router, "--port", "0"),
    )
    for command in commands:
        for flags in (("--probe-tokens", "9"), ("--set", "probe_tokens=9")):
            result = petkit(*command, *flags)
            assert (result.code, result.out) == (2, "")
            assert "probes of 6 tokens, got 9: leave --probe-tokens out" in result.err
    assert petkit("route", "explain", trace, "--router", router, "--probe-tokens", "6").code == 0


def test_an_answer_shorter_than_its_probe_is_refused(
    petkit: Petkit, llama: Path, questions: Path, router: Path, tmp_path: Path
) -> None:
    data, out = ("--data", questions), ("-o", tmp_path / "x")
    short = ("--max-new-tokens", "5", *FAST[:2])
    commands = (
        ("route", "calibrate", llama, *data, *out, *short),
        ("route", "run", llama, *data, *short),
        ("route", "run", "http://127.0.0.1:9/v1#m", *data, *short),
        ("route", "eval", llama, *data, *short),
        ("route", "probe", llama, questions, *out, "--set", "max_new_tokens=5", *FAST[:2]),
        ("route", "run", llama, *data, "--router", router, *short[:2]),
        ("serve", llama, "--route", router, "--port", "0", *short[:2]),
        ("serve", llama, "--route", "zero-shot", "--port", "0", *short),
    )
    for command in commands:
        result = petkit(*command)
        assert (result.code, result.out) == (2, ""), command
        origin = "--max-new-tokens" if "--max-new-tokens" in command else "--set"
        assert result.err == (
            "error: max_new_tokens must be at least probe_tokens, 6, got 5: raise max_new_tokens, or lower "
            f"probe_tokens ({origin})\n"
        )
    # As routers were calibrated before: their thresholds are those of shorter probes.
    manifest = router / "petkit.json"
    content = json.loads(manifest.read_text())
    content["router"]["max_new_tokens"] = 5
    manifest.write_text(json.dumps(content))
    result = petkit("route", "run", llama, *data, "--router", router, "--max-new-tokens", "70")
    assert result.code == 2
    assert "has broken settings: max_new_tokens must be at least probe_tokens" in result.err


def test_a_length_that_is_left_to_its_default_goes_along(
    petkit: Petkit, llama: Path, questions: Path, tmp_path: Path
) -> None:
    result = petkit("route", "run", llama, "--data", questions, "--max-new-tokens", "5", "--json")
    assert (result.code, "probe_tokens is 5, not 64" in result.err) == (0, True)
    assert all(item["tokens"] <= 10 for item in json.loads(result.out)["items"])
    long = ("--probe-tokens", "600", "-o", tmp_path / "x", "--set", "stop=[]")
    assert "max_new_tokens is 600, not 512" in petkit("route", "probe", llama, questions, *long).err


@pytest.mark.parametrize(
    ("length", "more", "got"),
    [
        (4, {"finished": False}, "4 of an answer that is not finished"),
        (4, {}, "4 of an answer that is not finished"),
        (7, {"finished": False}, "7"),
        (7, {"finished": True}, "7"),
    ],
)
def test_explain_refuses_probes_of_another_length(
    petkit: Petkit, router: Path, tmp_path: Path, length: int, more: dict[str, bool], got: str
) -> None:
    trace = tmp_path / "t.jsonl"
    rows = [{"id": "fits", "entropies": [1.0] * 6}, {"id": "odd", "entropies": [1.0] * length, **more}]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = petkit("route", "explain", trace, "--router", router)
    assert (result.code, result.out) == (2, "")
    expected = f"{router} was calibrated with probes of 6 tokens, got {got} in {trace}, id odd: probe with "
    assert result.err == f"error: {expected}--probe-tokens 6, or calibrate a router with it\n"
    assert petkit("route", "explain", trace).code == 0


def test_explain_judges_the_probes_of_its_router(
    petkit: Petkit, llama: Path, questions: Path, router: Path, tmp_path: Path
) -> None:
    assert petkit("route", "probe", llama, questions, "-o", tmp_path / "p", *FAST).code == 0
    file = tmp_path / "p" / "trajectories.jsonl"
    assert petkit("route", "explain", file, "--router", router).code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "MODEL"], "give questions: --data FILE, or --question TEXT"),
        (["run", "MODEL", "--question", " "], "must be a text that is not empty"),
        (["run", "MODEL", "--question", "x", "--data", "DATA"], "give questions"),
        (["run", "MODEL", "--question", "x", "--router", "none"], "none is no router"),
        (["run", "MODEL", "--question", "x", "--set", "probe_token=5"], "did you mean probe_tokens?"),
        (["eval", "MODEL"], "give questions: --data FILE"),
        (["eval", "MODEL", "--data", "EMPTY"], "no question in the data"),
        (["eval", "MODEL", "--data", "UNLABELLED"], "answer must be given"),
        (["explain"], "either FILE or --question"),
        (["explain", "--question", "x"], "--question and --model MODEL go together"),
        (["explain", "BROKEN"], "broken.jsonl:1: entropies must be a list of numbers"),
        (
            ["explain", "NAN"],
            "nan.jsonl:2: entropies must be finite and at least 0, got nan at token 1",
        ),
        (
            ["explain", "NEGATIVE"],
            "negative.jsonl:1: entropies must be finite and at least 0, got -1 ",
        ),
        (["explain", "HUGE"], "huge.jsonl:1: entropies must be finite and at least 0, got 1000"),
        (["explain", "UNSURE"], "unsure.jsonl:1: finished must be true or false, got 'no'"),
        (["calibrate", "MODEL", "--data", "DATA", "-o", "FULL"], "is not empty"),
        (
            ["calibrate", "MODEL", "--data", "DATA", "-o", "x", "--max-tokens", "9", "--min-accuracy", "1"],
            "exclude each other",
        ),
        (["probe", "nowhere", "DATA", "-o", "x"], "model.name must be"),
    ],
)
def test_wrong_usage_gives_2(
    petkit: Petkit, llama: Path, questions: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("x")
    texts = {
        "EMPTY": "\n",
        "UNLABELLED": '{"question": "?"}\n',
        "BROKEN": '{"entropies": "x"}\n',
        "NAN": '{"entropies": [1, 2]}\n{"entropies": [1, NaN]}\n',
        "HUGE": f'{{"entropies": [{10**400}]}}\n',
        "UNSURE": '{"entropies": [1], "finished": "no"}\n',
        "NEGATIVE": '{"entropies": [1, -1]}\n',
    }
    names = {"MODEL": str(llama), "DATA": str(questions), "FULL": str(full)}
    for name, text in texts.items():
        names[name] = str(tmp_path / f"{name.lower()}.jsonl")
        Path(names[name]).write_text(text)
    given = [names.get(one, one) for one in arguments]
    result = petkit("route", *given)
    assert (result.code, result.out) == (2, ""), result.err
    assert message in result.err


def test_outcomes_are_kept_and_taken_again(
    petkit: Petkit, llama: Path, questions: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "outcomes.jsonl"
    flags = ("--data", questions, "--outcomes", kept, "--max-new-tokens", "12", *FAST, "--json")
    whole = petkit("route", "eval", llama, *flags)
    lines = kept.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    # As after a kill in the midst of the last question.
    kept.write_text("".join(lines[:-1]) + lines[-1][:30])
    again = petkit("route", "eval", llama, *flags)
    assert "2 of 3 outcomes are kept in" in again.err
    assert json.loads(again.out) == json.loads(whole.out)
    assert kept.read_text() == "".join(lines)
    fitted = petkit("route", "calibrate", llama, *flags, "-o", tmp_path / "router")
    assert "all 3 outcomes are kept" in fitted.err
    manifest = json.loads((tmp_path / "router" / "petkit.json").read_text())
    assert manifest["base"]["sha256"] == json.loads(whole.out)["model_sha256"]
    other = petkit("route", "eval", llama, *flags, "--set", "prompts.cot={question} the dog")
    assert "outcomes are kept" not in other.err
    assert len(kept.read_text().splitlines()) == 6


def test_kept_outcomes_need_no_model(
    petkit: Petkit,
    llama: Path,
    questions: Path,
    router: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    flags = (
        "--data",
        questions,
        "--outcomes",
        tmp_path / "o.jsonl",
        "--router",
        router,
        "--threads",
        "1",
        "--json",
    )
    whole = petkit("route", "eval", copy, *flags)
    assert whole.code == 0, whole.err

    def load(*_: Any, **__: Any) -> None:
        raise ConfigError("the model was to be loaded")

    monkeypatch.setattr("petkit.methods.edrm.writers.load_model", load)
    again = petkit("route", "eval", copy, *flags)
    assert again.code == 0, again.err
    assert json.loads(again.out) == json.loads(whole.out)
    # What is refused with the model is refused without it.
    wrong = petkit("route", "eval", copy, *flags, "--set", "served.vocab=9")
    assert "settings of served have an effect on a model behind a server alone" in wrong.err
    manifest = router / "petkit.json"
    content = json.loads(manifest.read_text())
    content["base"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    assert "calibrate a router for it" in petkit("route", "eval", copy, *flags).err
    # The same name, but not the same weights any more.
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "the model was to be loaded" in petkit("route", "eval", copy, *flags[:4], *FAST).err


def test_a_learned_router_answers(petkit: Petkit, llama: Path, questions: Path, tmp_path: Path) -> None:
    made = ("--data", questions, "--outcomes", tmp_path / "o.jsonl", "--max-new-tokens", "12", *FAST)
    fitted = petkit("route", "calibrate", llama, *made, "--learned", "-o", tmp_path / "router")
    assert fitted.code == 0, fitted.err
    flags = ("--router", tmp_path / "router", "--threads", "1", "--json")
    result = petkit("route", "run", llama, "--data", questions, *flags)
    assert "sure, by the network" in json.loads(result.out)["items"][0]["reason"]
    trace = tmp_path / "t.jsonl"
    trace.write_text('{"entropies": [1, 2, 3, 4], "finished": true}\n')
    explained = petkit("route", "explain", trace, *flags[:2], "--json")
    assert "sure, by the network" in json.loads(explained.out)["items"][0]["reason"]
    assert "a network decides" in petkit("inspect", tmp_path / "router").out
    network = tmp_path / "router" / "router.safetensors"
    content = network.read_bytes()
    assert "8 finite tensors" in petkit("verify", tmp_path / "router").out
    for damaged in (content[:-8], None):
        network.unlink() if damaged is None else network.write_bytes(damaged)
        broken = petkit("verify", tmp_path / "router")
        assert broken.code == 2, broken.out
    network.write_bytes(content)
    assert petkit("verify", tmp_path / "router").code == 0
    (tmp_path / "router" / "config.yaml").write_text("probe_tokens: 9\n")
    changed = petkit("route", "run", llama, "--data", questions, *flags)
    assert changed.code == 2
    assert "its config.yaml is not what its petkit.json records" in changed.err


def test_a_data_set_is_routed_as_a_whole(
    petkit: Petkit, llama: Path, questions: Path, tmp_path: Path
) -> None:
    flags = ("--data", questions, "--max-new-tokens", "12", *FAST, "--set", "level=dataset", "--json")
    result = petkit("route", "run", llama, *flags)
    items = json.loads(result.out)["items"]
    assert len({item["mode"] for item in items}) == 1
    assert items[0]["reason"].startswith("all of questions, by 3 probes: ")
    fitted = petkit("route", "calibrate", llama, *flags, "-o", tmp_path / "router")
    assert "data set, this router" in [one["policy"] for one in json.loads(fitted.out)["policies"]]


def test_faulty_lines_name_the_flag(petkit: Petkit, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": ""}\n{"question": 3}\n')
    result = petkit("route", "run", "nowhere", "--data", path)
    assert result.code == 2
    assert "repair the 2 lines or pass --skip-bad" in result.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max-tokens", "9", "--min-accuracy", "0.5"), "exclude each other"),
        (("--max-tokens", "9", "--learned"), "--learned knows no limit"),
        (("--min-accuracy", "0.5", "--token-weight", "1"), "--token-weight has no effect with a limit"),
        (("--learned", "--set", "level=dataset"), "--learned decides for each question"),
        (("--set", "rule=learned"), "rule learned needs the network of"),
        (("--set", "dataset_questions=9"), "dataset_questions has no effect"),
    ],
)
def test_calibration_flags_that_do_not_fit(
    petkit: Petkit, questions: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    result = petkit("route", "calibrate", "nowhere", "--data", questions, "-o", tmp_path / "r", *flags)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_stops_hold_in_every_command(petkit: Petkit, llama: Path, questions: Path, tmp_path: Path) -> None:
    made = ("--data", questions, "--max-new-tokens", "12", *FAST, "--json")
    (word,) = {
        word
        for item in json.loads(petkit("route", "run", llama, *made).out)["items"]
        for word in item["text"].split()
    }
    stop = ("--set", f'stop=["{word} {word}"]')
    fitted = petkit("route", "calibrate", llama, *made, *stop, "-o", tmp_path / "router")
    assert fitted.code == 0, fitted.err
    # A router brings its stops along.
    flags = ("--router", tmp_path / "router", "--threads", "1", "--json")
    answered = json.loads(petkit("route", "run", llama, "--data", questions, *flags).out)["items"]
    assert {(item["text"], item["tokens"]) for item in answered} == {("", 2)}
    result = petkit("route", "eval", llama, "--data", questions, *flags)
    assert json.loads(result.out)["settings"]["stop"] == [f"{word} {word}"]
    petkit("route", "probe", llama, questions, "-o", tmp_path / "p", *FAST, *stop)
    rows = rows_of(tmp_path / "p" / "trajectories.jsonl")
    assert [(row["stop"], len(row["entropies"]), row["finished"]) for row in rows] == [
        ([f"{word} {word}"], 2, True)
    ] * 3
