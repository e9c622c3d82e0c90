"""One file for each method of merging; `registry.py` lists them."""
