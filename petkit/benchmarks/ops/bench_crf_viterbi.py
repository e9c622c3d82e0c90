"""The best tag sequence of a linear-chain CRF, against pytorch-crf's decoder and python-crfsuite's tagger."""

from __future__ import annotations

import random
import tempfile
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from petkit import ops
from petkit.benchmarks.harness import Case
from petkit.benchmarks.ops._crf_inputs import BATCH, PEER, TIME, Inputs, inputs, log, pytorch_crf

GOALS = {16: 40.0, 64: 10.0, 256: 8.0}
SUITE, SUITE_GOAL = "python-crfsuite, prebuilt sequences", 2.0
SENTENCES, LABELS = 1000, 9


def cases() -> list[Case]:
    """16, 64 and 256 tags; and 25,000 tokens of 9 labels, emissions or features given."""
    return [*(_case(tags) for tags in GOALS), _tagging()]


def _case(tags: int) -> Case:
    given = inputs(tags)
    peer = pytorch_crf(given)
    return Case(
        f"crf_viterbi {BATCH}x{TIME}, {tags} tags",
        partial(ops.crf_viterbi, *given.arguments),
        {PEER: partial(_decode, peer, given)} if peer else {},
        goals={PEER: GOALS[tags]} if peer else {},
    )


def _decode(peer: Any, given: Inputs) -> object:
    with torch.no_grad():
        return peer.decode(given.emissions, mask=given.mask)


def _tagging() -> Case:
    lengths = [10 + i * 7 % 31 for i in range(SENTENCES)]
    generator = torch.Generator().manual_seed(0)
    emissions = torch.randn(SENTENCES, max(lengths), LABELS, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    transitions = torch.randn(LABELS, LABELS, generator=generator)
    start, end = torch.randn(2, LABELS, generator=generator)
    peers = _crfsuite(lengths)
    return Case(
        f"tagging {sum(lengths)} tokens, {LABELS} labels",
        partial(ops.crf_viterbi, emissions, mask, transitions, start, end),
        peers,
        goals=dict.fromkeys(peers, SUITE_GOAL),
    )


def _crfsuite(lengths: list[int]) -> dict[str, Any]:
    """A tagger trained for a few steps on words with labels of their own; {} where it is not installed."""
    try:
        suite = import_module("pycrfsuite")
    except ImportError:
        log.warning("python-crfsuite is not installed and is left out of the comparison")
        return {}
    rng = random.Random(0)
    sentences = [[_features(rng.randrange(5000)) for _ in range(length)] for length in lengths]
    trainer = suite.Trainer(verbose=False)
    for sentence in sentences:
        trainer.append(sentence, [f"T{sum(map(ord, features[1])) % LABELS}" for features in sentence])
    trainer.set_params({"max_iterations": 15, "c2": 0.1})
    tagger = suite.Tagger()
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "model"))
        trainer.train(file)
        tagger.open(file)
    prebuilt = [suite.ItemSequence(sentence) for sentence in sentences]
    return {SUITE: lambda: [tagger.tag(sequence) for sequence in prebuilt]}


def _features(word: int) -> list[str]:
    return [
        "bias",
        f"w={word}",
        f"s={word % 100}",
        f"p={word // 100}",
        f"l={len(str(word))}",
        f"d={word % 7}",
    ]
