"""Trained tensors to packed tensors, with the error that it costs."""
