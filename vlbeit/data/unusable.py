"""Samples that could not be used: named, counted by reason, and bounded."""

from __future__ import annotations

import logging
from collections import Counter
from hashlib import blake2b

from vlbeit import dist
from vlbeit.errors import DataError

log = logging.getLogger(__name__)

Bad = tuple[str, str, str]  # sample id, reason (a few words, to count by), what is wrong with it in a line
_NAMED = 20  # samples of a reason that are named one by one; after them every doubling of their number is told


class BadSamples:
    """Counts the distinct unusable samples that one process meets, and stops beyond the allowed share.

    Of a sample eight bytes are kept, not its name: a stream may have a million of them.
    """

    def __init__(self, max_fraction: float, records: int) -> None:
        self._max_fraction, self._records = max_fraction, records
        self._seen: set[int] = set()
        self._last: list[str] = []
        self.reasons: Counter[str] = Counter()

    def add(self, bad: list[Bad]) -> None:
        """Log new ones. Raises `DataError` beyond the share."""
        for sample_id, reason, message in bad:
            number = int.from_bytes(blake2b(sample_id.encode(), digest_size=8).digest())
            if number not in self._seen:
                self._seen.add(number)
                self._last = [*self._last[-2:], f"{sample_id}: {message}"]
                self.reasons[reason] += 1
                self._tell(sample_id, reason, message)
        if len(self._seen) > self._max_fraction * self._records:
            raise DataError(
                f"{len(self._seen)} of {self._records} samples cannot be used ({_listed(self.reasons)}), more than "
                f"data.max_bad_fraction={self._max_fraction} ({'; '.join(self._last)}); "
                "restore or correct them, or raise the fraction"
            )

    def summary(self) -> str:
        """`unusable samples were replaced: 12 no caption, 3 unreadable picture`, of all processes; "" for none.

        Every process must call it. A sample counts once for each process that met it.
        """
        counts: Counter[str] = Counter()
        for each in dist.gather_objects(dict(self.reasons)):
            counts.update(each)
        return f"unusable samples were replaced: {_listed(counts)}" if counts else ""

    def _tell(self, sample_id: str, reason: str, message: str) -> None:
        count = self.reasons[reason]
        if count <= _NAMED:
            log.warning("unusable sample %s: %s", sample_id, message)
        elif count & (count - 1) == 0:
            log.warning("%d samples so far: %s; the last one: %s", count, reason, message)


def _listed(reasons: Counter[str]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
