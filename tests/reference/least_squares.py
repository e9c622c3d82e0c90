"""Least-squares fit of shift and scale, by numpy.linalg.lstsq on the design matrix. Float64, no petkit."""

import numpy as np


def fit_shift_scale(weight, levels, inputs=None):
    """Return (a, b) that minimise ||X (W - a - b L)^T||^2, with X the identity when `inputs` is None."""
    weight, levels = np.asarray(weight, np.float64), np.asarray(levels, np.float64)
    inputs = np.eye(weight.shape[1]) if inputs is None else np.asarray(inputs, np.float64)
    ones = inputs @ np.ones(weight.shape[1])
    design = np.concatenate([np.stack([ones, inputs @ row], axis=1) for row in levels])
    target = np.concatenate([inputs @ row for row in weight])
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    return float(solution[0]), float(solution[1])


def output_error(weight, approximation, inputs):
    """Return ||X (W - A)^T|| / ||X W^T||."""
    weight, approximation = np.asarray(weight, np.float64), np.asarray(approximation, np.float64)
    inputs = np.asarray(inputs, np.float64)
    return np.linalg.norm(inputs @ (weight - approximation).T) / np.linalg.norm(inputs @ weight.T)


def damped_inputs(inputs, damping):
    """Return X with rows added so that its second moment gains `damping` times the mean of its diagonal."""
    inputs = np.asarray(inputs, np.float64)
    extra = np.sqrt(damping * np.mean(np.sum(inputs**2, axis=0)))
    return np.concatenate([inputs, extra * np.eye(inputs.shape[1])])
