"""Measured numbers for a person. Standard library only, for commands that need no more."""

from __future__ import annotations


def significant(value: float, digits: int = 3) -> str:
    """A measured number for a person.

    Args:
        value: any number.
        digits: significant digits, at least 1.

    Returns:
        Text such as "53.4", "4,270" or "1.67e-06".
    """
    # Rounded first: 15 digits then write the result out, where ".3g" takes to an exponent at 1,000.
    return format(float(format(value, f".{digits}g")), ",.15g")
