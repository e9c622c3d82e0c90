from typing import Any

import pytest

from petkit.errors import ConfigError
from petkit.training.sampler import BatchPlan, MicroBatches, plan_batches


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
