"""The training loop: a step function, a data set, AdamW, and everything that makes a long run safe to stop.

A step function gives sums, not means. Gradients of the sums are added over micro-batches and processes and
divided by the joint count once, so that accumulation and several processes equal one large batch, also when
a batch is short or its sequences differ in length.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from petkit.errors import InputError, PetkitError
from petkit.training import checkpoint
from petkit.training.config import TrainingConfig, parse_duration
from petkit.training.context import RunContext, StepReport
from petkit.training.evaluate import StepFunction, autocast, to_device
from petkit.training.metrics import MetricsLog
from petkit.training.optim import Schedule, make_optimizer, make_schedule, trainable_parameters
from petkit.training.sampler import BatchPlan, MicroBatches, plan_batches
from petkit.training.seeds import seed_global
from petkit.training.sharding import is_sharded, own_part
from petkit.training.signals import StopRequest, stop_error

log = logging.getLogger(__name__)


class Validation(Protocol):
    """What a step is judged by while the training goes on."""

    @property
    def score(self) -> float:
        """The higher, the better."""

    def record(self) -> dict[str, float]:
        """What metrics.jsonl keeps of it."""


@dataclass(frozen=True)
class Fitted:
    """How a run went; the model holds the weights."""

    steps: int
    """Optimiser steps done."""

    total_steps: int
    """Optimiser steps of the whole schedule."""

    stopped: str | None
    """The limit that ended the run early: max_steps or max_time."""

    examples_per_second: float
    """Training rate over all processes and resumed parts, without evaluation and saving."""

    best_step: int | None
    """The selected step, when validation selects."""

    best_score: float | None
    """Its score on the validation split."""

    history: list[dict[str, Any]] = field(repr=False)
    """Records of metrics.jsonl; empty on processes other than the first."""

    trainable: int = 0
    """Trained numbers."""


def fit(
    model: nn.Module,
    step: StepFunction,
    train: Any,
    config: TrainingConfig,
    context: RunContext,
    *,
    seed: int,
    identity: Mapping[str, Any],
    validate: Callable[[], Validation] | None = None,
    workers: int = 0,
    begin: Callable[[int], None] = lambda step: None,
    measures: Sequence[str] = (),
    tokens: bool = False,
) -> Fitted:
    """Train the trainable parameters of a model.

    Args:
        model: on the context's device; frozen parameters have `requires_grad` off.
        step: sums of loss and count for one micro-batch.
        train: map-style data set with a `collate` method; one with `batch_lengths`, a number for each
            example, has batches of like lengths.
        config: the `training:` section.
        context: folder, device, processes, checkpoint to resume, observers.
        seed: root of the streams `data` and `dropout`.
        identity: dotted key -> JSON value of every setting that a resumed run must share.
        validate: evaluates the model for the record; with `select: validation` the step with the highest
            score is kept.
        workers: loader processes.
        begin: told the number of every optimiser step before its first micro-batch, 0 first.
        measures: names of what the step function measures besides, in StepOutput.measures.
        tokens: whether the terms that a step counts are tokens, whose rate is then recorded.

    Returns:
        How it went. The model holds the last weights, or the best ones where validation selects.

    Raises:
        ConfigError: nothing to train, no full batch, or settings that drifted on resume.
        PetkitError: the loss is not finite, a checkpoint cannot be written, or a signal asked to stop (exit
            code 130 or 143 after saving).
    """
    loop = _Loop(model, step, train, config, context, seed, identity, validate, begin, measures, tokens)
    with StopRequest() as request:
        stopped = loop.run(request, workers)
    loop.keep_best()
    return loop.fitted(stopped)


class _Votes(NamedTuple):
    """Reasons to stop after this step, on any process."""

    interrupt: bool
    terminate: bool
    late: bool

    @classmethod
    def of(cls, received: int | None, late: bool) -> _Votes:
        return cls(received == signal.SIGINT, received == signal.SIGTERM, late)


class _Sums(NamedTuple):
    """Sums over one step; tensors while they are gathered, numbers afterwards."""

    loss: Any
    count: Any
    correct: Any
    classified: Any


class _Loop:
    """The state of one call of `fit`."""

    def __init__(
        self,
        model: nn.Module,
        step: StepFunction,
        train: Any,
        config: TrainingConfig,
        context: RunContext,
        seed: int,
        identity: Mapping[str, Any],
        validate: Callable[[], Validation] | None,
        begin: Callable[[int], None],
        measures: Sequence[str],
        tokens: bool,
    ) -> None:
        self.model, self.step, self.train, self.config, self.context = model, step, train, config, context
        self.seed, self.identity, self.validate = seed, identity, validate
        self.begin, self.names, self.tokens = begin, tuple(measures), tokens
        # A sum and a number of terms of each, of the step at hand.
        self.measured = torch.zeros(len(self.names), 2, dtype=torch.float64, device=context.device)
        lengths = getattr(train, "batch_lengths", None)
        self.plan: BatchPlan = plan_batches(config, len(train), seed, context.world.size, lengths)
        self.schedule: Schedule = make_schedule(config, self.plan.steps_per_epoch)
        self.parameters = trainable_parameters(model)
        self.sharded = is_sharded(self.parameters)
        self.optimizer = make_optimizer(self.parameters, config)
        self.progress = checkpoint.Progress()
        if context.resume is not None:
            self.progress = checkpoint.load(context.resume, self.parameters, self.optimizer, self.identity)
        if not self.sharded:
            context.world.check_equal(list(self.parameters.values()), "the initial trainable weights")
        folder = context.folder if context.world.is_main else None
        if folder is not None:
            checkpoint.clean(folder)
        self.metrics = MetricsLog(folder, self.progress.metrics_bytes, config.tensorboard)
        self.saved_step: int | None = self.progress.step if context.resume is not None else None
        self.evaluated_step: int | None = (
            self.progress.step if self.progress.step == self.plan.total_steps else None
        )
        self.examples = 0
        self.terms = 0.0
        self.timed = 0.0

    @property
    def last_step(self) -> int:
        """The step to stop before."""
        return min(self.plan.total_steps, self.config.max_steps or self.plan.total_steps)

    def run(self, request: StopRequest, workers: int) -> str | None:
        """Train up to the last step; return the limit that stopped the run."""
        deadline = (
            time.monotonic() + parse_duration(self.config.max_time) if self.config.max_time else math.inf
        )
        batches = self._batches(workers)
        self._train_mode()
        late = False
        if self.progress.unmeasured:
            self._measure_step()
        while self.progress.step < self.last_step and not late:
            with self._saved_on_failure():
                votes = self._optimiser_step(batches, request, deadline)
            self._measure_step()
            self._save_step()
            if votes.interrupt or votes.terminate:
                raise stop_error(signal.SIGTERM if votes.terminate else signal.SIGINT, self._save())
            late = votes.late
        self._save()
        # After saving: a run that goes on later must not have looked at a step that the schedule does not
        # look at.
        if self.validate is not None and self.selects and self.evaluated_step != self.progress.step:
            self._evaluate(self.validate())
        self.metrics.close()
        if self.progress.step == self.plan.total_steps:
            return None
        return "max_steps" if self.progress.step == self.last_step else "max_time"

    @contextmanager
    def _saved_on_failure(self) -> Iterator[None]:
        """Save the steps before what failed, such as when a server is gone or a reward cannot be had."""
        before = self.progress.step
        try:
            yield
        except PetkitError as error:
            # Several processes save together or not at all: they agree on failures that may pass alone.
            together = error.passing or self.context.world.size == 1
            if together and self.progress.step == before and before > 0:
                when = "" if error.passing else " when the cause is mended"
                log.warning("saved %s: go on with --resume%s", self._save(), when)
            raise

    def _batches(self, workers: int) -> Iterator[Any]:
        order = MicroBatches(self.plan, self.context.world.rank, self.progress.step, self.last_step)
        # A generator of its own: a DataLoader otherwise draws its base seed from the global one.
        generator = torch.Generator().manual_seed(0)
        loader = DataLoader(
            self.train,
            batch_sampler=order,
            collate_fn=self.train.collate,
            num_workers=workers,
            generator=generator,
        )
        return iter(loader)

    def _optimiser_step(self, batches: Iterator[Any], request: StopRequest, deadline: float) -> _Votes:
        started = time.perf_counter()
        step = self.progress.step
        late = time.monotonic() >= deadline
        sums, votes = self._accumulate(batches, _Votes.of(request.received, late))
        self._check(sums)
        norm = self._update(sums.count, self.schedule.rate(step))
        self.progress.step += 1
        seconds = time.perf_counter() - started
        self.progress.seconds += seconds
        self.timed += seconds
        self.examples += self.plan.step_examples(step)
        self._report(sums, norm, self.schedule.rate(step), self.plan.step_examples(step), seconds)
        return votes

    def _accumulate(self, batches: Iterator[Any], votes: _Votes) -> tuple[_Sums, _Votes]:
        """Add up losses, counts and gradients over micro-batches and processes."""
        step, world, device = self.progress.step, self.context.world, self.context.device
        seed_global(self.seed, "dropout", world.rank, step)
        self.optimizer.zero_grad(set_to_none=False)
        self.begin(step)
        self.measured.zero_()
        sums = torch.zeros(len(_Sums._fields), dtype=torch.float64, device=device)
        for _ in self.plan.step_indices(step, world.rank):
            sums += self._backward(to_device(next(batches), device))
        ballot = torch.tensor(votes, dtype=torch.float64, device=device)
        # Gradients of shards have been summed in the backward pass.
        world.sum_([sums, ballot, self.measured, *(() if self.sharded else self._gradients())])
        return _Sums(*sums.tolist()), _Votes(*(vote > 0 for vote in ballot.tolist()))

    def _backward(self, batch: Any) -> Tensor:
        with autocast(self.context.device, self.config.precision):
            output = self.step(self.model, batch)
        if output.count:
            output.loss.backward()  # type: ignore[no-untyped-call]
        for place, name in enumerate(self.names):
            total, terms = output.measures.get(name, (0.0, 0.0))
            self.measured[place] += self.measured.new_tensor([total, terms])
        correct = torch.empty(0) if output.correct is None else output.correct
        sums = _Sums(output.loss.detach().double(), output.count, correct.sum(), correct.numel())
        device = self.context.device
        return torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in sums])

    def _update(self, count: float, rate: float) -> float:
        """Divide the summed gradients, take AdamW's step, return the gradient's norm."""
        gradients = self._gradients()
        for gradient in gradients:
            gradient.div_(count)
        norm = self._norm(gradients)
        _check_finite("the gradient's norm", float(norm), self.progress.step)
        if self.config.max_gradient_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters.values(), self.config.max_gradient_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return float(norm)

    def _norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Of all gradients, those of other processes' shards included."""
        norm = nn.utils.get_total_norm(gradients)
        if not self.sharded:
            return norm
        square = norm.double().square()
        self.context.world.sum_([square])
        return square.sqrt().to(norm.dtype)

    def _report(self, sums: _Sums, norm: float, rate: float, examples: int, seconds: float) -> None:
        loss = sums.loss / sums.count
        record = {"loss": loss, "learning_rate": rate, "gradient_norm": norm}
        if sums.classified:
            record["accuracy"] = sums.correct / sums.classified
        measured = zip(self.names, self.measured.tolist(), strict=True)
        record |= {name: total / terms for name, (total, terms) in measured if terms}
        record["examples_per_second"] = examples / seconds
        if self.tokens:
            record["tokens_per_second"] = sums.count / seconds
        self._record(record)
        self.terms += sums.count
        average, terms = self.examples / self.timed, self.terms / self.timed
        self.context.watch(StepReport(self.progress.step, self.last_step, loss, rate, average, terms))

    def _gradients(self) -> list[Tensor]:
        """Of the trained parameters, or of this process's shards of them."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        every = self.parameters.values()
        return [own_part(parameter.grad) for parameter in every if parameter.grad is not None]

    def _check(self, sums: _Sums) -> None:
        step = self.progress.step
        if sums.count == 0:
            raise InputError(
                f"a batch must hold at least one target, got none in step {step}: "
                "is everything masked or cut off? raise data.max_length or check the data"
            )
        _check_finite("the loss", sums.loss, step)

    def _measure_step(self) -> None:
        """Evaluate where an evaluation is due."""
        step, per_epoch = self.progress.step, self.plan.steps_per_epoch
        epoch, inside = divmod(step, per_epoch)
        # A function of the step alone, so that a run that goes on evaluates where the whole one does.
        due = self.selects and not inside and epoch % self.config.evaluate_every == 0
        steps = self.config.evaluate_every_steps
        due = due or (steps is not None and step % steps == 0) or step == self.plan.total_steps
        if self.validate is None or not due:
            return
        self.progress.unmeasured = True
        with self._saved_on_failure():
            evaluation = self.validate()
        self.progress.unmeasured = False
        self._evaluate(evaluation)

    def _save_step(self) -> None:
        """Write a checkpoint where one is due."""
        step, steps = self.progress.step, self.config.checkpoint_steps
        epoch, inside = divmod(step, self.plan.steps_per_epoch)
        if (not inside and epoch % self.config.checkpoint_every == 0) or (steps and step % steps == 0):
            self._save()

    @property
    def selects(self) -> bool:
        """Whether evaluations choose the weights that are kept."""
        return self.config.select == "validation"

    def _evaluate(self, evaluation: Validation) -> None:
        self._record(evaluation.record())
        self.evaluated_step = self.progress.step
        self._train_mode()
        if not self.selects:
            return
        best = self.progress.best_score
        if best is None or evaluation.score > best:
            self.progress.best_score = evaluation.score
            self.progress.best_step = self.progress.step
            self.progress.best_weights = {name: p.detach().clone() for name, p in self.parameters.items()}

    def _record(self, values: Mapping[str, float]) -> None:
        if self.context.world.is_main:
            step = self.progress.step
            self.metrics.write({"step": step, "epoch": step / self.plan.steps_per_epoch, **values})

    def _save(self) -> str:
        path = self.context.folder / f"checkpoint-{self.progress.step}"
        is_main = self.context.world.is_main
        if (is_main or self.sharded) and self.saved_step != self.progress.step:
            self.progress.metrics_bytes = self.metrics.size()
            folder = self.context.folder if is_main else None
            checkpoint.save(folder, self.progress, self.parameters, self.optimizer, self.identity)
        self.saved_step = self.progress.step
        return str(path)

    def _train_mode(self) -> None:
        """Training mode, except for frozen batch norms: their running statistics belong to the base."""
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.eval()

    def keep_best(self) -> None:
        """Put the selected weights into the model."""
        if self.progress.best_weights is not None:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self.progress.best_weights[name])

    def _whole_rate(self) -> float:
        """Examples a second since step 0, also when a resumed run had nothing left to do."""
        done = sum(self.plan.step_examples(step) for step in range(self.progress.step))
        return done / self.progress.seconds if self.progress.seconds else 0.0

    def fitted(self, stopped: str | None) -> Fitted:
        """Sum the run up."""
        return Fitted(
            steps=self.progress.step,
            total_steps=self.plan.total_steps,
            stopped=stopped,
            examples_per_second=self._whole_rate(),
            best_step=self.progress.best_step,
            best_score=self.progress.best_score,
            history=self.metrics.history,
            trainable=sum(parameter.numel() for parameter in self.parameters.values()),
        )


def _check_finite(what: str, value: float, step: int) -> None:
    # Before the optimiser's step, so that no checkpoint ever holds the damage.
    if not math.isfinite(value):
        raise PetkitError(
            f"{what} must stay finite, got {value} in step {step}: lower training.learning_rate or "
            "adapter.scale, or set training.max_gradient_norm"
        )
