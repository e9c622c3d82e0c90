"""Backbones and the inserts that adapt them."""
