"""Which tag may follow which: what a labelling scheme of chunks allows, for the `constraints` of a CRF."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from petkit.errors import InputError


class Constraints(NamedTuple):
    """What a tag sequence may hold; all three are bool, true where something is allowed."""

    transitions: Tensor
    """(tags, tags), [from, to]."""
    start: Tensor
    """(tags,), as the first tag."""
    end: Tensor
    """(tags,), as the last tag."""

    def __repr__(self) -> str:
        if not all(type(part) is Tensor and part.dtype == torch.bool and not part.is_meta for part in self):
            return f"{type(self).__name__}(...)"
        pairs, first, last = (f"{int(part.sum())} of {part.numel()}" for part in self)
        return f"{type(self).__name__}({pairs} transitions, {first} first tags, {last} last tags)"


class _Scheme(NamedTuple):
    """What the letters of a scheme do. `O`, outside of all chunks, is part of every scheme."""

    opens: str
    """Letters that may follow the end of a chunk, `O`, or nothing."""
    carries: str
    """Letters after which their chunk may go on."""
    continues: str
    """Letters that may carry a chunk of their type on."""
    closes: str
    """Letters that may end a chunk."""


_SCHEMES = {
    "BIO": _Scheme(opens="B", carries="BI", continues="I", closes="BI"),
    # B says only that a chunk touches the one before it, which is of the same type.
    "IOB1": _Scheme(opens="I", carries="BI", continues="BI", closes="BI"),
    "BIOUL": _Scheme(opens="BU", carries="BI", continues="IL", closes="LU"),
    "BIOES": _Scheme(opens="BS", carries="BI", continues="IE", closes="SE"),
    "BMES": _Scheme(opens="BS", carries="BM", continues="ME", closes="SE"),
}


def bio_constraints(labels: Sequence[str], scheme: str = "BIO") -> Constraints:
    """Transitions, first and last tags that a labelling scheme of chunks allows.

    Args:
        labels: the label of each tag, in the order of the tags: `O`, or a letter of the scheme with a type
            behind a hyphen (`B-PER`), or the letter alone where all chunks are of one type.
        scheme: `BIO` (also called IOB2: every chunk begins with B), `IOB1` (I; B only right after a chunk of
            the same type), `BIOUL` (U for chunks of one token, L for the last of longer ones), `BIOES` and
            `BMES` (the same with other letters).

    Returns:
        Bool tensors of len(labels) tags, for `CRF(num_tags, constraints=...)`.

    Raises:
        InputError: an unknown scheme, a label that the scheme does not know, no label, or one twice. Labels
            that can be part of no sequence, such as I-PER in BIO without B-PER, give a UserWarning.

    Source:
        Ramshaw and Marcus 1995 (IOB1); Tjong Kim Sang and Veenstra 1999 (IOB2); Ratinov and Roth 2009
        (BILOU).
    """
    if not isinstance(scheme, str) or scheme not in _SCHEMES:
        raise InputError(f"scheme must be one of {', '.join(_SCHEMES)}, got {scheme!r}")
    letters, types = _parsed(labels, scheme)
    opens, carries, continues, closes = (
        torch.tensor([letter in members for letter in letters]) for members in _SCHEMES[scheme]
    )
    outside = torch.tensor([letter == "O" for letter in letters])
    opens, closes = opens | outside, closes | outside
    numbers = torch.tensor([types.index(kind) for kind in types])
    same_type = numbers[:, None] == numbers
    follows = (closes[:, None] & opens) | (carries[:, None] & continues & same_type)
    found = Constraints(follows, opens, closes)
    _warn_of_useless(labels, found, scheme)
    return found


def _warn_of_useless(labels: Sequence[str], constraints: Constraints, scheme: str) -> None:
    """Name the labels that no allowed sequence holds: most often others, or the scheme, are wrong."""
    useful = _reached(constraints.start, constraints.transitions)
    useful &= _reached(constraints.end, constraints.transitions.T)
    useless = [label for label, used in zip(labels, useful.tolist(), strict=True) if not used]
    if useless:
        warnings.warn(
            f"no sequence of these labels can hold {', '.join(useless)} in the scheme {scheme}: is it "
            "another scheme, or are labels missing?",
            stacklevel=3,
        )


def _reached(first: Tensor, follows: Tensor) -> Tensor:
    """Tags (tags,) that some walk from the first ones comes to."""
    found = first.clone()
    for _ in range(len(found)):
        found |= follows[found].any(0)
    return found


def _parsed(labels: Sequence[str], scheme: str) -> tuple[list[str], list[str]]:
    """Letter and type of each label."""
    if not isinstance(labels, list | tuple) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"labels must be a list of strings in the order of the tags, got {labels!r}")
    if len(labels) == 0:
        raise InputError("labels must hold the label of each tag, got none")
    known = dict.fromkeys("".join(_SCHEMES[scheme]))
    parts = [label.partition("-") for label in labels]
    for i, (letter, hyphen, kind) in enumerate(parts):
        if labels[i] != "O" and (letter not in known or bool(hyphen) != bool(kind)):
            raise InputError(
                f"labels[{i}] must be O or {', '.join(known)} with -TYPE in the scheme {scheme}, "
                f"got {labels[i]!r}"
            )
        if labels[i] in labels[:i]:
            raise InputError(f"labels must differ, got {labels[i]!r} at {labels.index(labels[i])} and {i}")
    return [letter for letter, _, _ in parts], [kind for _, _, kind in parts]


def checked(constraints: Constraints, num_tags: int) -> Constraints:
    """Refuse constraints that are not bool or not of num_tags tags.

    Args:
        constraints: a `Constraints`, or three tensors in its order.
        num_tags: of the CRF.

    Raises:
        InputError: names the part, its expected shape and what came.
    """
    if not isinstance(constraints, tuple) or len(constraints) != 3:
        raise InputError(
            f"constraints must be a petkit.nn.Constraints (transitions, start, end), got "
            f"{type(constraints).__name__}; petkit.nn.bio_constraints makes one from labels"
        )
    found = Constraints(*constraints)
    for name, shape in (("transitions", (num_tags, num_tags)), ("start", (num_tags,)), ("end", (num_tags,))):
        part = getattr(found, name)
        if not isinstance(part, Tensor) or part.dtype != torch.bool or part.shape != shape:
            what = f"{part.dtype} {tuple(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
            raise InputError(f"constraints.{name} must be bool {shape} for {num_tags} tags, got {what}")
    return found
