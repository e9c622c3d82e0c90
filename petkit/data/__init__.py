"""Examples: images, text and chat, as lists of records and as tensors."""
