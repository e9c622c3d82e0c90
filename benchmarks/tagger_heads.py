"""Compare heads and encoders of `petkit train tagger`, and python-crfsuite, on one split.

    python benchmarks/tagger_heads.py data/brown/spans --save benchmarks/results/tagging.json
    python benchmarks/tagger_heads.py data/brown/pos --scheme none --save ... --encoder FOLDER

FOLDER holds train.conll and test.conll, as benchmarks/brown_conll.py writes them. Every system learns from
the same choice of training sentences and is measured once on the same test sentences. A seed draws these
sentences, the initial weights and the order. Intervals are 95 %, of a bootstrap over the test sentences; they
do not contain the spread between seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from petkit.data.conll import TaggedSentence
from petkit.methods.crf_tagger.algorithm import span_scores, word_accuracy
from petkit.methods.crf_tagger.config import TaggerConfig
from petkit.methods.crf_tagger.evaluation import tag_words
from petkit.methods.crf_tagger.recipe import run
from petkit.methods.crf_tagger.splits import Splits, load_splits
from petkit.methods.crf_tagger.stored import LoadedTagger, load_tagger
from petkit.nn import CRF, bio_constraints
from petkit.training.context import RunContext

Tags = list[tuple[str, ...]]

BILSTM = {"encoder": "bilstm", "character_size": 25, "dropout": 0.3}
HEADS: dict[str, dict[str, Any]] = {
    "softmax": {"kind": "softmax"},
    "crf": {"kind": "crf", "constraints": "none"},
    "crf, constraints in both": {"kind": "crf", "constraints": "both"},
}


def main() -> None:
    """Run what is asked for, print a line for each, save all."""
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for row in measurements(arguments):
        report(row)
        rows.append(row)
        if arguments.save:
            settings = {name: str(value) for name, value in vars(arguments).items() if name != "save"}
            arguments.save.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


def measurements(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each system, as they come."""
    if arguments.crfsuite:
        _, first = next(variants(arguments))
        for seed in range(arguments.seeds):
            config = first.model_copy(update={"seed": seed})
            found = crfsuite(load_splits(config), arguments.scheme)
            yield {"system": f"python-crfsuite, seed {seed}", **found}
    if not arguments.heads:
        return
    for name, config in variants(arguments):
        for more, row in trained(config, load_splits(config), arguments.scheme):
            yield {"system": name + more, **row}


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of train.conll and test.conll")
    parser.add_argument("--scheme", default="BIO")
    parser.add_argument("--train-size", type=int, default=5000)
    parser.add_argument("--test-size", type=int)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--seeds", type=int, default=1, help="of sentences, weights and their order")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--encoder", help="a transformers encoder in the place of the BiLSTM")
    parser.add_argument("--tune", default="frozen", choices=("frozen", "adapter", "full"))
    parser.add_argument("--heads", nargs="*", default=list(HEADS), help="names of heads, or none at all")
    parser.add_argument(
        "--crfsuite", action="store_true", help="python-crfsuite too, which must be installed"
    )
    parser.add_argument("--save", type=Path)
    return parser.parse_args()


def variants(arguments: argparse.Namespace) -> Iterator[tuple[str, TaggerConfig]]:
    """Name and recipe of each system."""
    model = {"encoder": arguments.encoder, "tune": arguments.tune} if arguments.encoder else BILSTM
    data = {
        "train": str(arguments.folder / "train.conll"), "test": str(arguments.folder / "test.conll"),
        "scheme": arguments.scheme, "train_size": arguments.train_size, "test_size": arguments.test_size,
    }  # fmt: skip
    training = {
        "epochs": arguments.epochs, "batch_size": 32, "learning_rate": arguments.learning_rate,
        "warmup_epochs": 0.5, "max_gradient_norm": 5.0,
    }  # fmt: skip
    base = f"{Path(arguments.encoder).name} {arguments.tune}" if arguments.encoder else "bilstm"
    for head in arguments.heads or list(HEADS)[:1]:
        for seed in range(arguments.seeds):
            content = {"output": "-", "seed": seed, "model": model, "head": HEADS[head], "data": data}
            yield f"{base}, {head}, seed {seed}", TaggerConfig(**content, training=training)


def trained(config: TaggerConfig, splits: Splits, scheme: str) -> list[tuple[str, dict[str, Any]]]:
    """Train, load the artifact, measure it; a CRF without constraints also with constraints in decoding.

    That is what training with `head.constraints: decode` gives, since its loss knows of no constraints.
    """
    with tempfile.TemporaryDirectory() as folder:
        placed = config.model_copy(update={"output": f"{folder}/run"})
        start = time.perf_counter()
        result = run(placed, RunContext(Path(placed.output)))
        seconds = time.perf_counter() - start
        loaded = load_tagger(Path(placed.output))
    sizes = (result or {})["bytes"]
    facts = {"seconds": seconds, "bytes": sizes["adapter"] + sizes["head"]}
    rows = [("", {**measured(splits.test, tags_by(loaded, splits), scheme), **facts})]
    if loaded.model.crf is not None and scheme != "none" and config.constrain == "none":
        loaded.model.crf = constrained(loaded.model.crf, loaded.labels, scheme)
        found = measured(splits.test, tags_by(loaded, splits), scheme)
        rows.append((", constraints in decoding", {**found, **facts}))
    return rows


def tags_by(loaded: LoadedTagger, splits: Splits) -> Tags:
    """The tags of the test sentences."""
    words = [sentence.words for sentence in splits.test]
    return tag_words(loaded.model, loaded.reader, words, loaded.labels, batch_size=64)


def constrained(crf: CRF, labels: Sequence[str], scheme: str) -> CRF:
    """The same CRF with constraints."""
    found = CRF(len(labels), batch_first=True, constraints=bio_constraints(list(labels), scheme))
    found.load_state_dict(crf.state_dict())
    return found.eval()


def measured(gold: Sequence[TaggedSentence], tags: Tags, scheme: str) -> dict[str, Any]:
    """The measures, and how many sentences break the scheme."""
    true = [sentence.tags for sentence in gold]
    found: dict[str, Any] = {"accuracy": word_accuracy(true, tags).payload(), "sentences": len(true)}
    if scheme == "none":
        return found
    return {**found, "illegal": sum(map(breaks_bio, tags)), **span_scores(true, tags).payload()}


def breaks_bio(tags: Sequence[str]) -> bool:
    """Whether an I follows something else than a B or I of its type."""
    before = ("O", *tags)
    return any(
        tag.startswith("I-") and last not in (tag, f"B-{tag[2:]}")
        for last, tag in zip(before, tags, strict=False)
    )


def crfsuite(splits: Splits, scheme: str) -> dict[str, Any]:
    """A CRF over hand-made features of a word and its neighbours."""
    import pycrfsuite

    trainer = pycrfsuite.Trainer(verbose=False)
    start = time.perf_counter()
    for sentence in splits.train:
        trainer.append(features(sentence.words), sentence.tags)
    # L1 and L2 as in the package's own example of named entities, whose features these are.
    trainer.set_params({"c1": 1.0, "c2": 1e-3, "max_iterations": 50, "feature.possible_transitions": True})
    with tempfile.TemporaryDirectory() as folder:
        trainer.train(f"{folder}/model")
        seconds = time.perf_counter() - start
        tagger = pycrfsuite.Tagger()
        tagger.open(f"{folder}/model")
        tags = [tuple(tagger.tag(features(sentence.words))) for sentence in splits.test]
        size = Path(f"{folder}/model").stat().st_size
    return {**measured(splits.test, tags, scheme), "seconds": seconds, "bytes": size}


def features(words: Sequence[str]) -> list[list[str]]:
    """The word, its ends and shape, and those of its neighbours."""
    found = []
    for at, word in enumerate(words):
        own = ["bias", f"lower={word.lower()}", f"end3={word[-3:]}", f"end2={word[-2:]}", *shape("", word)]
        for name, place in (("-1:", at - 1), ("+1:", at + 1)):
            inside = 0 <= place < len(words)
            own += (
                [f"{name}{words[place].lower()}", *shape(name, words[place])] if inside else [f"{name}none"]
            )
        found.append(own)
    return found


def shape(name: str, word: str) -> list[str]:
    """How a word is written."""
    return [f"{name}upper={word.isupper()}", f"{name}title={word.istitle()}", f"{name}digit={word.isdigit()}"]


def percent(value: float, interval: Sequence[float] | None) -> str:
    """A fraction with its interval, which a single sentence has not."""
    ends = "" if interval is None else f" ({100 * interval[0]:.2f} to {100 * interval[1]:.2f})"
    return f"{100 * value:.2f}{ends}"


def report(row: dict[str, Any]) -> None:
    """Print a line."""
    values = {"F1": row.get("f1"), "accuracy": row["accuracy"]}
    shown = [f"{name} {percent(**one)}" for name, one in values.items() if one is not None]
    illegal = f", {row['illegal']} illegal" if "illegal" in row else ""
    print(f"{row['system']}: {', '.join(shown)}{illegal}, {row['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
