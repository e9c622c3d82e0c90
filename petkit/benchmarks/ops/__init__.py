"""One file per op: what it is compared with, and the goal."""
