"""Small data sets written by the test."""

import json

import numpy as np
import pytest
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

PREPROCESS = {"image_size": 8, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bilinear"}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def preprocess():
    return dict(PREPROCESS)


def paint(path, value, size=(10, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


@pytest.fixture
def vtab(tmp_path):
    """Write the list files of VTAB-1K for three classes: 9 training, 3 validation and 6 test images."""
    number = 0
    for name, count in (("train800", 9), ("val200", 3), ("test", 6)):
        lines = []
        for index in range(count):
            number += 1
            paint(tmp_path / "images" / f"{name} {index}.png", number)
            lines.append(f"images/{name} {index}.png {index % 3}")
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    """Write split/class/file folders for the classes cat and dog."""
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        for label, value in (("dog", 10), ("cat", 20)):
            for index in range(count):
                paint(tmp_path / split / label / f"{index}.png", value + index)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    return tmp_path


@pytest.fixture
def write_rows(tmp_path):
    """Write JSONL files by split; a row may be a dict or raw text."""

    def write(**splits):
        for split, rows in splits.items():
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        return tmp_path

    return write


@pytest.fixture
def tokenizer():
    """Make a fast tokenizer of one token a byte, with ChatML's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHATML
    return fast
