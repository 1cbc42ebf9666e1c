"""The run folder: where everything of a run lies, and how it stays whole whatever happens while it is written.

    RUN/  config.yaml  environment.json  metrics.jsonl  evaluation.json  last.json  checkpoint/  state/step-000120/
          batch0.png  profile/  trackers/

A state folder is written under a temporary name, flushed to disk and renamed; only then does `last.json` name it.
So `last.json` always names a whole state, and what it does not name counts for nothing. `.lock` is held while a
process trains there.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml
from safetensors import SafetensorError

from vlbeit.errors import DataError
from vlbeit.files import write_json, write_text

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

KEPT_STATES = 2
# in what torch's writer says: of a write, of the check of where it stands, of closing, of a folder that is gone
_OF_WRITING = ("PytorchStreamWriter", "inline_container", "unexpected pos", "iostream error", "Parent directory")
# what `vlbeit.evaluation_file` writes, and the estimate of a submission that is made of it
_RESULTS = ("evaluation.json", "evaluation-*.json", "*_details.json", "*_details-*.json", "estimate.json")
TEMPORARY = ".tmp-"  # prefix of what is being written or removed; also that of vlbeit.files


class RunFolder:
    """One run on disk. Only the main process writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.environment_file = self.path / "environment.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.evaluation_file = self.path / "evaluation.json"
        self.last_file = self.path / "last.json"
        self.batch_file = self.path / "batch0.png"
        self.checkpoint = self.path / "checkpoint"
        self.states = self.path / "state"
        self.profile = self.path / "profile"
        self.trackers = self.path / "trackers"
        self.lock_file = self.path / ".lock"

    def exists(self) -> bool:
        """Whether a run was ever started here."""
        return self.config_file.exists() or self.last_file.exists()

    def stored_config(self) -> dict[str, Any] | None:
        """The config that the run was started with; None where nothing was."""
        if not self.config_file.exists():
            return None
        try:
            config = yaml.safe_load(self.config_file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError) as error:
            raise DataError(
                f"{self.config_file} is not YAML ({_first_line(error)}): restore it, or overwrite=true"
            ) from error
        if not isinstance(config, dict) or not all(isinstance(config.get(g) or {}, dict) for g in ("stage", "task")):
            raise DataError(f"{self.config_file} holds no config: restore it, or overwrite=true")
        return config

    def stored_split(self) -> tuple[int, int]:
        """How many processes trained here last, and their `micro_batch_size`; (0, 0) where that is not known."""
        try:
            stored = json.loads(self.environment_file.read_text())
            return int(stored["processes"]), int(stored["micro_batch_size"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0

    def planned_steps(self) -> int | None:
        """Steps that the run was to make, as its config says."""
        steps = (self.stored_config() or {}).get("steps")
        return steps if isinstance(steps, int) else None

    def write_config(self, config: dict[str, Any]) -> None:
        """Keep the resolved config."""
        with write_errors(self.config_file):
            write_text(self.config_file, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def last_step(self) -> int | None:
        """Step of the last saved state; None where none was saved."""
        if not self.last_file.exists():
            return None
        try:
            return int(json.loads(self.last_file.read_text())["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{self.last_file} is damaged: write {{"step": N}} for a folder of {self.states}'
            ) from error

    def last_state(self) -> Path | None:
        """Folder of the last saved state; None where none was saved."""
        step = self.last_step()
        if step is None:
            return None
        folder = self.state_of(step)
        if not folder.is_dir():
            raise DataError(f"{self.last_file} names {folder}, which is missing: restore it, or overwrite=true")
        return folder

    def say_intact(self) -> str:
        """What a run that was broken off can go on from, and how."""
        try:
            state = self.last_state()
        except DataError as error:
            return str(error)
        left = "no state was saved yet" if state is None else f"{state} is intact"
        return f"{left}: run the same command again"

    def is_finished(self, steps: int) -> bool:
        """Whether the run has made at least `steps` steps and those it was to make, the last of them is evaluated, and
        weights were given to users."""
        step = self.last_step()
        if step is None or step < max(steps, self.planned_steps() or 0):
            return False
        return not self._owes_evaluation() and self.is_exported()

    def is_exported(self) -> bool:
        """Whether weights for users lie in `checkpoint/`, besides what of it is there from the start."""
        return any(file.suffix != ".json" for file in self.checkpoint.glob("[!.]*"))

    def pay_evaluation(self) -> None:
        """The evaluation after the last state, which that state owes, is made and written."""
        step = self.last_step()
        if step is not None:
            with write_errors(self.last_file):
                self._name_last(step, owes_evaluation=False)

    def is_paid(self) -> bool:
        """Whether the last state is evaluated, be it that it was made up and the state does not know of it."""
        return self._owes_evaluation() is False

    def _owes_evaluation(self) -> bool | None:
        """None where `last.json` does not say."""
        return json.loads(self.last_file.read_text()).get("owes_evaluation")

    def _name_last(self, step: int, *, owes_evaluation: bool | None) -> None:
        owed = {} if owes_evaluation is None else {"owes_evaluation": owes_evaluation}
        write_json(self.last_file, {"step": step, "state": self.state_of(step).name, **owed})

    def state_of(self, step: int) -> Path:
        return self.states / f"step-{step:06d}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """`locked` for a process that trains here."""
        try:
            with write_errors(self.path):  # a full disk
                self.path.mkdir(parents=True, exist_ok=True)
        except DataError as error:
            if isinstance(error.__cause__, FileNotFoundError | PermissionError):  # a place as /proc
                reason = error.__cause__.strerror
                raise DataError(f"run={self.path} cannot be made here ({reason}); choose another run=") from error
            raise
        with locked(self.lock_file, "trains there; wait for it, or choose another run="):
            yield

    def save_state(self, step: int, write: Callable[[Path], None], *, owes_evaluation: bool | None = None) -> None:
        """Let `write` fill a new state folder, put it in place whole, then name it in `last.json`.

        Raises DataError where writing fails (a full disk, say); the states saved before stay as they are.
        """
        temporary = self.begin_state(step)
        with write_errors(self.state_of(step)):
            try:
                write(temporary)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        self.finish_state(step, owes_evaluation=owes_evaluation)

    def begin_state(self, step: int) -> Path:
        """A new folder for the files of a state, which counts for nothing before `finish_state`."""
        temporary = self.unfinished(step)
        with write_errors(self.state_of(step)):
            self.states.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
        return temporary

    def finish_state(self, step: int, *, owes_evaluation: bool | None = None) -> None:
        """Put the state that was begun in place whole, name it in `last.json`, and remove what is older than needed."""
        final, temporary = self.state_of(step), self.unfinished(step)
        with write_errors(final):
            try:
                _flush_tree(temporary)
                _discard(final)  # whole, but never named by last.json: a run was killed right here
                temporary.rename(final)
                _flush_folder(self.states)
            except BaseException:
                self.abandon_state(step)
                raise
            self._name_last(step, owes_evaluation=owes_evaluation)
            _flush_folder(self.path)
        for old in self._state_folders()[:-KEPT_STATES]:
            _discard(old)

    def abandon_state(self, step: int) -> None:
        """Remove what was begun."""
        shutil.rmtree(self.unfinished(step), ignore_errors=True)

    def unfinished(self, step: int) -> Path:
        """Where a state lies while it is written."""
        return self.states / f"{TEMPORARY}{self.state_of(step).name}"

    def clean(self) -> None:
        """Make the folder; remove what a killed run left: temporary files, states unknown to `last.json`."""
        last = self.last_step()
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self.states, self.checkpoint):
                for leftover in folder.glob(f"{TEMPORARY}*"):
                    _remove(leftover)
            for folder in self._state_folders():
                if last is None or _step_of(folder) > last:
                    _discard(folder)

    def cut_metrics(self, step: int, *, owes_evaluation: bool = False) -> None:
        """Drop what the resumed run writes again: lines after `step`, a torn last line, and the evaluation after
        `step` where it is owed."""
        if not self.metrics_file.exists():
            return
        kept = []
        for line in self.metrics_file.read_text().splitlines(keepends=True):
            try:
                record = json.loads(line)
                again = record["step"] > step or (owes_evaluation and record["step"] == step and "evaluation" in record)
                if line.endswith("\n") and not again:
                    kept.append(line)
            except ValueError:
                continue  # torn by a kill
        with write_errors(self.metrics_file):
            write_text(self.metrics_file, "".join(kept))

    def fill_from(self, other: RunFolder) -> None:
        """Take over the full state of another run: last state, metrics, checkpoint, evaluation, environment."""
        state, step = other.last_state(), other.last_step()
        if state is None or step is None:
            raise DataError(f"resume={other.path}: no saved state there; name a run folder that has last.json")
        self.clean()  # of an earlier try that was killed
        with write_errors(self.path):
            for name in (self.metrics_file.name, self.evaluation_file.name, self.environment_file.name):
                if (other.path / name).exists():
                    shutil.copy2(other.path / name, self.path / name)
            if other.checkpoint.exists():
                shutil.copytree(other.checkpoint, self.checkpoint, dirs_exist_ok=True)
        self.save_state(step, lambda folder: _copy_files(state, folder), owes_evaluation=other._owes_evaluation())

    def clear(self) -> None:
        """Remove the run, and nothing else that may lie in its folder."""
        self.last_file.unlink(missing_ok=True)
        settings = self.environment_file, self.config_file
        found = (file for pattern in _RESULTS for file in self.path.glob(pattern))
        for file in (self.metrics_file, self.batch_file, *found, *settings):
            file.unlink(missing_ok=True)
        for folder in (self.states, self.checkpoint, self.profile, self.trackers):
            shutil.rmtree(folder, ignore_errors=True)

    def _state_folders(self) -> list[Path]:
        """All whole states, oldest first."""
        folders = [f for f in self.states.glob("step-*") if f.name.removeprefix("step-").isdecimal()]
        return sorted(folders, key=_step_of)


def _step_of(state: Path) -> int:
    return int(state.name.removeprefix("step-"))


@contextmanager
def locked(lock_file: Path, doing: str) -> Iterator[None]:
    """Hold the folder of a lock file for this process; DataError, at once, where another one has it and is `doing`.

    The lock ends with its process, however that ends, and is not inherited by the loader's workers.
    """
    with write_errors(lock_file.parent):
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock_file, "a+")  # noqa: SIM115
    with file:
        free = _lock(file)
        if free is False:
            file.seek(0)
            raise DataError(f"{lock_file.parent} is in use: process {_holder(file.read().split())} {doing}")
        if free is None:
            log.warning("%s: this file system has no locks: nothing keeps two runs apart there", lock_file.parent)
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()
        yield


def _holder(words: list[str]) -> str:
    """`4242`, of another machine `4242 of its-name`, from what it wrote into the lock file."""
    pid, *host = words or ["?"]
    return f"{pid} of {host[0]}" if host and host[0] != socket.gethostname() else pid


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn a failed write into one line that names the place and the remedy."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch and safetensors wrap or lose the OSError of a full disk
        causes = list(_causes(error))
        if isinstance(error, RuntimeError) and not any(map(_is_of_writing, causes)):
            raise
        full = any(getattr(c, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(c) for c in causes)
        root = next((c for c in reversed(causes) if isinstance(c, OSError)), error)
        reason = "the disk is full: free space" if full else f"{_first_line(root)}: mend this"
        raise DataError(
            f"cannot write {path}: {reason} and run the same command again; what was saved before is intact"
        ) from error


def _is_of_writing(error: BaseException) -> bool:
    words = str(error)
    return isinstance(error, (OSError, SafetensorError)) or any(sign in words for sign in _OF_WRITING)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _lock(file: TextIO) -> bool | None:
    """Whether this process has the file now; None where the file system, or Windows, knows no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: flock would go on in forked workers
    except OSError as error:
        return False if error.errno in (errno.EACCES, errno.EAGAIN) else None
    return True


def _flush_tree(folder: Path) -> None:
    for file in folder.iterdir():
        if file.is_dir():
            _flush_tree(file)
            continue
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _discard(folder: Path) -> None:
    """Remove a state folder so that a kill in between leaves no half of it under its name."""
    if folder.exists():
        doomed = folder.with_name(f"{TEMPORARY}old-{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _copy_files(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
