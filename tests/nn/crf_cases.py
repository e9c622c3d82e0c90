"""CRFs with random parameters and what to ask of them."""

from __future__ import annotations

import numpy as np
import torch

from petkit.nn import CRF
from tests.ops.crf_cases import inputs


def case(batch, time, tags, dtype=torch.float64, seed=0, gaps=False):
    """Random scores, masks and tags with batch first; parameters of ten times the usual size."""
    arguments = inputs(batch, time, tags, dtype, seed, gaps)
    generator = torch.Generator().manual_seed(seed)
    return arguments, torch.randint(tags, (batch, time), generator=generator)


def crf_of(arguments, **options):
    """A CRF with the parameters of the case."""
    _, _, transitions, start, end = arguments
    crf = CRF(len(start), batch_first=True, **options).to(transitions.dtype)
    state = {"transitions": transitions, "start_transitions": start, "end_transitions": end}
    crf.load_state_dict(state)
    return crf


def laid_out(batch_first, *tensors):
    return tensors if batch_first else tuple(tensor.transpose(0, 1).contiguous() for tensor in tensors)


def with_gradients(crf, emissions, *arguments):
    emissions = emissions.clone().requires_grad_()
    # torchcrf does not even read the transitions of a single position, and leaves no gradient.
    for parameter in crf.parameters():
        parameter.grad = torch.zeros_like(parameter)
    value = crf(emissions, *arguments)
    weights = torch.linspace(1, 2, value.numel(), dtype=torch.float64)
    value.backward(weights.to(value).view(value.shape))
    return value.detach(), emissions.grad, *(parameter.grad for parameter in crf.parameters())


def close(found, expected, atol=1e-10):
    np.testing.assert_allclose(found.detach().double().numpy(), np.asarray(expected), rtol=1e-10, atol=atol)
