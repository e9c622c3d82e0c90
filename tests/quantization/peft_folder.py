"""A PEFT LoRA folder written by hand, after PEFT's published format."""

import json

import torch
from safetensors.torch import save_file


def write_peft(folder, *, rank=2, alpha=4, features=64, layers=2, **changes):
    """Write adapters beside the MLPs' first linear maps of timm/test_vit, with random weights."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for index in range(layers):
        layer = f"base_model.model.blocks.{index}.mlp.fc1"
        tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, features, generator=generator)
        tensors[f"{layer}.lora_B.weight"] = torch.randn(3 * features, rank, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "timm/test_vit",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": [f"blocks.{index}.mlp.fc1" for index in range(layers)],
        "bias": "none",
        "task_type": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return folder, tensors
