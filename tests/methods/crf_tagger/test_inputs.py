import json

import pytest
from transformers import AutoTokenizer

from petkit.data.conll import TaggedSentence
from petkit.errors import ArtifactError, ConfigError, InputError
from petkit.methods.crf_tagger.config import TaggerConfig
from petkit.methods.crf_tagger.inputs import PieceReader, Vocabulary, WordReader, warn_of_divided
from petkit.methods.crf_tagger.splits import check_known, labels_of, load_splits


@pytest.fixture
def pieces(bert):
    tokenizer = AutoTokenizer.from_pretrained(bert)
    tokenizer.model_max_length = 12
    return PieceReader(tokenizer)


def test_a_vocabulary_holds_frequent_words_and_comes_back():
    sentences = [("a", "b", "a"), ("b", "a", "ü")]
    found = Vocabulary.of(sentences, 2, characters=True)
    assert (found.words, found.characters) == (("a", "b"), ("a", "b", "ü"))
    assert Vocabulary.from_json(json.loads(found.to_json()), "v.json") == found
    for broken in ({}, [], {"words": ["a"]}, {"words": ["a", "a"], "characters": []}, None):
        with pytest.raises(ArtifactError, match=r"v.json must hold lists of different words"):
            Vocabulary.from_json(broken, "v.json")


def test_words_and_characters_by_number():
    reader = WordReader(Vocabulary(("a", "b"), ("a", "x")))
    items = [reader.read(["b", "xa"]), reader.read(["a"])]
    batch = reader.collate(items)
    assert batch["words"].tolist() == [[3, 1], [2, 0]]
    assert batch["mask"].tolist() == [[True, True], [True, False]]
    assert batch["characters"].tolist() == [[[1, 0], [3, 2]], [[2, 0], [0, 0]]]


def test_a_word_is_read_at_its_first_piece(pieces):
    # [CLS] cat ##s sat ##ting . [SEP]
    batch = pieces.collate([pieces.read(["cats", "satting", "."]), pieces.read(["xyz"])])
    assert batch["input_ids"].tolist() == [[2, 5, 7, 6, 8, 13, 3], [2, 1, 3, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 7, [1] * 3 + [0] * 4]
    assert batch["places"].tolist() == [[1, 3, 5], [8, 0, 0]]
    assert batch["mask"].tolist() == [[True] * 3, [True, False, False]]


def test_a_long_sentence_is_divided_between_words(pieces):
    # Room for 10 pieces: 4 words of 2 pieces and 2 of 1, then the next window.
    words = ["cats"] * 4 + ["the"] + ["cats"] + ["on"]
    item = pieces.read(words)
    assert [len(window) for window in item["windows"]] == [11, 5]
    assert item["places"] == [(0, 1), (0, 3), (0, 5), (0, 7), (0, 9), (1, 1), (1, 3)]
    batch = pieces.collate([pieces.read(["on"]), item])
    flat = batch["input_ids"].flatten()
    assert flat[batch["places"][1]].tolist() == [5, 5, 5, 5, 4, 5, 12]


def test_long_sentences_are_counted_in_the_log(pieces, caplog):
    warn_of_divided("test", [["cats"] * 6, ["on"], ["cats"] * 7], pieces)
    counted = "test: sentences that are longer than the encoder reads, and go in parts: 2 of 3"
    assert caplog.messages == [counted]
    caplog.clear()
    warn_of_divided("test", [["on"]], pieces)
    warn_of_divided("test", [["cats"] * 100], WordReader(Vocabulary(("cats",))))
    assert caplog.messages == []


def test_of_a_word_longer_than_a_window_the_beginning_is_read(pieces):
    item = pieces.read(["cat" + "s" * 30, "on"])
    assert [len(window) for window in item["windows"]] == [12, 3]


def test_a_byte_level_tokenizer_reads_words_as_in_a_text():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["c", "a", "t", "\u0120", "ca", "cat", "\u0120c", "\u0120a", "\u0120ca", "\u0120cat", "<pad>"]
    merges = [("c", "a"), ("ca", "t"), ("\u0120", "c"), ("\u0120", "a"), ("\u0120c", "a"), ("\u0120ca", "t")]
    core = Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", model_max_length=16)
    reader = PieceReader(tokenizer)
    item = reader.read(["cat", "cat", "att"])
    tokens = [names[number] for number in item["windows"][0]]
    assert tokens == tokenizer.convert_ids_to_tokens(tokenizer("cat cat att")["input_ids"])
    firsts = [tokens[at] for _, at in item["places"]]
    assert [piece[0] for piece in firsts] == ["c", "\u0120", "\u0120"]
    # cat | Ġ cat | Ġa t t: c and a join first, so that the second word begins with a piece for its space.
    assert [at for _, at in item["places"]] == [0, 1, 3]


def test_a_word_of_which_nothing_is_left_is_unknown(pieces):
    assert pieces.read(["\u00a0"])["windows"] == [[2, 1, 3]]


def files(tmp_path, test, **data):
    (tmp_path / "train.conll").write_text("a B-X\nb I-X\nc O\n\nd O\n")
    (tmp_path / "test.conll").write_text(test)
    paths = {name: str(tmp_path / f"{name}.conll") for name in ("train", "test")}
    return TaggerConfig(output="x", data={**paths, "scheme": "BIO", **data})


def test_tags_that_training_does_not_have_are_refused_by_line(tmp_path):
    with pytest.raises(InputError, match=r"test.conll:3: tag 'B-Y' must be one of the 3 that training has"):
        load_splits(files(tmp_path, "a O\n\nb B-Y\n"))
    with pytest.raises(InputError, match=r"test.conll:2: tag I-X breaks the scheme BIO"):
        load_splits(files(tmp_path, "a O\nb I-X\n"))
    repaired = load_splits(files(tmp_path, "a O\nb I-X\n", faulty_tags="repair"))
    assert repaired.test[0].tags == ("O", "B-X")


def test_tags_that_look_like_spans_are_hinted_at_once(tmp_path, caplog):
    caplog.set_level("INFO", logger="petkit")
    load_splits(files(tmp_path, "a O\n\nb B-X\n", scheme="none"))
    hint = "data.scheme is none, but the tags look like BIO: data.scheme=BIO would score spans"
    assert caplog.messages == [hint]
    caplog.clear()
    load_splits(files(tmp_path, "a O\n\nb B-X\n"))
    assert caplog.messages == []


def test_sizes_choose_seeded_sentences(tmp_path):
    config = files(tmp_path, "a O\n\nb O\n\nc O\n", test_size=2)
    assert [one.words for one in load_splits(config).test] == [one.words for one in load_splits(config).test]
    assert len(load_splits(config).test) == 2
    with pytest.raises(
        InputError, match=r"data.train_size must be at most 2, the sentences there are, got 3"
    ):
        load_splits(files(tmp_path, "a O\n", train_size=3))


def test_validation_is_learned_from_unless_it_selects(tmp_path, recipe):
    assert len(load_splits(recipe()).train) == 40 + 60
    selecting = load_splits(recipe(training__select="validation"))
    assert (len(selecting.train), len(selecting.validation)) == (40, 60)
    config = files(tmp_path, "a O\n").model_copy(
        update={"training": recipe(training__select="validation").training}
    )
    with pytest.raises(ConfigError, match=r"training.select validation needs a validation split"):
        load_splits(config)


def test_labels_are_in_an_order_of_their_own():
    sentence = TaggedSentence(("w",) * 4, ("I-Y", "B-Y", "O", "B-X"), "f", (1, 2, 3, 4))
    assert labels_of([sentence]) == ("O", "B-X", "B-Y", "I-Y")
    check_known([sentence], labels_of([sentence]))


def test_a_trained_tagger_says_which_tags_it_knows():
    sentence = TaggedSentence(("a", "b"), ("O", "B-Y"), "f", (1, 2))
    message = r"^f:2: tag 'B-Y' is none that the tagger knows \(O, B-X\): correct it, or train a tagger that"
    with pytest.raises(InputError, match=message):
        check_known([sentence], ("O", "B-X"), is_trained=True)
    many = ("O", *(f"B-{number}" for number in range(30)))
    with pytest.raises(InputError, match=r"\(O, B-0, .*, B-18 and 11 more\)"):
        check_known([sentence], many, is_trained=True)
