"""Tiny models made in the test: nothing is fetched, nothing is random between runs."""

import pytest
import torch
import transformers
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

WIDTH = 24
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture
def vit():
    """Make a ViT of two blocks of width 24 on images of 16 pixels, with a head of 3 classes."""
    torch.manual_seed(0)
    options = {"img_size": 16, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 3}
    model = VisionTransformer(**options, num_classes=3, init_values=0.5, drop_path_rate=0.0)
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=60, max_position_embeddings=16, **SMALL)
    return transformers.BertModel(config, add_pooling_layer=False).eval()


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=60, num_key_value_heads=2, **SMALL)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture
def tokens():
    return torch.randint(0, 60, (2, 5), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


@pytest.fixture
def moved():
    """Give an up-projection weights that matter, so that an adapter's effect is far above rounding."""

    def move(model: nn.Module) -> None:
        random = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if name.endswith(".up.weight"):
                parameter.data.normal_(std=0.3, generator=random)

    return move


@pytest.fixture
def folder(tmp_path):
    """Save a small model with a word-level tokenizer, or with an image processor's record."""

    def make(config, auto=transformers.AutoModel):
        torch.manual_seed(1)
        auto.from_config(config).save_pretrained(tmp_path)
        words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "good", "bad"])}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
        )
        fast.save_pretrained(tmp_path)
        return tmp_path

    return make
