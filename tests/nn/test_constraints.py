from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from petkit.errors import InputError
from petkit.nn import CRF, Constraints, bio_constraints
from petkit.nn.constraints import checked

TYPES = ("PER", "LOC")


def spans(draw_lengths, gaps, types):
    """Chunks (first, last, type) from lengths and the tokens outside before each."""
    at, found = 0, []
    for length, gap, kind in zip(draw_lengths, gaps, types, strict=True):
        found.append((at + gap, at + gap + length - 1, kind))
        at += gap + length
    return found, at + 1


def written(chunks, time, scheme):
    """Label chunks as the definition of each scheme says, chunk by chunk."""
    first, inner, last, single = {
        "BIO": "BIIB",
        "BIOUL": "BILU",
        "BIOES": "BIES",
        "BMES": "BMES",
        "IOB1": "IIII",
    }[scheme]
    labels = ["O"] * time
    for start, end, kind in chunks:
        letters = single if start == end else first + inner * (end - start - 1) + last
        for i, letter in enumerate(letters):
            labels[start + i] = f"{letter}-{kind}"
        if scheme == "IOB1" and start > 0 and labels[start - 1].endswith(f"-{kind}"):
            labels[start] = f"B-{kind}"
    return labels


def allowed(constraints, path):
    """Whether a sequence of tags is allowed, term by term."""
    steps = all(constraints.transitions[a, b] for a, b in itertools.pairwise(path))
    return bool(constraints.start[path[0]] and constraints.end[path[-1]] and steps)


def labels_of(scheme):
    letters = {"BIO": "BI", "IOB1": "BI", "BIOUL": "BIUL", "BIOES": "BIES", "BMES": "BMES"}[scheme]
    return ["O", *(f"{letter}-{kind}" for kind in TYPES for letter in letters)]


def all_writings(scheme, time):
    """Every label sequence of `time` tokens that writes some chunks down."""

    def chunkings(at):
        yield []
        for start in range(at, time):
            for end in range(start, time):
                for kind in TYPES:
                    for rest in chunkings(end + 1):
                        yield [(start, end, kind), *rest]

    return {tuple(written(chunks, time, scheme)) for chunks in chunkings(0)}


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOUL", "BIOES", "BMES"])
@pytest.mark.parametrize("time", [1, 2, 3, 4])
def test_allows_exactly_what_writes_chunks_down(scheme, time):
    labels = labels_of(scheme)
    constraints = bio_constraints(labels, scheme)
    found = {
        tuple(labels[tag] for tag in path)
        for path in itertools.product(range(len(labels)), repeat=time)
        if allowed(constraints, path)
    }
    assert found == all_writings(scheme, time)


chunk = st.tuples(st.integers(1, 4), st.integers(0, 2), st.sampled_from(TYPES))


@given(st.lists(chunk, min_size=1, max_size=6), st.sampled_from(["BIO", "IOB1", "BIOUL", "BIOES", "BMES"]))
def test_any_chunks_can_be_written(parts, scheme):
    chunks, time = spans(*zip(*parts, strict=True))
    labels = labels_of(scheme)
    path = [labels.index(label) for label in written(chunks, time, scheme)]
    assert allowed(bio_constraints(labels, scheme), path)


def test_shapes_dtypes_and_an_example():
    with pytest.warns(
        UserWarning, match="no sequence of these labels can hold I-LOC in the scheme BIO: is it"
    ):
        found = bio_constraints(["O", "B-PER", "I-PER", "I-LOC"])
    assert all(part.dtype == torch.bool for part in found)
    assert found.start.tolist() == [True, True, False, False]
    assert found.end.tolist() == [True] * 4
    assert found.transitions.tolist() == [
        [True, True, False, False],
        [True, True, True, False],
        [True, True, True, False],
        [True, True, False, True],
    ]


def test_letters_without_a_type_and_types_with_hyphens():
    words = bio_constraints(["B", "M", "E", "S"], "BMES")
    assert words.start.tolist() == [True, False, False, True]
    assert words.transitions[0].tolist() == [False, True, True, False]
    parts = bio_constraints(["B-a-b", "I-a-b", "B-a"])
    assert parts.transitions[0].tolist() == [True, True, True]
    assert parts.transitions[2].tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("labels", "scheme", "useless"),
    [
        (["O", "B-A", "I-A"], "BIOUL", "B-A, I-A"),
        (["O", "I-A"], "BIO", "I-A"),
        (["O", "B-A", "I-A", "E-A", "B-B", "S-B"], "BIOES", "B-B"),
    ],
)
def test_labels_that_nothing_can_hold_are_named(labels, scheme, useless):
    with pytest.warns(UserWarning, match=f"can hold {useless} in the scheme {scheme}: is it another"):
        bio_constraints(labels, scheme)


def test_constraints_of_another_dtype_are_shown_and_refused():
    scores = Constraints(torch.zeros(2, 2), torch.full((2,), -torch.inf), torch.zeros(2))
    assert repr(scores) == "Constraints(...)"
    with pytest.raises(InputError, match=r"constraints\.transitions must be bool \(2, 2\)"):
        CRF(2, constraints=scores)


@pytest.mark.parametrize(
    ("labels", "scheme", "message"),
    [
        (["O"], "IOB", "scheme must be one of BIO, IOB1, BIOUL, BIOES, BMES, got 'IOB'"),
        (["O"], ["BIO"], r"scheme must be one of BIO, .* got \['BIO'\]"),
        (["O", "L-PER"], "BIO", r"labels\[1\] must be O or B, I with -TYPE in the scheme BIO, got 'L-PER'"),
        (["O", "PER"], "BIO", r"labels\[1\] must be .* got 'PER'"),
        (["O-PER"], "BIO", r"labels\[0\] must be .* got 'O-PER'"),
        (["O", "B-"], "BIO", r"labels\[1\] must be .* got 'B-'"),
        (["O", "B-X", ""], "BIO", r"labels\[2\] must be .* got ''"),
        (["O", "B-X", "O"], "BIO", "labels must differ, got 'O' at 0 and 2"),
        ([], "BIO", "labels must hold the label of each tag, got none"),
        ("BIO", "BIO", "labels must be a list of strings .* got 'BIO'"),
        ([0, 1], "BIO", r"labels must be a list of strings .* got \[0, 1\]"),
        (None, "BIO", "labels must be a list of strings .* got None"),
    ],
)
def test_refused_labels(labels, scheme, message):
    with pytest.raises(InputError, match=message):
        bio_constraints(labels, scheme)


GOOD = bio_constraints(["O", "B-X", "I-X"])


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (
            bio_constraints(["O", "B-X"]),
            r"constraints.transitions must be bool \(3, 3\) for 3 tags, got torch.bool \(2, 2\)",
        ),
        (GOOD._replace(start=torch.ones(2).bool()), r"constraints.start must be bool \(3,\) .*\(2,\)"),
        (GOOD._replace(end=torch.ones(3)), r"constraints.end must be bool \(3,\) .* got torch.float32"),
        (GOOD._replace(end=[True] * 3), r"constraints.end must be bool \(3,\) .* got list"),
        (GOOD.transitions, "constraints must be a petkit.nn.Constraints .* got Tensor; .*bio_constraints"),
        ([("a", "b")], "constraints must be a petkit.nn.Constraints .* got list"),
    ],
)
def test_refused_constraints(constraints, message):
    with pytest.raises(InputError, match=message):
        checked(constraints, 3)


def test_three_tensors_are_constraints_too():
    assert checked(tuple(GOOD), 3) == Constraints(*GOOD)
