import random

import numpy as np
import torch

from petkit.training.seeds import derive, seed_global, stream


def test_the_derived_seeds_never_change() -> None:
    # Frozen values: a change would silently make old checkpoints resume into other streams.
    assert derive(0, "data", 3) == 6375651805263099609
    assert derive(1, "data", 3) != derive(0, "data", 3)


def test_streams_of_different_names_differ_and_repeat() -> None:
    first = torch.rand(4, generator=stream(7, "data"))
    assert torch.equal(first, torch.rand(4, generator=stream(7, "data")))
    assert not torch.equal(first, torch.rand(4, generator=stream(7, "init")))


def test_a_stream_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    stream(7, "data")
    assert torch.equal(before, torch.get_rng_state())


def test_seed_global_points_every_global_generator_at_the_stream() -> None:
    draws = []
    for _ in range(2):
        seed_global(3, "dropout", 0, 11)
        draws.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert draws[0] == draws[1]
