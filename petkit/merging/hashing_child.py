"""SHA-256 of open files, all at one pace: `python hashing_child.py LEAD FD SIZE FD SIZE ...`.

A program of its own, so that neither process waits for the other's interpreter lock. It reads, a line each,
the share of the merge that is done, and stays at most LEAD bytes ahead of it; it prints a JSON list: digests
in the order of the files, null for a file that became shorter. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import sys

# Small enough for the second-level cache, between reading and hashing.
BLOCK = 1 << 20


def main(arguments: list[str]) -> None:
    """Hash and print."""
    lead = int(arguments[0])
    numbers = [int(one) for one in arguments[1:]]
    files, sizes = numbers[::2], numbers[1::2]
    digests = [hashlib.sha256() for _ in files]
    places = [0] * len(files)
    merged = 0.0
    buffer = bytearray(BLOCK)
    # The least read first, by its share, so that all files end together.
    while rest := [i for i, size in enumerate(sizes) if places[i] < size]:
        one = min(rest, key=lambda i: places[i] / sizes[i])
        while sum(places) > merged * sum(sizes) + lead or select.select([0], [], [], 0)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            merged = float(line)
        count = os.preadv(files[one], [buffer], places[one])
        if count == 0:
            break
        digests[one].update(memoryview(buffer)[:count])
        places[one] += count
    found = zip(digests, places, sizes, strict=True)
    whole = [digest.hexdigest() if place == size else None for digest, place, size in found]
    print(json.dumps(whole))


if __name__ == "__main__":
    main(sys.argv[1:])
