"""`vlbeit train --profile N`: a trace of a few steps by torch's profiler, below the run."""

from __future__ import annotations

import gzip
import logging
import re
import shutil
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from vlbeit import files
from vlbeit.engine.sinks import Sink

log = logging.getLogger(__name__)

SETTLING = 2  # steps before the trace: the first ones allocate memory and choose kernels
OPERATORS = 40  # rows of the table


class Profile(Sink):
    """Traces `steps` steps of the main process, once the first two are done; training goes on as ever.

    Writes RUN/profile/step-N.json.gz, for https://ui.perfetto.dev, and RUN/profile/step-N.txt, the operators that took
    longest. A run that ends earlier leaves what there is; where they cannot be written a line says so.
    """

    def __init__(self, folder: Path, start: int, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.first = start + SETTLING + 1
        self._traced = False
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()]
        self._torch = profile(
            activities=activities,
            schedule=schedule(wait=SETTLING - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
            profile_memory=True,
        )
        self._torch.start()

    def step(self, step: int) -> None:
        self._torch.step()

    def close(self) -> None:
        self._torch.stop()
        if not self._traced:
            log.warning("no profile: the run ended before step %d, the first that is traced", self.first)

    def _write(self, traced: profile) -> None:
        if self._traced:  # stopped in the step after the last one that was asked for
            return
        self._traced = True
        trace, table = (self.folder / f"step-{self.first:06d}.{suffix}" for suffix in ("json.gz", "txt"))
        by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        try:
            files.write_by(trace, lambda path: _compress_trace(traced, path))
            files.write_text(table, traced.key_averages().table(sort_by=by, row_limit=OPERATORS) + "\n")
        except (OSError, RuntimeError) as error:  # nobody trains for the profile
            log.warning("no profile: cannot write %s (%s); training goes on", self.folder, error)
            return
        log.info(
            "wrote %s and %s: open the first at https://ui.perfetto.dev, the second lists the slowest operators",
            trace,
            table,
        )


def _compress_trace(traced: profile, path: Path) -> None:
    """The trace as gzip; OSError where it cannot be written whole, which torch does not tell."""
    # beside it: a machine's folder for temporary files may be small
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=path.parent) as folder:
        plain = Path(folder) / "trace.json"
        traced.export_chrome_trace(str(plain))
        tail = b""
        if plain.exists():
            with open(plain, "rb") as source, gzip.open(path, "wb") as target:
                source.seek(max(0, plain.stat().st_size - 4096))
                tail = source.read()
                source.seek(0)
                shutil.copyfileobj(source, target)
    # the list of events ends, and the object that holds it; before its end stands the path as it is, brackets and all
    if not re.search(rb'\][^\[\]{}]*("traceName": ".*")?\s*\}\s*$', tail):
        raise OSError("torch has not written all of the trace: is the disk full?")


part = record_function
"""Names a part of a step in the trace."""
