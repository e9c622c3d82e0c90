"""Recipes over tiny models: a ViT on the embedded sample, a BERT and a Llama on JSONL."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from petkit.methods.binary_adapter.config import BinaryAdapterConfig

WORDS = (
    *("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "rug"),
    *("good", "bad", "is", "was", "very", "user", "assistant"),
)
TEMPLATE = (
    "{% for m in messages %}<s> {{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)


@pytest.fixture
def image_recipe(tmp_path: Path) -> Callable[..., BinaryAdapterConfig]:
    """A recipe on 40 pictures; sections are merged over the defaults."""

    def make(output: str = "run", seed: int = 0, **sections: dict[str, Any]) -> BinaryAdapterConfig:
        base: dict[str, dict[str, Any]] = {
            "model": {"name": "timm/test_vit", "pretrained": False, "image_size": 32},
            "adapter": {"bottleneck": 4, "dropout": 0.0},
            "data": {"train_size": 40, "test_size": 20},
            "training": {"epochs": 2, "batch_size": 10, "warmup_epochs": 1},
        }
        merged = {name: {**base[name], **sections.get(name, {})} for name in base}
        return BinaryAdapterConfig.model_validate({"output": str(tmp_path / output), "seed": seed, **merged})

    return make


def save_tokenizer(folder: Path, chat: bool) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    if chat:
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A folder with a BERT of two layers and its tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path / "bert"
    tokenizer = save_tokenizer(folder, chat=False)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes)).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A folder with a Llama of two layers and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "llama"
    tokenizer = save_tokenizer(folder, chat=True)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    # A frozen output map needs weights of some size to tell tokens apart.
    config = LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.5, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Sentences labelled by whether they hold `good` or `bad`."""
    folder = tmp_path / "texts"
    folder.mkdir()
    generator = random.Random(0)
    for split, n in (("train", 64), ("validation", 16), ("test", 16)):
        rows = []
        for number in range(n):
            label = ("good", "bad")[number % 2]
            words = [*generator.choices(WORDS[:8], k=generator.randint(2, 6)), label]
            rows.append({"text": " ".join(generator.sample(words, len(words))), "label": label})
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Conversations whose answer repeats the question's last word."""
    folder = tmp_path / "chats"
    folder.mkdir()
    generator = random.Random(0)
    for split, n in (("train", 24), ("test", 8)):
        rows = []
        for _ in range(n):
            question = generator.choices(WORDS[:8], k=generator.randint(2, 5))
            turns = [("user", " ".join(question)), ("assistant", f"{question[-1]} is good")]
            rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder
