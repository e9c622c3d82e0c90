"""The fit loop, checkpoints, metrics, seeds and distributed runs."""
