"""Whether two tokenizers mean the same by every number."""

from __future__ import annotations

from typing import Any

from petkit.errors import InputError


def check_same_vocabulary(own: Any, other: Any, own_name: str, other_name: str) -> None:
    """Refuse two models whose tokenizers give other numbers to some token.

    Args:
        own: a tokenizer of transformers.
        other: another one, or None where its model has none.
        own_name: of the first one's model, for messages.
        other_name: of the second one's.

    Raises:
        InputError: one is missing, or they differ; the message names a token. A vocabulary of the same size
            is no proof: its content is compared.
    """
    for tokenizer, name in ((own, own_name), (other, other_name)):
        if tokenizer is None:
            raise InputError(
                f"{name} must have a tokenizer, so that its vocabulary can be compared, got none"
            )
    first, second = own.get_vocab(), other.get_vocab()
    if first == second:
        return
    odd = sorted(token for token in {*first, *second} if first.get(token) != second.get(token))
    token = odd[0]
    raise InputError(
        f"{own_name} and {other_name} must have one vocabulary, got {len(first):,} and {len(second):,} "
        f"tokens of which {len(odd):,} differ: {token!r} is {first.get(token)} in one and "
        f"{second.get(token)} in the other"
    )
