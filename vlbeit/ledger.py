"""The ledger of submissions: what was answered, with which weights, and what became of it. No torch.

    RUN/submissions/ID/  submission.json  answers.json  parts/  receipt.json

`parts/` holds the answers while they are made and goes when `answers.json` is whole. ID are the first 8 hex digits of
a hash over all that the answers hang on, so that other weights, questions or keys never meet in one folder. An answer
file of another program has its place in `submissions/` beside it, under the first 8 digits of its own hash.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlbeit import files
from vlbeit.errors import DataError, UsageError

FOLDER = "submissions"
_DIGITS = 8


class Submission:
    """One folder of the ledger. `facts` is its submission.json, {} where nothing is written yet."""

    def __init__(self, folder: str | Path, facts: Mapping[str, Any] | None = None) -> None:
        """Raises DataError where submission.json is damaged. `facts`: what to take in its place while there is none."""
        self.folder = Path(folder)
        self.id = self.folder.name
        self.answers_file = self.folder / "answers.json"
        self.facts_file = self.folder / "submission.json"
        self.receipt_file = self.folder / "receipt.json"
        self.parts = self.folder / "parts"
        self.facts: dict[str, Any] = _read(self.facts_file) or dict(facts or {})

    @property
    def sha256(self) -> str | None:
        """Hash of the answer file; None until it is whole."""
        return self.facts.get("sha256")

    @property
    def is_finished(self) -> bool:
        """Whether the answer file was written whole."""
        return self.sha256 is not None

    @property
    def file(self) -> Path:
        """The answer file: the ledger's own, or where that of another program lies."""
        return self.answers_file if self.answers_file.exists() else Path(self.facts.get("file", self.answers_file))

    def write(self, **facts: Any) -> None:
        """Add to submission.json, or replace what it says; `id` and `created` stand in it from the first time."""
        created = datetime.now(UTC).isoformat(timespec="microseconds")
        self.facts = {"id": self.id, "created": created, **self.facts, **facts}
        files.write_json(self.facts_file, self.facts, indent=1)


def identity_hash(identity: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, the same in whatever order their keys stand."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def open_submission(run: str | Path, identity: Mapping[str, Any]) -> Submission:
    """The submission of a run folder with this identity: what its answers hang on, as JSON values. Writes nothing.

    Raises DataError where the folder that it would have belongs to another identity, or is damaged.
    """
    whole = identity_hash(identity)
    submission = Submission(Path(run) / FOLDER / whole[:_DIGITS])
    if submission.facts.get("identity", whole) != whole:
        raise DataError(f"{submission.folder} is of other answers, by chance of the same name: move it away")
    return submission


def submissions_of(folder: str | Path) -> list[Submission]:
    """The submissions of a run, or beside an answer file, the newest first. DataError where one is damaged."""
    return _newest_first(map(Submission, _folders(Path(folder))))


def nearby(folder: Path = Path()) -> Iterator[Submission]:
    """Those beside a folder's files, of the runs that lie there, then of the runs here; a damaged one is left out, with
    a line on stderr."""
    for place in _places(folder):
        found = []
        for each in _folders(place):
            try:
                found.append(Submission(each))
            except DataError as error:
                print(f"note: left out: {error}", file=sys.stderr)
        yield from _newest_first(found)


def find(what: str | Path) -> Submission:
    """The submission of an answer file, of a run (its newest finished one), or with an id; also its folder by path.

    An answer file is known by its content, wherever it was copied to: in its own folder, in `submissions/` beside it,
    in those of the runs there, in `runs/*/submissions/` and one folder deeper. One that is in no ledger gets a place
    beside it, not yet written. A run is looked for by path, then in `runs/`.
    Raises UsageError where there is none, DataError where a file cannot be read.
    """
    run = _run(what)
    return _one(what) if run is None else _newest(run)


def find_all(what: str | Path) -> list[Submission]:
    """As `find`, but all submissions of a run, the newest first."""
    run = _run(what)
    return [_one(what)] if run is None else submissions_of(run) or [_newest(run)]


def read_receipt(submission: Submission) -> dict[str, Any] | None:
    """What became of the submission, as written last; None where it was never sent. DataError for a damaged file."""
    return _read(submission.receipt_file)


def write_receipt(submission: Submission, receipt: Mapping[str, Any]) -> Path:
    """Replace the receipt by these JSON values, whole or not at all; a new place in the ledger is written first."""
    if not submission.facts_file.exists():
        submission.write()
    return files.write_json(submission.receipt_file, dict(receipt), indent=1)


def _of_file(path: Path) -> Submission:
    sha256 = files.sha256(path)
    own = [Submission(path.parent)] if (path.parent / "submission.json").is_file() else []
    for submission in (*own, *nearby(path.parent)):
        if submission.sha256 == sha256:
            return submission
    facts = {"sha256": sha256, "file": str(path.absolute())}
    return Submission(path.parent / FOLDER / sha256[:_DIGITS], facts)


def _run(what: str | Path) -> Path | None:
    """The folder of the run that is meant; None for a file, a submission's folder and what is not there."""
    path = Path(what).expanduser()
    for each in (path, Path("runs") / path):
        if each.exists():
            return each if each.is_dir() and not (each / "submission.json").is_file() else None
    return None


def _one(what: str | Path) -> Submission:
    path = Path(what).expanduser()
    if path.is_file():
        return _of_file(path)
    if (path / "submission.json").is_file():
        return Submission(path)
    for place in _places(Path()):
        for folder in _folders(place):
            if folder.name == str(what):
                return Submission(folder)
    raise UsageError(
        f"{what}: no answer file, no run and no id of a submission in runs/*/{FOLDER}: look at the spelling; "
        f"{_remedy('RUN')}"
    )


def _places(folder: Path) -> Iterator[Path]:
    """Where submissions may lie: `folder`, what is in it, and the runs here, also one folder deeper."""
    runs = Path("runs")
    yield from dict.fromkeys([folder, *sorted(folder.glob("*")), *sorted(runs.glob("*")), *sorted(runs.glob("*/*"))])


def _folders(place: Path) -> list[Path]:
    return sorted(path.parent for path in place.glob(f"{FOLDER}/*/submission.json"))


def _newest_first(found: Iterable[Submission]) -> list[Submission]:
    return sorted(found, key=lambda each: (each.facts.get("created", ""), each.id), reverse=True)


def _newest(run: Path) -> Submission:
    found = submissions_of(run)
    if not found:
        raise UsageError(f"{run} has no submissions; {_remedy(str(run))}")
    finished = [each for each in found if each.is_finished]
    if not finished:
        raise UsageError(f"{found[0].folder} is not finished: the command that began it goes on where it stopped")
    return finished[0]


def _remedy(run: str) -> str:
    return f"`vlbeit submit {run} --split test2015` answers the questions of the test"


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): restore it, or move its folder away") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object: restore it, or move its folder away")
    return value
