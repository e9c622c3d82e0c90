"""Data sets small enough to live inside the package, and the scripts that made them."""
