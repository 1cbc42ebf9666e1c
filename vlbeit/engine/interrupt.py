"""Ctrl-C and SIGTERM: the current step is finished and saved; a second signal quits at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch

from vlbeit import dist

NOTICE = b"\nstopping after this step and its evaluation; once more to quit at once\n"


class StopRequest:
    """While entered, the first SIGINT or SIGTERM only sets a flag."""

    def __init__(self) -> None:
        self._requested = False
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, device: torch.device) -> bool:
        """Whether any process was asked to stop: the same answer on all of them. `device`: of the process group."""
        if dist.world_size() == 1:
            return self._requested
        return dist.sum_over_ranks(torch.tensor(float(self._requested), device=device)).item() > 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked loader worker: it lives on until the main process has finished its step
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        os.write(2, NOTICE)  # print is not safe inside a handler
