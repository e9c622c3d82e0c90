"""Text models of a few thousand random weights in local folders, and artifacts for them."""

import torch

from petkit.artifacts import Base, Manifest, Task, write_artifact
from petkit.models.config import ModelConfig
from petkit.models.inserts import insert, inserts, pack
from petkit.models.loading import load_model

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "mat", "good", "bad", "user", "assistant"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def save_tokenizer(folder, chat):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    )
    if chat:
        tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def save_bert(folder):
    from transformers import BertConfig, BertModel

    size = save_tokenizer(folder, chat=False)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=size, max_position_embeddings=32, **SIZES)).save_pretrained(folder)
    return folder


def save_llama(folder, chat=True):
    from transformers import LlamaConfig, LlamaForCausalLM

    size = save_tokenizer(folder, chat)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=size, bos_token_id=None, eos_token_id=3, pad_token_id=0, **SIZES)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_text(folder, base, config, *, task="text_classification", seed=0, classes=3, model=None):
    """Write an artifact with random adapters for a local text model."""
    model = model or ModelConfig(name=str(base))
    generator = torch.Generator().manual_seed(seed)
    loaded = load_model(model, task, classes, generator)
    insert(loaded.model, config, generator)
    with torch.no_grad():
        for adapter in inserts(loaded.model).values():
            adapter.up.weight.normal_(std=0.2, generator=generator)
    packed, dense = pack(loaded.model)
    names = () if task == "causal_lm" else tuple(f"class-{index}" for index in range(classes))
    manifest = Manifest(
        base=Base(id=loaded.base_id, sha256=loaded.base_sha256),
        model=model.model_dump(mode="json"),
        adapter=config.model_dump(mode="json"),
        task=Task(type=task, classes=names, max_length=16),
    )
    config = {"model": manifest.model, "adapter": manifest.adapter}
    return write_artifact(folder, manifest=manifest, config=config, packed=packed, dense=dense)
