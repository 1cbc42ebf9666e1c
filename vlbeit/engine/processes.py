"""Processes that end together: where one dies, fails or falls silent, the others end too, with one line that says who.

While a run trains, a thread of every process looks after the others through the store that joined them:
- a process that fails writes its last words there before it goes;
- processes of one machine look whether the others are still alive;
- across machines the main process looks for the heartbeats of all, and all for that of the main process.
Whoever then waits in an exchange is told by gloo at once. NCCL may not tell: the thread ends its process after a grace.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path
from typing import Any

import torch

from vlbeit import dist
from vlbeit.errors import DataError, Interrupted, UserError

SILENCE = 60.0  # seconds without a heartbeat after which a process of another machine counts as gone
GRACE = 10.0  # seconds that a process gets to end by itself when another is gone
PATIENCE = 5.0  # seconds that a failing process waits until the others have heard
_LOST = ("gloo", "NCCL", "ProcessGroup", "TCPStore", "Connection closed by peer", "Connection reset by peer")


@contextmanager
def together(intact: Callable[[], str]) -> Iterator[None]:
    """Run the body on all processes so that it ends on all of them; `intact` says what of the run is left.

    Raises DataError where another process is lost, with its name and last words. An error that all processes have met,
    or another has told already, has `quiet` set: one line is enough.
    """
    if dist.world_size() == 1:
        yield
        return
    watch = _Watch(intact)
    watch.start()
    try:
        with dist.watched(lambda: watch.lost):
            yield
    except Interrupted as error:
        error.quiet = not watch.claims(str(error))
        if error.agreed:
            watch.await_all()
        else:
            watch.tell(str(error))
        raise
    except BaseException as error:
        if is_lost(error):
            line = watch.obituary()
            lost = DataError(line)
            lost.quiet = not watch.claims("lost")
            watch.await_all()
            raise lost from error
        words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {_first_line(error)}"
        if isinstance(error, UserError):
            error.quiet = not watch.claims(words)
        watch.tell(words)
        raise
    finally:
        watch.stop()


def is_lost(error: BaseException | None) -> bool:
    """Whether an error, or what is behind it, says that an exchange with another process has failed."""
    while error is not None:
        if isinstance(error, (dist.Lost, torch.distributed.DistError)):  # the second of NCCL, and of the store
            return True
        if isinstance(error, RuntimeError) and any(mark in str(error) for mark in _LOST):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Watch:
    """The thread of this process, and what it knows of the others."""

    def __init__(self, intact: Callable[[], str]) -> None:
        self.rank, self.world, self.intact = dist.rank(), dist.world_size(), intact
        self.store = _own_store()
        self.lost = ""  # who is gone and why, once it is known
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._beats: dict[int, tuple[bytes, float]] = {}  # rank -> last heartbeat, when it was new
        self._own = {"host": socket.gethostname(), "space": _space(), "pid": os.getpid()}
        self.store.set(f"who/{self.rank}", json.dumps(self._own))
        self.store.set(f"beat/{self.rank}", "0")
        self._others: dict[int, dict[str, Any]] = {}

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """This process leaves well, or has told why not."""
        self._stopped.set()
        with contextlib.suppress(RuntimeError):
            self.store.set(f"left/{self.rank}", "yes")

    def tell(self, words: str) -> None:
        """Leave last words, and wait for the others."""
        with contextlib.suppress(RuntimeError):  # the store has gone with the main process
            self.store.set(f"words/{self.rank}", words)
            self.store.set("failed", str(self.rank))
        self.await_all()

    def await_all(self) -> None:
        """Say that this process has said what it claims; the main one waits for all: the store goes with it."""
        try:
            heard = self.store.add("heard", 1)
            end = time.monotonic() + PATIENCE
            while self.rank == 0 and heard < self.world and time.monotonic() < end:
                time.sleep(0.05)
                heard = self.store.add("heard", 0)
        except RuntimeError:
            return  # the store has gone with the main process

    def claims(self, words: str) -> bool:
        """Whether this process is the first to say them; True where that cannot be known."""
        try:
            return self.store.add(f"said/{sha1(words.encode()).hexdigest()}", 1) == 1
        except RuntimeError:
            return True

    def obituary(self) -> str:
        """Who is gone, its last words, what is intact: waits a little until that is known."""
        end, before = time.monotonic() + PATIENCE, self._all_beats()
        while not self.lost and time.monotonic() < end:
            with contextlib.suppress(RuntimeError):
                self.lost = self._find()
            time.sleep(0.1)
        if not self.lost:
            now = self._all_beats()
            silent = [self._name(rank) for rank in now if rank != self.rank and now[rank] == before.get(rank)]
            who = ", ".join(silent) or "a process that has not ended"
            self.lost = f"{who} does not answer (engine.timeout= is how long it is waited for)"
        return f"{self.lost}; {self.intact()}"

    def _all_beats(self) -> dict[int, bytes]:
        """The heartbeats of all; {} where the store is not to be reached."""
        with contextlib.suppress(RuntimeError):
            return {rank: self.store.get(f"beat/{rank}") for rank in range(self.world)}
        return {}

    def _run(self) -> None:
        number, unreachable = 0, 0
        while not self._stopped.wait(1.0):
            number += 1
            try:
                self.store.set(f"beat/{self.rank}", str(number))
                self.lost = self.lost or self._find()
                unreachable = 0
            except RuntimeError:
                unreachable += 1
                if unreachable > 2:
                    self.lost = "process 0, which all others are joined by, has ended without a word"
            if self.lost:
                break
        if self.lost and not self._stopped.wait(GRACE):  # stuck in an exchange that nobody will answer
            if self.claims("lost"):
                sys.stderr.write(f"error: {self.lost}; {self.intact()}\n")
                sys.stderr.flush()
            os._exit(1)

    def _find(self) -> str:
        """Who is gone, or ''."""
        if self.store.check(["failed"]):
            rank = int(self.store.get("failed"))
            if rank != self.rank:
                return f"{self._name(rank)} has stopped: {self.store.get(f'words/{rank}').decode()}"
        for rank in range(self.world):
            if rank != self.rank and self._is_gone(rank) and not self.store.check([f"left/{rank}"]):
                return f"{self._name(rank)} has ended without a word: killed, or out of memory"
        return ""

    def _is_gone(self, rank: int) -> bool:
        other = self._other(rank)
        if other is None:
            return False
        if (other["host"], other["space"]) == (self._own["host"], self._own["space"]):
            return not _is_alive(other["pid"])
        return 0 in (rank, self.rank) and self._is_silent(rank)

    def _is_silent(self, rank: int) -> bool:
        beat, now = self.store.get(f"beat/{rank}"), time.monotonic()
        last, since = self._beats.get(rank, (None, now))
        if beat != last:
            self._beats[rank] = (beat, now)
            return False
        return now - since > SILENCE

    def _other(self, rank: int) -> dict[str, Any] | None:
        if rank not in self._others and self.store.check([f"who/{rank}"]):
            self._others[rank] = json.loads(self.store.get(f"who/{rank}"))
        return self._others.get(rank)

    def _name(self, rank: int) -> str:
        other = self._other(rank)
        where = f" ({other['host']}, pid {other['pid']})" if other else ""
        return f"process {rank} of {self.world}{where}"


def _own_store() -> Any:
    """The store that joined the processes, over a connection of its own: the main thread's may be waiting."""
    store = torch.distributed.distributed_c10d._get_default_store()
    if hasattr(store, "clone"):
        store = store.clone()
    turn = dist.broadcast_object(time.time_ns())  # of the runs of one process group each has its own words
    return torch.distributed.PrefixStore(f"vlbeit-{turn}", store)


def _space() -> str:
    """What must be equal for process ids to mean the same; '' outside Linux."""
    try:
        return os.readlink("/proc/self/ns/pid") + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_alive(pid: int) -> bool:
    """A process that has ended and that nobody has asked after yet does not live."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
