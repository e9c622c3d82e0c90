"""Class names and numbers, and the check that training has seen every class that is tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from petkit.errors import InputError

# Gaps count as classes, so one wrong number could ask for a head of any size.
MOST_CLASSES = 1_000_000


def class_names(labels: Mapping[str, Sequence[str]], numbered: bool, allow_unseen: bool) -> tuple[str, ...]:
    """Name the classes of a data set that does not list them.

    Args:
        labels: Class of each example, by split.
        numbered: The names are numbers from 0 on: gaps count as classes too.
        allow_unseen: Count the classes of the test split as well.

    Returns:
        Class names in the order of their numbers: numeric, or alphabetic.

    Raises:
        InputError: A number that is too large for a class.
    """
    if numbered:
        highest = max(int(label) for values in labels.values() for label in values)
        if highest >= MOST_CLASSES:
            raise InputError(
                f"class numbers must count from 0 and stay below {MOST_CLASSES:,}, got {highest}: correct "
                "the label, or write names instead of numbers"
            )
        return tuple(str(number) for number in range(highest + 1))
    counted = labels if allow_unseen or "train" not in labels else fitted_part(labels)
    return tuple(sorted({label for values in counted.values() for label in values}))


def class_numbers(labels: Sequence[str], names: Sequence[str], split: str) -> list[int]:
    """Number each example's class.

    Args:
        labels: Class of each example.
        names: Class names in order.
        split: Name of the split, for the message.

    Returns:
        One position in `names` per example.

    Raises:
        InputError: A class is not among the names; the message names it.
    """
    positions = {name: position for position, name in enumerate(names)}
    for label in labels:
        if label not in positions:
            raise InputError(
                f"class {label!r} of the {split} split is none of the {len(names)} that were trained "
                f"({', '.join(names[:8])}{', ...' if len(names) > 8 else ''}): remove its examples, "
                "or train with data.allow_unseen_classes"
            )
    return [positions[label] for label in labels]


def check_seen(numbers: Mapping[str, Sequence[int]], names: Sequence[str]) -> None:
    """Refuse a test class that training never saw: its accuracy would be 0 in any case.

    Args:
        numbers: Class number of each example, by split; without a train split nothing is checked.
        names: Class names.

    Raises:
        InputError: There is such a class; the message names it.
    """
    if "train" not in numbers:
        return
    seen = {number for values in fitted_part(numbers).values() for number in values}
    unseen = sorted(set(numbers.get("test", ())) - seen)
    if unseen:
        listed = ", ".join(repr(names[number]) for number in unseen[:4])
        raise InputError(
            f"{len(unseen)} classes of the test split were never seen in training ({listed}): add training "
            "examples, remove the test examples, or set data.allow_unseen_classes"
        )


def fitted_part(splits: Mapping[str, Sequence]) -> dict[str, Sequence]:  # type: ignore[type-arg]
    """The splits that training may use, by name: all but test."""
    return {split: values for split, values in splits.items() if split != "test"}
