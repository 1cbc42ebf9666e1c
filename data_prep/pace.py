"""When the next request may go out: so many a second in all and to each host, hosts that ask to wait, tries put off."""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from typing import Generic, TypeVar

Task = TypeVar("Task")
_FEW = 1000


class _Host(Generic[Task]):
    """The tasks of one host: new ones in their order, and others that wait for a time."""

    def __init__(self) -> None:
        self.new: deque[Task] = deque()
        self.later: list[tuple[float, int, Task]] = []  # heap

    def __bool__(self) -> bool:
        return bool(self.new or self.later)

    @property
    def due(self) -> float:
        """When the first of its tasks may go out."""
        return 0.0 if self.new else self.later[0][0]

    def take(self, now: float) -> Task:
        """A task that has waited for its time goes before new ones."""
        if self.later and (self.later[0][0] <= now or not self.new):
            return heapq.heappop(self.later)[2]
        return self.new.popleft()


class Pace(Generic[Task]):
    """Tasks by host, each given out when its host and all hosts together may be asked again.

    The clock is the caller's: `now` in seconds, never smaller than before.
    """

    def __init__(self, per_second: float, per_host: float) -> None:
        """Requests a second; 0: as many as there are."""
        self._gap, self._host_gap = (1 / rate if rate else 0.0 for rate in (per_second, per_host))
        self._free_at = 0.0  # for all hosts
        self._host_free_at: dict[str, float] = {}  # of hosts that may not be asked at once
        self._many = _FEW  # hosts in there, and those whose time has come are forgotten
        self._hosts: dict[str, _Host[Task]] = {}  # those that have tasks
        self._queue: list[tuple[float, int, str]] = []  # heap: when each of them may be asked, about
        self._order = count()

    def put(self, task: Task, host: str, not_before: float = 0.0) -> None:
        """Take in a task; `not_before` is for one that is tried again."""
        tasks = self._hosts.setdefault(host, _Host())
        if not_before:
            heapq.heappush(tasks.later, (not_before, next(self._order), task))
        else:
            tasks.new.append(task)
        self._announce(host)

    def delay(self, host: str, until: float) -> None:
        """Ask this host for nothing before that time."""
        self._host_free_at[host] = max(until, self._host_free_at.get(host, 0.0))

    def next(self, now: float) -> Task | float:
        """The task that may go out now; else how many seconds until one may (infinity where there is none)."""
        while self._queue:
            at, _, host = self._queue[0]
            if host not in self._hosts:  # nothing is left of it
                heapq.heappop(self._queue)
            elif (due := self._due(host)) > at:  # asked or put off since
                heapq.heapreplace(self._queue, (due, next(self._order), host))
            elif (wait := max(at, self._free_at) - now) > 0:
                return wait
            else:
                heapq.heappop(self._queue)
                return self._take(host, now)
        return float("inf")

    def _take(self, host: str, now: float) -> Task:
        task = self._hosts[host].take(now)
        self._free_at = max(self._free_at, now - self._gap) + self._gap
        self._host_free_at[host] = now + self._host_gap
        self._forget(now)
        if self._hosts[host]:
            self._announce(host)
        else:
            del self._hosts[host]
        return task

    def _forget(self, now: float) -> None:
        """Once the hosts have doubled, so that a list of millions of them costs neither memory nor time."""
        if len(self._host_free_at) >= self._many:
            self._host_free_at = {host: at for host, at in self._host_free_at.items() if at > now}
            self._many = max(_FEW, 2 * len(self._host_free_at))

    def _due(self, host: str) -> float:
        return max(self._hosts[host].due, self._host_free_at.get(host, 0.0))

    def _announce(self, host: str) -> None:
        heapq.heappush(self._queue, (self._due(host), next(self._order), host))
