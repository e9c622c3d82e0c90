"""Tiny encoders and recipes for taggers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from petkit.methods.crf_tagger.config import TaggerConfig

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "the",
    "cat",
    "sat",
    "##s",
    "##ting",
    "an",
    "##na",
    "in",
    "on",
    ".",
]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BERT of 12 positions with a WordPiece tokenizer; to be left as it is."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    core = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(PIECES), max_position_embeddings=12, **sizes)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., TaggerConfig]:
    """`recipe(model__hidden=4)` gives a recipe of a few steps on the embedded sentences."""

    def make(**changes: Any) -> TaggerConfig:
        content: dict[str, Any] = {
            "output": str(tmp_path / "run"),
            "model": {"word_size": 8, "hidden": 8},
            "data": {"format": "sample", "scheme": "BIO", "train_size": 40, "test_size": 20},
            "training": {"epochs": 2, "batch_size": 20, "warmup_epochs": 0, "learning_rate": 1e-2},
        }
        for name, value in changes.items():
            section, _, key = name.partition("__")
            if key:
                content.setdefault(section, {})[key] = value
            else:
                content[section] = value
        return TaggerConfig(**content)

    return make
