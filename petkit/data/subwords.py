"""A vocabulary of subwords shared by source and target, made of the training text alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from petkit.errors import ArtifactError, InputError

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNKNOWN)


class Subwords:
    """Byte-pair encoding over bytes: every text can be written, and reading it back gives the same text.

    Ids 0 to 3 are padding, begin, end and unknown.

    Args:
        tokenizer: of the `tokenizers` library, as `train_subwords` and `subwords_of` make it.

    Source:
        Sennrich, Haddow and Birch 2016, by the tokenizers library.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        # A text that says "<eos>" does not end there.
        tokenizer.encode_special_tokens = True
        self.pad_id, self.bos_id, self.eos_id, self.unknown_id = (tokenizer.token_to_id(t) for t in SPECIAL)

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without begin and end."""
        return [list(encoded.ids) for encoded in self.tokenizer.encode_batch(list(texts))]

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Texts of rows of ids; the special ids write nothing."""
        found: list[str] = self.tokenizer.decode_batch([list(row) for row in ids])
        return found

    def to_json(self) -> bytes:
        """The tokenizers library's JSON, always the same for the same vocabulary."""
        return str(self.tokenizer.to_str()).encode()


def train_subwords(texts: Iterable[str], vocab_size: int) -> Subwords:
    """Make a vocabulary of the commonest subwords; the same texts give the same one.

    Args:
        texts: of both languages.
        vocab_size: entries, special ones and the 256 bytes among them: at least 260.

    Raises:
        InputError: vocab_size is below 260, or the texts have too few different subwords for it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    least = len(SPECIAL) + 256
    if vocab_size < least:
        raise InputError(
            f"vocabulary.size must be at least {least}: 256 bytes and {len(SPECIAL)}, got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    made = Subwords(tokenizer)
    if len(made) < vocab_size:
        raise InputError(
            f"the texts give {len(made)} subwords, fewer than vocabulary.size {vocab_size}: lower it or add "
            "text"
        )
    return made


def subwords_of(text: str, place: str) -> Subwords:
    """Read what `Subwords.to_json` gave.

    Args:
        text: JSON.
        place: of it, for messages.

    Returns:
        The vocabulary.

    Raises:
        ArtifactError: it is no tokenizer, or one without the special tokens at ids 0 to 3.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:
        # The library raises plain exceptions.
        raise ArtifactError(f"{place} is no tokenizer of the tokenizers library: {error}") from error
    found = [tokenizer.token_to_id(token) for token in SPECIAL]
    if found != list(range(len(SPECIAL))):
        raise ArtifactError(
            f"{place} must have {', '.join(SPECIAL)} at ids 0 to {len(SPECIAL) - 1}, got {found}"
        )
    return Subwords(tokenizer)
