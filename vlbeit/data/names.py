"""Which names were there already, of millions, in about 20 bytes each."""

from __future__ import annotations

import hashlib

import numpy as np

_FEW = 2**14  # hashes that wait in a set until they are sorted in


class Names:
    """A set of names, kept as hashes of 8 bytes: of 14 million, two share one with a chance of 5 in a million."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._waiting: set[int] = set()

    def add(self, name: str) -> bool:
        """Take in a name; returns whether it is new."""
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
        place = int(np.searchsorted(self._sorted, np.uint64(key)))
        if key in self._waiting or (place < len(self._sorted) and int(self._sorted[place]) == key):
            return False
        self._waiting.add(key)
        if len(self._waiting) >= max(_FEW, len(self._sorted) // 8):
            new = np.fromiter(self._waiting, np.uint64, len(self._waiting))
            self._sorted = np.sort(np.concatenate((self._sorted, new)))
            self._waiting.clear()
        return True
