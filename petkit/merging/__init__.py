"""State dicts to a state dict, streamed: methods of merging, and the folders that they read and write."""
