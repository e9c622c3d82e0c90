"""The hooks that carry an adapter: copies, recomputation, compilation, dropout, refusals."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from petkit.errors import InputError
from petkit.models.adapter import Insert
from petkit.models.config import AdapterConfig
from petkit.models.inserts import adapter_state, insert, inserts
from petkit.models.sites import Site

METHODS = ("adaptformer", "lora", "houlsby")


def adapted(model, method="adaptformer", dropout=0.0):
    insert(model, AdapterConfig(method=method, bits=1, bottleneck=5, dropout=dropout))
    return model


def gradients(model, images):
    model.zero_grad()
    functional.cross_entropy(model(images), torch.tensor([0, 2])).backward()
    return {name: model.get_parameter(name).grad.clone() for name in adapter_state(model)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_use_their_own_adapters(vit, images, moved, method, duplicate):
    twin = duplicate(adapted(vit, method))
    moved(twin)
    before = vit(images)
    assert not torch.equal(twin(images), before)
    for adapter in inserts(twin).values():
        adapter.scale = 0.0
    assert torch.equal(vit(images), before)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_changes_nothing(vit, images, moved, method):
    adapted(vit, method)
    moved(vit)
    plain = gradients(vit.train(), images)
    vit.set_grad_checkpointing()
    for name, gradient in gradients(vit, images).items():
        torch.testing.assert_close(gradient, plain[name])


@pytest.mark.parametrize("method", METHODS)
def test_transformers_checkpointing_changes_nothing(llama, tokens, moved, method):
    insert(llama, AdapterConfig(method=method, bits=1, bottleneck=5, dropout=0.0))
    moved(llama)
    llama.train()

    def run():
        llama.zero_grad()
        llama(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        return {name: llama.get_parameter(name).grad.clone() for name in adapter_state(llama)}

    plain = run()
    llama.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    for name, gradient in run().items():
        torch.testing.assert_close(gradient, plain[name])


def test_reentrant_checkpointing_is_refused_where_it_would_lose_the_gradient(llama, tokens):
    insert(llama, AdapterConfig(bits=1, bottleneck=5))
    llama.train()
    llama.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    llama.enable_input_require_grads()
    with pytest.raises(InputError, match="must be non-reentrant"):
        llama(input_ids=tokens, labels=tokens, use_cache=False)


def test_dropout_acts_on_the_bottleneck_in_training_only(vit, images, moved):
    adapted(vit, dropout=0.5)
    moved(vit)
    torch.manual_seed(0)
    assert torch.equal(vit(images), vit(images))
    vit.train()
    assert not torch.equal(vit(images), vit(images))


def test_autocast_keeps_the_hosts_dtype(vit, images, moved):
    adapted(vit, "lora")
    moved(vit)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = vit(images)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), vit(images), rtol=0.1, atol=0.1)


def test_an_add_without_a_capture_is_refused():
    site = Site("adaptformer", "norm", "", 4, 4)
    adapter = Insert(site, nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False), "relu", 0.0, 1.0)
    with pytest.raises(InputError, match="norm did not run before"):
        adapter.add_to_output(nn.Identity(), (torch.ones(1, 4),), {}, torch.ones(1, 4))


def test_first_outputs_and_keyword_inputs_are_found():
    class Host(nn.Module):
        def forward(self, hidden):
            return hidden * 2, "weights"

    model = nn.ModuleDict({"host": Host()})
    site = Site("host.adapter", "host", "host", 3, 3)
    down, up = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    for projection in (down, up):
        nn.init.eye_(projection.weight)
    Insert(site, down, up, "identity", 0.0, 10.0).attach(model)
    total, rest = model["host"](hidden=torch.ones(1, 3))
    assert torch.equal(total, torch.full((1, 3), 12.0))
    assert rest == "weights"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
# Inductor warns about its own use of deprecated Python and torch calls, which says nothing about the model.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_models_agree(vit, images, moved, method):
    adapted(vit, method)
    moved(vit)
    compiled = torch.compile(vit, backend="aot_eager")
    torch.testing.assert_close(compiled(images), vit(images), rtol=1e-5, atol=1e-5)
