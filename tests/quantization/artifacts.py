"""Small artifacts of a random timm ViT, for the tests of quantisation, serving and their commands."""

import torch

from petkit.artifacts import Base, Manifest, Preprocess, Task, write_artifact
from petkit.models.config import AdapterConfig, ModelConfig
from petkit.models.inserts import insert, inserts, pack
from petkit.models.loading import load_model

MODEL = ModelConfig(name="timm/test_vit", pretrained=False, image_size=32)


def adapted_model(config, seed=0, classes=3, model=MODEL):
    """A model whose adapters are far from zero, so that each changes the output."""
    generator = torch.Generator().manual_seed(seed)
    loaded = load_model(model, "image_classification", classes, generator)
    insert(loaded.model, config, generator)
    with torch.no_grad():
        for adapter in inserts(loaded.model).values():
            adapter.up.weight.normal_(std=0.2, generator=generator)
    return loaded


def write(folder, config=None, *, seed=0, classes=3, model=MODEL, **options):
    """Write an artifact with random adapters and return (folder, loaded model that it came from)."""
    config = config or AdapterConfig(bits=1, bottleneck=4, dropout=0.0)
    loaded = adapted_model(config, seed, classes, model)
    packed, dense = pack(loaded.model)
    manifest = Manifest(
        base=Base(id=loaded.base_id, sha256=loaded.base_sha256),
        model=model.model_dump(mode="json"),
        adapter=config.model_dump(mode="json"),
        task=Task(
            type="image_classification",
            classes=tuple(f"class-{index}" for index in range(classes)),
            preprocess=Preprocess(**loaded.preprocess),
        ),
    )
    manifest = manifest.model_copy(update=options)
    write_artifact(
        folder,
        manifest=manifest,
        config={"model": manifest.model, "adapter": manifest.adapter},
        packed=packed,
        dense=dense,
    )
    return folder, loaded
