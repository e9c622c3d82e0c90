"""Names of tensors in a model folder's files, where transformers calls them otherwise in memory."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def checkpoint_names(folder: Path) -> dict[str, str]:
    """What transformers renames when it reads a folder's files.

    Args:
        folder: with config.json.

    Returns:
        Name in the model's state dict to name in the files, for tensors that are the same in both; empty
        where transformers renames none, or does not know the model.
    """
    try:
        import transformers
        from transformers.core_model_loading import revert_weight_conversion

        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = getattr(transformers, str((recorded.get("architectures") or [""])[0]), None)
        if not (isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel)):
            return {}
        with torch.device("meta"):
            model = architecture(config)
        # Tensors that are only renamed keep their identity; others are made of several.
        own = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
        written = revert_weight_conversion(model, dict(model.state_dict(keep_vars=True)))
    except (ImportError, OSError, ValueError, AttributeError, TypeError, KeyError):
        return {}
    return {own[id(tensor)]: name for name, tensor in written.items() if id(tensor) in own}
