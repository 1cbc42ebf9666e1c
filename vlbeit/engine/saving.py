"""Saving a run's state: whole or in parts, at once or while training goes on.

Whatever the way, `last.json` names a state only when all of it is on disk; until then the one before counts.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch

from vlbeit import dist
from vlbeit.engine.checkpoint import Snapshot, Trained, snapshot_deepspeed, snapshot_shards, snapshot_whole
from vlbeit.engine.folder import RunFolder, write_errors
from vlbeit.engine.state import TrainingState
from vlbeit.errors import DataError


class Saver:
    """Writes states into a run folder. Every method is called by all processes at the same step.

    Args:
        sharded: every process writes its own parts; else the main process writes whole tensors.
        in_background: `save` returns when the state is copied to the CPU; it is written by a thread. At most one state
            is under way: the next `save` waits for it.
        timeout: seconds that a process waits for the parts of the others.
    """

    def __init__(self, folder: RunFolder, *, sharded: bool, in_background: bool, timeout: float = 600.0) -> None:
        self.folder, self.sharded = folder, sharded
        self._thread = ThreadPoolExecutor(1, "saving") if in_background else None
        self._pending: Future[None] | None = None
        # what processes agree on while they train must not mix with what they agree on about files
        own = in_background and sharded and dist.world_size() > 1
        self._group: Any = (
            torch.distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if own else None
        )

    def save(self, trained: Trained, state: TrainingState) -> None:
        """Save the state after `state.step` steps; DataError on all processes where one cannot, or could not before."""
        self.finish()
        keep = self._thread is not None
        snapshot: Snapshot
        if trained.deepspeed is not None:
            snapshot, keep = snapshot_deepspeed(trained, state), False
            dist.on_main(lambda: self.folder.begin_state(state.step))
        elif self.sharded:
            snapshot = snapshot_shards(trained, state, keep=keep, group=self._group)
            dist.on_main(lambda: self.folder.begin_state(state.step))
        else:
            snapshot = snapshot_whole(trained, state, keep=keep)
        if not keep:
            self._agree(self._attempt(snapshot, state))
        else:
            self._pending = self._thread.submit(self._write, snapshot, state.step, state.owes_evaluation)

    def finish(self) -> None:
        """Wait until what is under way is on disk; DataError on all processes where it could not be written."""
        if self._thread is None:
            return
        failed: Exception | None = None
        if self._pending is not None:
            pending, self._pending = self._pending, None
            failed = pending.exception()  # type: ignore[assignment]
        self._agree(failed)

    def close(self) -> None:
        """End the thread, after what it has under way; nothing is agreed, for not all may have come here."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)

    def _attempt(self, snapshot: Snapshot, state: TrainingState) -> Exception | None:
        try:
            self._write(snapshot, state.step, state.owes_evaluation)
        except DataError as error:
            return error
        return None

    def _write(self, snapshot: Snapshot, step: int, owes_evaluation: bool) -> None:
        """The part of this process; on the main one, when all have written, the state gets its name."""
        if not snapshot.by_all:
            if dist.is_main():
                self.folder.save_state(step, snapshot.write, owes_evaluation=owes_evaluation)
            return
        try:
            with write_errors(self.folder.state_of(step)):
                snapshot.write(self.folder.unfinished(step))
        except BaseException:
            if dist.is_main():
                self.folder.abandon_state(step)
            raise
        if dist.is_main():
            self.folder.finish_state(step, owes_evaluation=owes_evaluation)

    def _agree(self, failed: Exception | None) -> None:
        """Raise on all processes what the first of them met."""
        if dist.world_size() == 1:
            if failed is not None:
                raise failed
            return
        dist.wait_for_main()  # it may write longer than an exchange may take
        lines = [line for line in dist.gather_objects(None if failed is None else str(failed)) if line]
        if failed is not None and not isinstance(failed, DataError):
            raise failed
        if lines:
            raise DataError(lines[0])
