"""Distillation of image classifiers into low-bit adapters."""
