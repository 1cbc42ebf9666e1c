"""Being asked to stop: Ctrl-C, SIGTERM, and the signals of a scheduler before it takes the machine away.

The first signal is noted. What may be broken off (waiting for data, an evaluation, the start) ends there and then, a
step is finished, and the state is saved. Ctrl-C once more quits at once; further signals of a scheduler change nothing,
since `torchrun` and `srun` may both hand on the same one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token
from types import FrameType, TracebackType
from typing import Any

import torch

from vlbeit import dist

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
NOTICE = "\nstopping after this step; {}\n"
ONE_CTRL_C = 1.0  # seconds: under torchrun a process gets it from the terminal and from torchrun


class Stopped(BaseException):
    """Raised by a signal in what may be broken off; no Exception, so that nobody takes it for a bad sample."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {signal.Signals(number).name}")
        self.number = number


class StopRequest:
    """While entered, the first of `SIGNALS` is noted in `number` instead of ending the process."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.finishes = False  # whether what `broken_off_together` may break off is finished all the same
        self._breaks = False
        self._when = 0.0
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}
        self._token: Token[StopRequest | None] | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        self._token = _listening.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._token is not None:
            _listening.reset(self._token)

    @contextmanager
    def breaking_off(self, breaks: bool = True) -> Iterator[None]:
        """Whether a signal, one noted before included, raises `Stopped` inside."""
        before = self._breaks
        try:
            self._breaks = breaks
            if breaks and self.number is not None:
                raise Stopped(self.number)
            yield
        finally:
            self._breaks = before

    def agreed(self, device: torch.device) -> bool:
        """Whether any process was asked to stop: the same answer on all of them. `device`: of the process group."""
        if dist.world_size() == 1:
            return self.number is not None
        return dist.sum_over_ranks(torch.tensor(float(self.number is not None), device=device)).item() > 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked loader worker: it ends when the main process says so
        if self.number is not None:
            again = dist.world_size() == 1 or time.monotonic() - self._when > ONE_CTRL_C
            if number == signal.SIGINT and again:
                raise KeyboardInterrupt
            return
        self.number, self._when = number, time.monotonic()
        if self._breaks:
            raise Stopped(number)
        told = "Ctrl-C once more to quit at once" if number == signal.SIGINT else signal.Signals(number).name
        os.write(2, NOTICE.format(told).encode())  # print is not safe inside a handler


_listening: ContextVar[StopRequest | None] = ContextVar("listening", default=None)


def current() -> StopRequest | None:
    """The request that is listened for now; None where signals have their usual effect."""
    return _listening.get()


@contextmanager
def listening() -> Iterator[StopRequest]:
    """The current request, or one for the length of the `with`."""
    found = current()
    if found is not None:
        yield found
        return
    with StopRequest() as request:
        yield request


@contextmanager
def broken_off_together(device: torch.device) -> Iterator[None]:
    """Work without exchange between processes, such as batches to evaluate, that a signal to any of them breaks off.

    A process that got it waits at the end for the others, and `Stopped` is raised on all. `device`: of the process
    group. Without a current request nothing is broken off.
    """
    stop = current()
    if stop is None or stop.finishes:
        yield
        return
    with suppress(Stopped), stop.breaking_off():
        yield
    if stop.agreed(device):
        raise Stopped(stop.number or signal.SIGTERM)
