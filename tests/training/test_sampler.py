from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import ConfigError
from petkit.training.sampler import STRETCH, BatchPlan, MicroBatches, plan_batches


def flat(groups: list[list[int]]) -> list[int]:
    return [index for group in groups for index in group]


def test_an_epoch_sees_every_example_once() -> None:
    plan = BatchPlan(
        examples=23, batch_size=5, micro_batches=2, processes=1, epochs=2, drop_last=False, seed=1
    )
    seen = [index for step in range(plan.steps_per_epoch) for index in flat(plan.step_indices(step, 0))]
    assert sorted(seen) == list(range(23))
    assert plan.total_steps == 10
    assert [plan.step_examples(step) for step in range(5)] == [5, 5, 5, 5, 3]


def test_epochs_have_different_orders_and_seeds_too() -> None:
    plan = BatchPlan(64, 64, 1, 1, 2, True, 1)
    other = BatchPlan(64, 64, 1, 1, 2, True, 2)
    assert plan.step_indices(0, 0) != plan.step_indices(1, 0)
    assert plan.step_indices(0, 0) != other.step_indices(0, 0)


def test_drop_last_drops_the_short_batch() -> None:
    assert BatchPlan(23, 5, 1, 1, 1, True, 1).steps_per_epoch == 4


@pytest.mark.parametrize("drop_last", [True, False])
def test_two_processes_hold_what_one_holds(drop_last: bool) -> None:
    one = BatchPlan(70, 32, 1, 1, 2, drop_last, 5)
    two = BatchPlan(70, 16, 1, 2, 2, drop_last, 5)
    assert one.total_steps == two.total_steps
    for step in range(one.total_steps):
        both = flat(two.step_indices(step, 0)) + flat(two.step_indices(step, 1))
        assert both == flat(one.step_indices(step, 0))


def test_a_process_may_have_nothing_of_a_short_batch() -> None:
    plan = BatchPlan(
        examples=34, batch_size=16, micro_batches=1, processes=2, epochs=1, drop_last=False, seed=0
    )
    assert plan.step_indices(1, 1) == []
    assert len(flat(plan.step_indices(1, 0))) == 2


def test_micro_batches_start_anywhere() -> None:
    plan = BatchPlan(20, 4, 2, 1, 3, True, 0)
    whole = list(MicroBatches(plan, 0, 0, 15))
    assert list(MicroBatches(plan, 0, 7, 15)) == whole[14:]
    assert {len(batch) for batch in whole} == {2}


def test_no_full_batch_is_an_error(toy: Any) -> None:
    with pytest.raises(ConfigError, match=r"at most the 10 training examples .* got 8 x 2: lower batch_size"):
        plan_batches(toy.config(batch_size=8), 10, seed=0, processes=2)
    assert (
        plan_batches(toy.config(batch_size=8, drop_last=False), 10, seed=0, processes=2).steps_per_epoch == 1
    )


def lengths_of(examples: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, 60, (examples,), generator=generator).tolist())


def by_length(examples: int, batch: int, **changes: Any) -> BatchPlan:
    values = {"micro_batches": 1, "processes": 1, "epochs": 2, "drop_last": False, "seed": 3}
    return BatchPlan(examples, batch, **values | changes, lengths=lengths_of(examples))


@given(st.integers(1, 400), st.integers(1, 9), st.integers(0, 5))
def test_batches_of_like_lengths_hold_every_example_once(examples: int, batch: int, seed: int) -> None:
    plan = by_length(examples, batch, seed=seed)
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        assert sorted(index for step in steps for index in flat(plan.step_indices(step, 0))) == list(
            range(examples)
        )


@pytest.mark.parametrize("examples", [4 * STRETCH, 10 * STRETCH + 6])
def test_batches_of_like_lengths_are_sorted_within_a_stretch(examples: int) -> None:
    """Put in order again, the batches of a stretch are the stretch's examples by their lengths."""
    plan = by_length(examples, 4)
    lengths = plan.lengths or ()
    plain = BatchPlan(examples, 4, 1, 1, 2, False, 3)
    for start in range(0, plan.steps_per_epoch, STRETCH):
        steps = range(start, min(start + STRETCH, plan.steps_per_epoch))
        batches = [flat(plan.step_indices(step, 0)) for step in steps]
        full = [batch for batch in batches if len(batch) == 4]
        full.sort(key=lambda batch: (lengths[batch[0]], lengths[batch[-1]]))
        found = [lengths[index] for batch in full for index in batch]
        # The short batch of the longest is the last, also among them.
        found += [lengths[index] for batch in batches if len(batch) < 4 for index in batch]
        assert found == sorted(found)
        own = sorted(index for batch in batches for index in batch)
        assert own == sorted(index for step in steps for index in flat(plain.step_indices(step, 0)))


def test_batches_of_like_lengths_pad_little_and_stay_mixed() -> None:
    plan, plain = by_length(1000, 10), BatchPlan(1000, 10, 1, 1, 2, False, 3)
    lengths = plan.lengths or ()

    def padded(one: BatchPlan) -> int:
        steps = (flat(one.step_indices(step, 0)) for step in range(100))
        return sum(len(batch) * max(lengths[index] for index in batch) for batch in steps)

    assert padded(plan) < 1.1 * sum(lengths) < 1.5 * sum(lengths) < padded(plain)
    means = [sum(lengths[index] for index in flat(plan.step_indices(step, 0))) for step in range(100)]
    first, second = means[:STRETCH], means[STRETCH:]
    assert first not in (sorted(first), sorted(first, reverse=True))
    assert second not in (sorted(second), sorted(second, reverse=True))


def test_a_short_batch_of_like_lengths_stays_the_last() -> None:
    plan = by_length(STRETCH * 4 + 5, 4)
    sizes = [plan.step_examples(step) for step in range(plan.steps_per_epoch)]
    assert sizes == [len(flat(plan.step_indices(step, 0))) for step in range(plan.steps_per_epoch)]
    assert sizes == [4] * (STRETCH + 1) + [1]
    assert by_length(STRETCH * 4 + 5, 4, drop_last=True).steps_per_epoch == STRETCH + 1


def test_batches_of_like_lengths_follow_from_the_seed() -> None:
    def orders(seed: int) -> list[list[list[int]]]:
        plan = by_length(90, 4, seed=seed)
        return [plan.step_indices(step, 0) for step in range(plan.total_steps)]

    assert orders(3) == orders(3)
    assert orders(3) != orders(4)
    first, second = orders(3)[:23], orders(3)[23:]
    assert first != second


@pytest.mark.parametrize("drop_last", [True, False])
def test_two_processes_hold_the_like_lengths_that_one_holds(drop_last: bool) -> None:
    one = by_length(70, 32, drop_last=drop_last)
    two = by_length(70, 16, processes=2, drop_last=drop_last)
    assert one.total_steps == two.total_steps
    for step in range(one.total_steps):
        both = flat(two.step_indices(step, 0)) + flat(two.step_indices(step, 1))
        assert both == flat(one.step_indices(step, 0))
