"""How far a download is: rows done, why rows failed, rate and ETA, a line now and then."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from .progress import Report
from .tar_shards import SUCCESS

_EVERY = 10.0  # seconds between two lines


class Tally:
    """Counts the rows of one split by what became of them."""

    def __init__(self, what: str, total: int, report: Report) -> None:
        self.what, self.total, self.report = what, total, report
        self.reasons: Counter[str] = Counter()  # SUCCESS among them
        self._before = 0
        self._started = self._said = time.monotonic()

    @property
    def done(self) -> int:
        """Rows of which it is known what became of them."""
        return sum(self.reasons.values())

    def found(self, reasons: Mapping[str, int]) -> None:
        """Rows that an earlier run has done."""
        self.reasons.update(reasons)
        self._before += sum(reasons.values())

    def add(self, reason: str) -> None:
        """One more row."""
        self.reasons[reason] += 1
        if time.monotonic() - self._said >= _EVERY:
            self._said = time.monotonic()
            self.report(self.line())

    def line(self) -> str:
        """`train: 1,200 of 3,318,333 rows, 88.1 % pictures, 97/s, ETA 9:30:00; HTTP 404 6.0 %, timed out 3.1 %`."""
        rate = (self.done - self._before) / max(time.monotonic() - self._started, 1e-3)
        rest = int((self.total - self.done) / max(rate, 1e-3))
        eta = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
        return f"{self.what}: {self.done:,} of {self.total:,} rows, {self.shares()}, {rate:.0f}/s, ETA {eta}"

    def shares(self, most: int = 3) -> str:
        """The share of pictures and of the most frequent failures."""
        count = max(self.done, 1)
        failed = [item for item in self.reasons.most_common() if item[0] != SUCCESS]
        parts = [f"{reason} {100 * number / count:.1f} %" for reason, number in failed[:most]]
        told = f" ({', '.join(parts)})" if parts else ""
        return f"{100 * self.reasons[SUCCESS] / count:.1f} % pictures{told}"
