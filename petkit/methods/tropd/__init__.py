"""Trust-region on-policy distillation and its baselines."""
