import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from petkit.errors import ConfigError, InputError, PetkitError
from petkit.training.checkpoint import checkpoints, newest
from petkit.training.context import RunContext, StepReport
from petkit.training.evaluate import StepOutput, evaluate
from petkit.training.fit import Fitted, fit
from petkit.training.signals import Interrupted, Terminated

Run = Callable[..., tuple[nn.Module, Fitted]]


@pytest.fixture
def run(toy: Any, tmp_path: Path) -> Run:
    """fit() on 32 points, with the arguments a test cares about."""

    def go(
        config: Any = None,
        *,
        folder: str = "run",
        model: nn.Module | None = None,
        step: Any = toy.classify,
        n: int = 32,
        seed: int = 0,
        resume: Path | None = None,
        watch: Callable[[StepReport], None] | None = None,
        identity: dict[str, Any] | None = None,
        **more: Any,
    ) -> tuple[nn.Module, Fitted]:
        model = model or toy.make_model()
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        context = RunContext(path, resume=resume, watch=watch or (lambda report: None))
        fitted = fit(
            model,
            step,
            toy.points(n),
            config or toy.config(),
            context,
            seed=seed,
            identity=identity or {"a": 1},
            **more,
        )
        return model, fitted

    return go


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def test_training_lowers_the_loss_and_leaves_the_base_alone(run: Run, toy: Any) -> None:
    before = weights(toy.make_model())
    model, fitted = run(toy.config(epochs=20, learning_rate=0.05))
    assert fitted.history[-1]["loss"] < 0.5 * fitted.history[0]["loss"]
    assert fitted.steps == fitted.total_steps == 80
    assert fitted.stopped is None
    assert torch.equal(before[0], weights(model)[0])
    assert not torch.equal(before[2], weights(model)[2])


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_gradient_accumulation_equals_a_large_batch(run: Run, toy: Any, parts: int) -> None:
    whole, _ = run(toy.config(), folder="whole")
    split, _ = run(toy.config(gradient_accumulation=parts), folder="parts")
    for a, b in zip(weights(whole), weights(split), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_accumulation_equals_a_large_batch_when_the_last_one_is_short(run: Run, toy: Any) -> None:
    options: dict[str, Any] = {"drop_last": False, "batch_size": 12}
    whole, _ = run(toy.config(**options), folder="whole", n=31)
    split, _ = run(toy.config(**options, gradient_accumulation=5), folder="parts", n=31)
    for a, b in zip(weights(whole), weights(split), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_first_gradient_is_the_mean_of_the_batch(run: Run, toy: Any) -> None:
    data = toy.points(8)
    model = toy.make_model()
    loss = nn.functional.cross_entropy(model(data.inputs), data.labels)
    loss.backward()
    expected = (
        torch.stack([p.grad.square().sum() for p in model.parameters() if p.grad is not None]).sum().sqrt()
    )
    _, fitted = run(toy.config(epochs=1), n=8)
    assert fitted.history[0]["gradient_norm"] == pytest.approx(float(expected), rel=1e-5)
    assert fitted.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)


class Stop(Exception):
    """Stands in for kill -9: nothing of the trainer handles it."""


def stop_after(step: int) -> Callable[[StepReport], None]:
    def watch(report: StepReport) -> None:
        if report.step == step:
            raise Stop

    return watch


@pytest.mark.parametrize("died_at", [1, 4, 5, 11, 16])
def test_a_resumed_run_ends_with_the_same_bits(run: Run, toy: Any, tmp_path: Path, died_at: int) -> None:
    config = toy.config(epochs=4, checkpoint_steps=3)
    whole, fitted = run(config, folder="whole", model=toy.make_model(dropout=0.3))
    with pytest.raises(Stop):
        run(config, model=toy.make_model(dropout=0.3), watch=stop_after(died_at))
    found = checkpoints(tmp_path / "run")
    resume = found[0] if found else None
    resumed, again = run(config, model=toy.make_model(dropout=0.3), resume=resume)
    assert same(whole, resumed)
    # The log holds every step once, as if nothing had happened.
    keys = ("step", "loss", "learning_rate")
    assert [[r[k] for k in keys] for r in again.history] == [[r[k] for k in keys] for r in fitted.history]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 17))


def test_resuming_keeps_the_selection(run: Run, toy: Any, tmp_path: Path) -> None:
    config = toy.config(epochs=6, select="validation", evaluate_every=1, learning_rate=0.2)

    def go(**more: Any) -> tuple[nn.Module, Fitted]:
        model = toy.make_model()
        return run(
            config, model=model, validate=lambda: evaluate(model, toy.points(48, 5), toy.classify), **more
        )

    whole, first = go(folder="whole")
    with pytest.raises(Stop):
        go(watch=stop_after(18))
    resumed, second = go(resume=checkpoints(tmp_path / "run")[0])
    assert first.best_step == second.best_step
    assert same(whole, resumed)


def test_validation_selects_the_best_step(run: Run, toy: Any) -> None:
    model = toy.make_model()
    seen: list[tuple[float, list[Tensor]]] = []

    def validate() -> Any:
        result = evaluate(model, toy.points(30, 5), toy.classify)
        seen.append((result.score, weights(model)))
        return result

    config = toy.config(epochs=8, select="validation", evaluate_every=2, learning_rate=0.3)
    _, fitted = run(config, model=model, validate=validate)
    best = max(range(len(seen)), key=lambda i: (seen[i][0], -i))
    assert len(seen) == 4
    assert fitted.best_step == (best + 1) * 8
    assert all(torch.equal(a, b) for a, b in zip(weights(model), seen[best][1], strict=True))


@pytest.mark.parametrize("select", ["validation", "last"])
@pytest.mark.parametrize("died_at", [2, 3, 6, 7, 8])
def test_evaluations_are_functions_of_the_step(
    run: Run, toy: Any, tmp_path: Path, select: str, died_at: int
) -> None:
    """Of one epoch of 8 steps: every 3, and the last one; a run that goes on repeats none."""
    options = {"epochs": 1, "batch_size": 4, "learning_rate": 0.2, "checkpoint_steps": 2}
    config = toy.config(**options, select=select, evaluate_every_steps=3)

    def go(**more: Any) -> tuple[nn.Module, Fitted]:
        model = toy.make_model(dropout=0.3)
        return run(
            config, model=model, validate=lambda: evaluate(model, toy.points(48, 5), toy.classify), **more
        )

    def told(fitted: Fitted) -> list[dict[str, Any]]:
        rows = [{k: v for k, v in row.items() if "per_second" not in k} for row in fitted.history]
        assert [row["step"] for row in rows if "eval_loss" in row] == [3, 6, 8]
        return rows

    whole, first = go(folder="whole")
    with pytest.raises(Stop):
        go(watch=stop_after(died_at))
    found = checkpoints(tmp_path / "run")
    resumed, second = go(resume=found[0] if found else None)
    assert told(first) == told(second)
    assert same(whole, resumed)
    assert first.best_step == second.best_step
    assert (first.best_step is None) == (select == "last")


@pytest.mark.parametrize("select", ["validation", "last"])
@pytest.mark.parametrize("failing", [3, 6, 8])
def test_an_evaluation_that_fails_loses_no_step(
    run: Run, toy: Any, tmp_path: Path, select: str, failing: int
) -> None:
    """A run that goes on makes up for it, and ends where the whole one does."""
    config = toy.config(epochs=1, batch_size=4, learning_rate=0.2, select=select, evaluate_every_steps=3)
    evaluations: list[int] = []

    def go(fails: bool = False, **more: Any) -> tuple[nn.Module, Fitted]:
        model = toy.make_model(dropout=0.3)

        def validate() -> Any:
            evaluations.append(len(evaluations))
            if fails and len(evaluations) == {3: 1, 6: 2, 8: 3}[failing]:
                raise PetkitError("the judge is gone")
            return evaluate(model, toy.points(48, 5), toy.classify)

        return run(config, model=model, validate=validate, **more)

    whole, first = go(folder="whole")
    evaluations.clear()
    with pytest.raises(PetkitError, match="the judge is gone"):
        go(fails=True)
    found = checkpoints(tmp_path / "run")
    assert found[0].name == f"checkpoint-{failing}"
    resumed, second = go(resume=found[0])
    assert same(whole, resumed)
    assert first.best_step == second.best_step
    for one, other in zip(first.history, second.history, strict=True):
        assert {k: v for k, v in one.items() if "per_second" not in k} == {
            k: v for k, v in other.items() if "per_second" not in k
        }


def test_what_is_not_to_be_selected_by_is_only_recorded(run: Run, toy: Any) -> None:
    plain, _ = run(toy.config(epochs=2, max_steps=7), folder="plain")
    model = toy.make_model()
    config = toy.config(epochs=2, max_steps=7, evaluate_every_steps=5)
    _, fitted = run(config, model=model, validate=lambda: evaluate(model, toy.points(9), toy.classify))
    assert same(plain, model)
    assert (fitted.best_step, fitted.best_score) == (None, None)
    # A run that goes on behind its limit does not look at the step where it stopped.
    assert [row["step"] for row in fitted.history if "eval_loss" in row] == [5]


def test_max_steps_is_a_success_and_can_go_on_to_the_same_bits(run: Run, toy: Any, tmp_path: Path) -> None:
    whole, _ = run(toy.config(epochs=3), folder="whole")
    _, fitted = run(toy.config(epochs=3, max_steps=7))
    assert (fitted.stopped, fitted.steps, fitted.total_steps) == ("max_steps", 7, 12)
    resumed, _ = run(toy.config(epochs=3), resume=checkpoints(tmp_path / "run")[0])
    assert same(whole, resumed)


def test_max_time_stops_after_at_least_one_step(run: Run, toy: Any) -> None:
    _, fitted = run(toy.config(epochs=50, max_time="0.001s"))
    assert fitted.stopped == "max_time"
    assert 1 <= fitted.steps < 200


def test_max_time_still_selects(run: Run, toy: Any) -> None:
    model = toy.make_model()
    config = toy.config(epochs=50, max_time="0.001s", select="validation")
    _, fitted = run(config, model=model, validate=lambda: evaluate(model, toy.points(9), toy.classify))
    assert fitted.best_step == fitted.steps


@pytest.mark.parametrize(
    ("number", "error", "code"), [(signal.SIGINT, Interrupted, 130), (signal.SIGTERM, Terminated, 143)]
)
def test_a_signal_saves_and_exits(
    run: Run, toy: Any, tmp_path: Path, number: int, error: type[PetkitError], code: int
) -> None:
    def watch(report: StepReport) -> None:
        if report.step == 6:
            os.kill(os.getpid(), number)

    previous = signal.getsignal(number)
    with pytest.raises(error, match="checkpoint-7: go on with --resume") as caught:
        run(toy.config(epochs=5), watch=watch)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is previous
    whole, _ = run(toy.config(epochs=5), folder="whole")
    resumed, _ = run(toy.config(epochs=5), resume=newest(tmp_path / "run"))
    assert same(whole, resumed)


def test_changed_settings_are_refused_by_name(run: Run, toy: Any, tmp_path: Path) -> None:
    run(identity={"training.epochs": 2, "seed": 0, "gone": 1})
    with pytest.raises(ConfigError) as caught:
        run(resume=checkpoints(tmp_path / "run")[0], identity={"training.epochs": 3, "seed": 0, "new": True})
    text = str(caught.value)
    assert "3 changed" in text
    for part in ("training.epochs: 2 -> 3", "gone: 1 -> '(absent)'", "new: '(absent)' -> True"):
        assert part in text
    assert "seed" not in text


def test_bf16_trains_float32_weights(run: Run, toy: Any) -> None:
    model, fitted = run(toy.config(precision="bf16", epochs=20, learning_rate=0.05))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
    plain, _ = run(toy.config(epochs=20, learning_rate=0.05), folder="plain")
    assert not same(model, plain)


def test_dropout_draws_from_the_step_not_from_what_ran_before(run: Run, toy: Any) -> None:
    torch.manual_seed(1)
    first, _ = run(model=toy.make_model(dropout=0.5), folder="a")
    torch.rand(1000)
    second, _ = run(model=toy.make_model(dropout=0.5), folder="b")
    other, _ = run(model=toy.make_model(dropout=0.5), folder="c", seed=1)
    assert same(first, second)
    assert not same(first, other)


def test_loader_processes_change_nothing(run: Run, toy: Any) -> None:
    alone, _ = run(folder="a", n=16)
    with_workers, _ = run(folder="b", n=16, workers=1)
    assert same(alone, with_workers)


def test_clipping_bounds_the_gradient(run: Run, toy: Any) -> None:
    free, _ = run(folder="a")
    clipped, fitted = run(toy.config(max_gradient_norm=1e-3), folder="b")
    assert not same(free, clipped)
    assert (
        min(record["gradient_norm"] for record in fitted.history) > 1e-3
    )  # the log holds the norm before clipping


def test_frozen_batch_norms_keep_their_statistics(run: Run, toy: Any) -> None:
    model = nn.Sequential(nn.BatchNorm1d(8).requires_grad_(False), nn.Linear(8, 3))
    run(model=model)
    assert torch.equal(model[0].running_mean, torch.zeros(8))
    trained = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))
    run(model=trained, folder="trained")
    assert not torch.equal(trained[0].running_mean, torch.zeros(8))


def test_a_batch_without_targets_is_an_error(run: Run, toy: Any) -> None:
    def masked(model: nn.Module, batch: Any) -> StepOutput:
        return StepOutput(model(batch[0]).sum() * 0, 0)

    with pytest.raises(InputError, match="at least one target, got none in step 0"):
        run(step=masked)


def test_a_loss_that_is_not_finite_is_an_error(run: Run, toy: Any) -> None:
    def broken(model: nn.Module, batch: Any) -> StepOutput:
        return StepOutput(model(batch[0]).sum() * float("nan"), len(batch[1]))

    with pytest.raises(PetkitError, match=r"finite, got nan in step 0: lower training\.learning_rate"):
        run(step=broken)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(run: Run, toy: Any) -> None:
    def step(model: nn.Module, batch: Any) -> StepOutput:
        # The root's slope at zero is infinite, its value is not.
        return StepOutput((model(batch[0]).square().sum() * 0).sqrt(), len(batch[1]))

    model = toy.make_model()
    before = weights(model)
    with pytest.raises(PetkitError, match=r"gradient's norm must stay finite, got nan in step 0"):
        run(model=model, step=step)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_unequal_counts_weigh_terms_not_batches(run: Run, toy: Any) -> None:
    # Tokens of long sequences must count as much as those of short ones, however the batch is cut.
    def tokens(model: nn.Module, batch: Any) -> StepOutput:
        inputs, labels = batch
        kept = labels != 2
        loss = nn.functional.cross_entropy(model(inputs)[kept], labels[kept], reduction="sum")
        return StepOutput(loss, int(kept.sum()))

    whole, first = run(folder="a", step=tokens)
    split, second = run(toy.config(gradient_accumulation=4), folder="b", step=tokens)
    assert first.history[0]["loss"] == pytest.approx(second.history[0]["loss"], rel=1e-6)
    for a, b in zip(weights(whole), weights(split), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_watcher_sees_every_step(run: Run, toy: Any) -> None:
    seen: list[StepReport] = []
    run(watch=seen.append)
    assert [report.step for report in seen] == list(range(1, 9))
    assert {report.total_steps for report in seen} == {8}
    assert all(report.examples_per_second > 0 for report in seen)


@pytest.mark.parametrize("stop", [1, 3, 7])
def test_begin_is_told_every_step_also_of_a_resumed_run(
    run: Run, toy: Any, tmp_path: Path, stop: int
) -> None:
    told: list[int] = []
    steps: list[int] = []

    def step(model: nn.Module, batch: Any) -> StepOutput:
        steps.append(told[-1])
        return toy.classify(model, batch)

    config = {"gradient_accumulation": 2}
    run(toy.config(max_steps=stop, **config), step=step, begin=told.append)
    assert told == list(range(stop))
    run(toy.config(**config), step=step, begin=told.append, resume=newest(tmp_path / "run"))
    assert told == list(range(8))
    # It is told before the first micro-batch of the step.
    assert steps == [number for number in range(8) for _ in range(2)]


def test_measures_are_means_over_the_terms_of_all_micro_batches(run: Run, toy: Any) -> None:
    calls = iter(range(1000))

    def step(model: nn.Module, batch: Any) -> StepOutput:
        number, found = next(calls), toy.classify(model, batch)
        # Of two micro-batches a step: 3 terms that sum to 6, then 1 that is the call's number.
        ratio = (6.0, 3.0) if number % 2 == 0 else (float(number), 1.0)
        return StepOutput(
            found.loss, found.count, measures={"ratio": ratio, "never": (0.0, 0.0), "unknown": (1.0, 1.0)}
        )

    _, fitted = run(
        toy.config(gradient_accumulation=2), step=step, measures=("ratio", "never", "absent"), n=32
    )
    records = [record for record in fitted.history if "loss" in record]
    assert [record["ratio"] for record in records] == [(6 + 2 * place + 1) / 4 for place in range(8)]
    assert not any({"never", "absent", "unknown"} & set(record) for record in records)


def test_measures_are_left_out_of_steps_without_any(run: Run, toy: Any) -> None:
    calls = iter(range(1000))

    def step(model: nn.Module, batch: Any) -> StepOutput:
        found = toy.classify(model, batch)
        measures = {"reward": (2.0, 4.0)} if next(calls) == 1 else {}
        return StepOutput(found.loss, found.count, measures=measures)

    _, fitted = run(toy.config(), step=step, measures=("reward",))
    records = [record for record in fitted.history if "loss" in record]
    assert [record.get("reward") for record in records] == [None, 0.5, *[None] * 6]


def test_an_observer_is_told_terms_over_time(run: Run, toy: Any) -> None:
    reports: list[StepReport] = []
    run(toy.config(), watch=reports.append)
    assert len(reports) == 8
    assert all(report.terms_per_second == pytest.approx(report.examples_per_second) for report in reports)


def test_the_rate_of_tokens_is_recorded_where_terms_are_tokens(run: Run, toy: Any) -> None:
    _, plain = run(toy.config(epochs=1), folder="plain")
    _, counted = run(toy.config(epochs=1), folder="tokens", tokens=True)
    assert all("tokens_per_second" not in row for row in plain.history)
    # A term of the toy is an example.
    assert all(row["tokens_per_second"] == row["examples_per_second"] > 0 for row in counted.history)
