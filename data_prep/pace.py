"""When the next request may go out: so many a second in all and to each host, hosts that ask to wait, tries put off."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Generic, TypeVar

Task = TypeVar("Task")


class Pace(Generic[Task]):
    """Tasks by host, each given out when its host and all hosts together may be asked again.

    The clock is the caller's: `now` in seconds, never smaller than before.
    """

    def __init__(self, per_second: float, per_host: float) -> None:
        """Requests a second; 0: as many as there are."""
        self._gap, self._host_gap = (1 / rate if rate else 0.0 for rate in (per_second, per_host))
        self._free_at = 0.0  # for all hosts
        self._host_free_at: dict[str, float] = {}
        self._tasks: dict[str, list[tuple[float, int, Task]]] = {}  # of each host a heap by time
        self._hosts: list[tuple[float, int, str]] = []  # heap: when the first task of a host may go out
        self._order = count()

    def __len__(self) -> int:
        return sum(map(len, self._tasks.values()))

    def put(self, task: Task, host: str, not_before: float = 0.0) -> None:
        """Take in a task."""
        waiting = self._tasks.setdefault(host, [])
        heapq.heappush(waiting, (not_before, next(self._order), task))
        if waiting[0][2] is task:  # the first of its host now; an entry for a later one does no harm
            self._announce(host)

    def delay(self, host: str, until: float) -> None:
        """Ask this host for nothing before that time."""
        self._host_free_at[host] = max(until, self._host_free_at.get(host, 0.0))

    def next(self, now: float) -> Task | float:
        """The task that may go out now; else how many seconds until one may (infinity where there is none)."""
        while self._hosts:
            at, _, host = self._hosts[0]
            waiting = self._tasks.get(host)
            due = max(waiting[0][0], self._host_free_at.get(host, 0.0)) if waiting else at
            if not waiting or due > at:  # done with, or put off since
                heapq.heappop(self._hosts)
                if waiting:
                    heapq.heappush(self._hosts, (due, next(self._order), host))
                continue
            if (wait := max(at, self._free_at) - now) > 0:
                return wait
            heapq.heappop(self._hosts)
            return self._take(host, now)
        return float("inf")

    def _take(self, host: str, now: float) -> Task:
        waiting = self._tasks[host]
        task = heapq.heappop(waiting)[2]
        self._free_at = max(self._free_at, now - self._gap) + self._gap
        self._host_free_at[host] = now + self._host_gap
        if waiting:
            self._announce(host)
        else:
            del self._tasks[host]
        return task

    def _announce(self, host: str) -> None:
        due = max(self._tasks[host][0][0], self._host_free_at.get(host, 0.0))
        heapq.heappush(self._hosts, (due, next(self._order), host))
