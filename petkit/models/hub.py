"""The Hugging Face hub as a source of models: reached at once, or left alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 5.0


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Use the hub when it answers and the cache alone when it does not.

    Left to itself the hub's library retries for half a minute, with a line for every attempt.

    Returns:
        A context manager for the calls that may fetch files.
    """
    from huggingface_hub import constants

    logger = logging.getLogger("huggingface_hub")
    level, offline = logger.level, constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or not _answers(constants.ENDPOINT)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logger.setLevel(level)


def _answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=SECONDS)
    except Exception:
        # The library's HTTP client, and with it the kinds of its errors, changed between its versions.
        return False
    return True


def offline_advice(local: str) -> str:
    """Say what to do about a file that is neither in the cache nor to be had.

    Args:
        local: what to give in place of the hub's name, "a local folder", say.

    Returns:
        The end of a message.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return f"and may not be fetched: run once without --offline (and HF_HUB_OFFLINE), or give {local}"
    return f"and the hub cannot be reached: go online or give {local}"
