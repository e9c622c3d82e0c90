"""Small models in memory and on the disk."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass
class Family:
    """A base and what was fine-tuned from it, as state dicts and as folders."""

    base: dict[str, Tensor]
    models: list[dict[str, Tensor]]
    folder: Path

    def write(self, name: str, tensors: dict[str, Tensor]) -> Path:
        path = self.folder / name
        path.mkdir(exist_ok=True)
        save_file({key: one.contiguous() for key, one in tensors.items()}, path / "model.safetensors")
        return path


def shifted(base: dict[str, Tensor], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {
        name: (one.float() + 0.1 * torch.randn(one.shape, generator=source)).to(dtype)
        if one.is_floating_point()
        else one
        for name, one in base.items()
    }


def made(folder: Path, dtype: torch.dtype = torch.float32) -> Family:
    source = torch.Generator().manual_seed(0)
    shapes = {"model.embed.weight": (9, 6), "model.norm.weight": (6,)}
    shapes |= {f"model.layers.{i}.mlp.weight": (5, 6) for i in range(4)}
    shapes |= {f"model.layers.{i}.attn.weight": (6, 6) for i in range(4)}
    base = {name: torch.randn(shape, generator=source).to(dtype) for name, shape in shapes.items()}
    base["model.steps"] = torch.tensor(7)
    family = Family(base, [shifted(base, seed, dtype) for seed in (1, 2, 3)], folder)
    family.write("base", base)
    for i, model in enumerate(family.models):
        family.write(f"m{i}", model)
    return family


@pytest.fixture
def family(tmp_path):
    return made(tmp_path)


@pytest.fixture
def half_family(tmp_path):
    return made(tmp_path, torch.bfloat16)
