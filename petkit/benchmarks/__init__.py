"""Speed and memory of petkit against its peers, measured in one process."""
