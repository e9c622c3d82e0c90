"""petkit: parameter-efficient tuning from packed bits. Importing this package does not import torch."""

__version__ = "0.1.0"
