"""Routers whose decision is known."""

from petkit.methods.edrm.config import ThresholdConfig


def thresholds_for(mode):
    """Thresholds under which every question of the tiny model gets this mode."""
    values = {
        "direct": {"cumulative": 0.0},
        "standard": {"cumulative": 1e9, "spearman": 1.0},
        "cot": {"cumulative": 1e9, "spearman": 0.0, "von_neumann": 1e9},
    }
    return ThresholdConfig(**values[mode])
