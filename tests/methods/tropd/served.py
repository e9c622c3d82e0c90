"""A server that holds a student and loads the weights that it is told to, as vLLM and SGLang do."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from tests.rollout.fault_server import refuse, stream
from tests.rollout.token_stub import sglang, vllm


class Served:
    """A student behind a server, whose requests for weights are counted.

    Args:
        folder: of the base model.
        spoil: changes completions.
    """

    def __init__(self, folder, spoil=lambda found: found):
        self.base = LlamaForCausalLM.from_pretrained(folder).eval()
        self.model = LlamaForCausalLM.from_pretrained(folder).eval()
        self.loads, self.draws, self.spoil = 0, 0, spoil
        self.fails = {}

    def __call__(self, handler):
        """Answer a request, or do what is in `fails` at the draw of that number or at the load of -number."""
        loading = not handler.path.endswith(("completions", "generate"))
        if loading and not handler.body:
            return refuse(422, "field required")(handler)
        self.loads, self.draws = self.loads + loading, self.draws + (not loading)
        failure = self.fails.get(-self.loads if loading else self.draws)
        if failure is not None:
            return failure(handler)
        if handler.path == "/v1/load_lora_adapter":
            assert (handler.body["lora_name"], handler.body["load_inplace"]) == ("student", True)
            self.adapt(Path(handler.body["lora_path"]))
            return stream(b"Success")(handler)
        if handler.path == "/update_weights_from_disk":
            self.model = LlamaForCausalLM.from_pretrained(handler.body["model_path"]).eval()
            return stream(b'{"success": true}')(handler)
        return (vllm if handler.path == "/v1/completions" else sglang)(self.model, self.spoil)(handler)

    def adapt(self, folder):
        """The base's weights and scaling B A on top, as PEFT has it."""
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["peft_type"], config["rank_pattern"], config["alpha_pattern"]) == ("LORA", {}, {})
        tensors = load_file(folder / "adapter_model.safetensors")
        weights = {name: value.clone() for name, value in self.base.state_dict().items()}
        for name in [name for name in tensors if name.endswith("lora_A.weight")]:
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            product = tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
            weights[f"{layer}.weight"] += config["lora_alpha"] / config["r"] * product
        self.model.load_state_dict(weights)
