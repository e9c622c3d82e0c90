import logging

import pytest

from petkit.data.parallel import SentencePair
from petkit.errors import ConfigError, InputError
from petkit.methods.nart_crf.config import TranslatorConfig
from petkit.methods.nart_crf.inputs import PairDataset, padded, short_enough
from petkit.methods.nart_crf.splits import load_splits, measured_split, pairs_sha256

PAIRS = [SentencePair("dog cat", "Hund sieht Katze"), SentencePair("cat", "Katze"), SentencePair("xyz", "x")]


def test_both_sides_have_an_end(subwords):
    data = PairDataset(PAIRS, subwords)
    assert len(data) == 3
    for pair, (source, target) in zip(PAIRS, data.items, strict=True):
        assert source == [*subwords.encode([pair.source])[0], subwords.eos_id]
        assert target == [*subwords.encode([pair.target])[0], subwords.eos_id]
    assert data.batch_lengths == tuple(len(source) + len(target) for source, target in data.items)


def test_a_batch_is_padded_behind_its_sentences(subwords):
    data = PairDataset(PAIRS, subwords)
    batch = data.collate([data[0], data[1]])
    for side, name in enumerate(("source", "target")):
        rows = [data[0][side], data[1][side]]
        time = max(map(len, rows))
        assert batch[name].tolist() == [[*row, *[subwords.pad_id] * (time - len(row))] for row in rows]
        assert batch[f"{name}_mask"].sum(1).tolist() == [len(row) for row in rows]
    assert padded([[7], [5, 6]], 9).ids.tolist() == [[7, 9], [5, 6]]
    assert padded([[7], [5, 6]], 9).mask.tolist() == [[True, False], [True, True]]


def test_long_pairs_are_left_out_and_counted(subwords, caplog):
    source, target = subwords.encode(["xyz", "x"])
    assert len(source) > len(target)
    with caplog.at_level(logging.INFO, logger="petkit"):
        assert short_enough(PAIRS[1:], subwords, len(target)) == PAIRS[1:2]
    assert "1 of 2 training pairs, with the teacher's translations if there are, are longer" in caplog.text
    turned = SentencePair("x", "xyz")
    assert short_enough([PAIRS[1], turned], subwords, len(target)) == PAIRS[1:2]
    assert short_enough(PAIRS, subwords, 99) == PAIRS
    with pytest.raises(
        InputError, match=r"data.max_length 1 leaves no training pair, since the shortest has \d"
    ):
        short_enough([turned], subwords, 1)
    with pytest.raises(
        InputError,
        match=r"the targets are the teacher's translations \(t\.jsonl\), .*: train it for longer, or learn",
    ):
        short_enough([turned], subwords, 1, "t.jsonl")


def test_sentences_beyond_the_positions_are_refused(subwords):
    data = PairDataset(
        [SentencePair("x", "x"), SentencePair("x", "xyz"), SentencePair("xyz", "x", "a7")], subwords
    )
    longest = len(data.items[1][1])
    data.check_positions(longest)
    told = f"begins 'xyz', has {longest} subwords with its end, the model has {longest - 1} positions: "
    with pytest.raises(InputError, match=f"the target of pair 2, which {told}"):
        data.check_positions(longest - 1)
    data = PairDataset(data.pairs[2:], subwords)
    with pytest.raises(InputError, match=f"the source of pair a7, which {told}"):
        data.check_positions(longest - 1)


def files(tmp_path, **data):
    rows = (
        '{"source": "a b", "target": "c"}\n{"source": "d", "target": "e"}\n{"source": "f", "target": "g"}\n'
    )
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.jsonl").write_text(rows)
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    return TranslatorConfig(output="x", data={**paths, **data})


def test_rows_and_lines_hold_the_same(tmp_path):
    rows = load_splits(files(tmp_path))
    for split in ("train", "test"):
        (tmp_path / f"{split}.en").write_text("a b\nd\nf\n")
        (tmp_path / f"{split}.fr").write_text("c\ne\ng\n")
    names = {split: str(tmp_path / split) for split in ("train", "test")}
    data = {"format": "lines", "languages": ("en", "fr"), **names}
    assert load_splits(TranslatorConfig(output="x", data=data)) == rows
    assert (len(rows.train), rows.validation, len(rows.test)) == (3, None, 3)


def test_faulty_rows_are_refused_or_left_out(tmp_path):
    config = files(tmp_path)
    with open(config.data.train, "a") as file:
        file.write('{"source": "a"}\n')
    with pytest.raises(InputError, match=r"train.jsonl:4: target must be a text"):
        load_splits(config)
    skipping = config.model_copy(update={"data": config.data.model_copy(update={"skip_bad": True})})
    assert len(load_splits(skipping).train) == 3


def test_sizes_choose_seeded_pairs_in_their_order(tmp_path):
    whole, config = files(tmp_path), files(tmp_path, train_size=2, test_size=1)
    found = load_splits(config)
    assert (len(found.train), len(found.test)) == (2, 1)
    assert [pair for pair in load_splits(whole).train if pair in found.train] == found.train
    assert load_splits(config) == found
    drawn = {load_splits(config.model_copy(update={"seed": seed})).test[0] for seed in range(9)}
    assert len(drawn) > 1
    with pytest.raises(InputError, match=r"data.train_size must be at most 3, the pairs there are, got 4"):
        load_splits(files(tmp_path, train_size=4))


def test_validation_is_learned_from_unless_it_selects(tmp_path):
    config = files(tmp_path, validation=str(tmp_path / "validation.jsonl"))
    assert len(load_splits(config).train) == 6
    select = config.training.model_copy(update={"select": "validation"})
    found = load_splits(config.model_copy(update={"training": select}))
    assert (len(found.train), len(found.validation)) == (3, 3)
    with pytest.raises(ConfigError, match=r"training.select validation needs a validation split, got none"):
        load_splits(files(tmp_path).model_copy(update={"training": select}))
    with pytest.raises(ConfigError, match=r"data.validation is required: name the file"):
        measured_split(files(tmp_path), "validation")


def test_the_hash_of_pairs_is_that_of_their_texts_in_order():
    named = [SentencePair(pair.source, pair.target, "7") for pair in PAIRS]
    assert pairs_sha256(named) == pairs_sha256(PAIRS)
    assert pairs_sha256(PAIRS[::-1]) != pairs_sha256(PAIRS)
    assert pairs_sha256([SentencePair("a", "b c")]) != pairs_sha256([SentencePair("a b", "c")])
