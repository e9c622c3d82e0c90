"""A base model in a folder, and PEFT adapters for it whose every weight is random."""

import peft
import torch
import transformers

from tests.artifacts.peft_models import fresh


def save_base(folder, make):
    fresh(make).save_pretrained(folder)
    return folder


def load_base(folder):
    recorded = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, recorded.architectures[0]).from_pretrained(folder).eval()


def save_adapter(folder, base, seed=1, **options):
    """Write an adapter of a base folder, which it names."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **options})
    model = peft.get_peft_model(load_base(base), config)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source))
    model.save_pretrained(folder)
    return folder


def with_adapters(base, *folders):
    """PEFT's model with adapters named 0, 1, ...; the first is active."""
    model = peft.PeftModel.from_pretrained(load_base(base), folders[0], adapter_name="0")
    for place, folder in enumerate(folders[1:], start=1):
        model.load_adapter(folder, adapter_name=str(place))
    return model.eval()


def write_yaml(path, method, models, **keys):
    """A file of mergekit's format; models are names, or pairs of a name and parameters."""
    from petkit.configuration import dump_yaml

    listed = [
        {"model": str(one[0]), "parameters": one[1]} if isinstance(one, tuple) else {"model": str(one)}
        for one in models
    ]
    path.write_text(dump_yaml({"merge_method": method, "models": listed, **keys}))
    return path
