"""Task vectors, added to the base."""

from __future__ import annotations

from typing import Any

import torch

from petkit.merging.combining import Chosen, Deltas, TensorByTensor
from petkit.merging.parameters import LAMBDA, WEIGHT, Parameter, Values
from petkit.merging.slices import Slices


class TaskArithmetic(TensorByTensor):
    """theta_0 + lambda sum_i w_i (theta_i - theta_0)."""

    name = "task_arithmetic"
    title = "sum of task vectors"
    paper = "Ilharco et al. 2023, arXiv:2212.04089"
    parameters = (WEIGHT, LAMBDA, Parameter("normalize", False, is_truth=True))
    needs_base = True
    models = (1, 64)

    def choose(self, slices: Slices, values: Values, surveyed: Any, dtype: torch.dtype) -> Chosen:
        """Add every difference."""
        whole = values.whole
        return Deltas(values, normalize=whole["normalize"], factor=whole["lambda"]).chosen(slices, dtype)
