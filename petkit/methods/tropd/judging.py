"""What judges the responses: the questions' answers, or a function of the recipe's."""

from __future__ import annotations

import logging
from pathlib import Path

from petkit.errors import ConfigError
from petkit.methods.tropd.config import DistillConfig
from petkit.rollout.own_reward import Judge, OwnReward, by_answers
from petkit.training.checkpoint import saved_settings

log = logging.getLogger(__name__)

SHOWN = 12


def judge_of(config: DistillConfig) -> Judge:
    """What judges the responses.

    Args:
        config: the recipe.

    Returns:
        The judge; a function of the user's own is not started.

    Raises:
        ConfigError: the function's name is none.
        InputError: its file does not exist.
    """
    own = config.reward
    if own.function is None:
        return by_answers
    return OwnReward(own.function, own.timeout)


def try_out(judge: Judge) -> None:
    """See that a function of the user's own can be had, before anything is trained.

    Raises:
        InputError: it cannot.
    """
    if isinstance(judge, OwnReward):
        judge.check()


def reward_facts(judge: Judge) -> dict[str, str] | None:
    """Name and sha256 of a function of the user's own; None where answers are compared."""
    return {"function": judge.function, "sha256": judge.sha256} if isinstance(judge, OwnReward) else None


def check_reward(checkpoint: Path, config: DistillConfig, judge: Judge) -> None:
    """Tell of a function that is not the checkpoint's: it may be mended where its rewards chose nothing.

    Args:
        checkpoint: that the run goes on from.
        config: the recipe.
        judge: of this run.

    Raises:
        ArtifactError: the checkpoint is damaged.
        ConfigError: rewards of another function have chosen between steps.
    """
    saved = saved_settings(checkpoint)
    old = _told(saved.get("reward.function"), saved.get("reward.sha256"))
    facts = reward_facts(judge) or {}
    new = _told(facts.get("function"), facts.get("sha256"))
    if old == new:
        return
    if config.training.select == "validation":
        raise ConfigError(
            f"--resume needs the reward.function of {checkpoint}, by which training.select validation "
            f"compares steps, got another ({old} -> {new}): restore it or start a new output folder"
        )
    log.info(
        "reward.function changed: %s -> %s; the old one gave the rewards of the steps up to %s",
        old,
        new,
        checkpoint,
    )


def _told(function: str | None, sha256: str | None) -> str:
    return "answers compared" if function is None else f"{function} (sha256 {(sha256 or '?')[:SHOWN]})"
