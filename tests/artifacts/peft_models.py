"""Small random transformers and timm models, and PEFT adapters for them."""

import peft
import timm
import tokenizers
import torch
import transformers

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def vit(classes=3):
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=classes)
    )


def bert(classes=3):
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES, vocab_size=30, max_position_embeddings=16, num_labels=classes)
    )


TEXT = {"vocab_size": 30, "pad_token_id": 0}


def roberta(classes=3):
    config = transformers.RobertaConfig(**SIZES, **TEXT, num_labels=classes, max_position_embeddings=16)
    return transformers.RobertaForSequenceClassification(config)


def distilbert(classes=3):
    config = transformers.DistilBertConfig(
        dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=16, **TEXT, num_labels=classes
    )
    return transformers.DistilBertForSequenceClassification(config)


def electra(classes=3):
    config = transformers.ElectraConfig(
        **SIZES, **TEXT, num_labels=classes, embedding_size=16, max_position_embeddings=16
    )
    return transformers.ElectraForSequenceClassification(config)


def modernbert(classes=3):
    config = transformers.ModernBertConfig(
        **SIZES, **TEXT, num_labels=classes, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    )
    return transformers.ModernBertForSequenceClassification(config)


def swin(classes=3):
    config = transformers.SwinConfig(
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
        num_labels=classes,
    )
    return transformers.SwinForImageClassification(config)


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, vocab_size=30, pad_token_id=0))


def llama_classifier(classes=3):
    return transformers.LlamaForSequenceClassification(
        transformers.LlamaConfig(**SIZES, vocab_size=30, pad_token_id=0, num_labels=classes)
    )


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)
    )


def timm_vit(classes=3):
    return timm.create_model(
        "vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=2, img_size=32, num_classes=classes
    )


IMAGES = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}
TOKENS = {"input_ids": torch.tensor([[3, 7, 1, 9], [2, 2, 8, 5]])}
VIT = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]}
CASES = {
    "plain": (vit, IMAGES, VIT),
    "rslora": (vit, IMAGES, {**VIT, "use_rslora": True}),
    "rank pattern": (vit, IMAGES, {**VIT, "rank_pattern": {"0.attention.q_proj": 2, ".*v_proj": 6}}),
    "alpha pattern": (vit, IMAGES, {**VIT, "alpha_pattern": {"layers.1.*": 3}, "lora_alpha": 5}),
    "rslora, both patterns": (
        vit,
        IMAGES,
        {
            **VIT,
            "use_rslora": True,
            "rank_pattern": {"q_proj": 3},
            "alpha_pattern": {"0.attention.v_proj": 7},
        },
    ),
    "regular expression": (vit, IMAGES, {**VIT, "target_modules": r".*layers\.1\..*\.(o_proj|fc1)"}),
    "bert": (bert, TOKENS, {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"]}),
    "causal": (llama, TOKENS, {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}),
    "causal, saved head": (
        llama,
        TOKENS,
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "task_type": "CAUSAL_LM"},
    ),
    "decoder classifier": (llama_classifier, TOKENS, {"target_modules": ["v_proj"], "task_type": "SEQ_CLS"}),
    "transposed weights": (
        gpt2,
        TOKENS,
        {"target_modules": ["c_attn"], "task_type": "CAUSAL_LM", "fan_in_fan_out": True},
    ),
    "timm": (timm_vit, torch.ones(2, 3, 32, 32), {"target_modules": ["qkv"], "modules_to_save": ["head"]}),
}


def fresh(make):
    torch.manual_seed(0)
    return make().eval()


def logits(model, inputs):
    with torch.no_grad():
        output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return output if isinstance(output, torch.Tensor) else output.logits


def save_adapter(folder, make, options, dtype=torch.float32, seed=1):
    """A PEFT adapter whose every weight is random, and the model that has it."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **options})
    model = peft.get_peft_model(fresh(make), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape).mul(0.5).to(dtype))
                assert "lora_" in name or "modules_to_save" in name
    model.save_pretrained(folder)
    return model.eval()


def loaded(make, folder):
    return peft.PeftModel.from_pretrained(fresh(make), folder).eval()


SEQ_CLS = {"task_type": "SEQ_CLS"}
OWN = {
    "bert": (bert, TOKENS, {**SEQ_CLS, "target_modules": ["query"]}),
    "bert without a task": (bert, TOKENS, {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
    "roberta": (roberta, TOKENS, {**SEQ_CLS, "target_modules": ["query", "value"]}),
    # PEFT's `classifier` saves `pre_classifier` as well, because that ends in it.
    "distilbert": (distilbert, TOKENS, {**SEQ_CLS, "target_modules": ["q_lin"], "rank_pattern": {"0.*": 2}}),
    "electra": (electra, TOKENS, {**SEQ_CLS, "target_modules": ["value"]}),
    "modernbert": (
        modernbert,
        TOKENS,
        {**SEQ_CLS, "target_modules": ["Wqkv"], "modules_to_save": ["classifier", "head"]},
    ),
    "swin": (swin, IMAGES, {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]}),
}


def save_headless(make, folder):
    """A base as people have it: pretrained, without the classifier, and with a tokenizer if it reads text."""
    model = fresh(make)
    getattr(model, model.base_model_prefix).save_pretrained(folder)
    vocabulary = {f"w{index}": index for index in range(30)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="w0").save_pretrained(folder)
