"""Answer files of any program: the official result list, JSON lines, sample logs of lmms-eval.

lmms-eval writes one line per sample (`--log_samples`): `doc` with the question, `filtered_resps` with what the model
said, a list or, since its pull request 1103, a text; before that one JSON object with the same rows under `logs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vlbeit.errors import DataError, some

_DIGITS = 19  # ids are numbers of 64 bits


class Predictions(NamedTuple):
    """Question id -> answer, and what kind of file they come from."""

    answers: dict[int, str]
    format: str
    repeated: int  # rows that say once more what another row said


def read_predictions(path: Path) -> Predictions:
    """The answers of a file.

    A row that repeats another one is counted; raises DataError, naming file, row and ids, where two rows answer a
    question differently, where a row is in no known form and where there is none.
    """
    answers: dict[int, str] = {}
    contradicted, repeated, kinds = [], 0, set()
    for place, row in _rows(path):
        key, answer, kind = _answer(row, place)
        kinds.add(kind)
        if key in answers:
            repeated += 1
            if answers[key] != answer:
                contradicted.append(key)
        answers[key] = answer
    if contradicted:
        raise DataError(f"{path}: questions answered twice, differently: {some(contradicted)}; keep one answer of each")
    if not answers:
        raise DataError(f"{path} holds no answers")
    return Predictions(answers, " and ".join(sorted(kinds)), repeated)


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a file with their places: items of a JSON list, or lines of JSON."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, byte {error.start}: not UTF-8; write it again") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name the file with the answers") from error
    try:
        whole = _parsed(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise DataError(f"{path}, line {error.lineno} column {error.colno}: not JSON ({error.msg})") from error
        yield from _lines(path, text)
        return
    except ValueError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if isinstance(whole, dict) and isinstance(whole.get("logs"), list):
        whole = whole["logs"]
    elif isinstance(whole, dict):
        whole = [whole]  # the only line of its file
    if not isinstance(whole, list):
        raise DataError(f"{path} must hold a JSON list of answers, not {type(whole).__name__}")
    yield from ((f"{path}: entry {place}", row) for place, row in enumerate(whole))


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split inside a JSON text
        if line.strip():
            try:
                yield f"{path}, line {number}", _parsed(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}, line {number} column {error.colno}: not JSON ({error.msg})") from error
            except ValueError as error:
                raise DataError(f"{path}, line {number} cannot be read: {error}") from error


def _parsed(text: str) -> Any:
    """JSON's value. ValueError also where it is nested without end."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _answer(row: Any, place: str) -> tuple[int, str, str]:
    """Question id, answer and the kind of row."""
    if isinstance(row, dict) and "filtered_resps" in row:
        kind, said = "lmms-eval samples", row["filtered_resps"]
        key = row["doc"].get("question_id") if isinstance(row.get("doc"), dict) else None
        while isinstance(said, list) and len(said) == 1:
            said = said[0]
    elif isinstance(row, dict):
        kind, said, key = "VQA answers", row.get("answer"), row.get("question_id")
    else:
        raise DataError(f"{place} is no object: {row!r:.60}; it must have question_id and answer")
    if isinstance(key, str) and key.isdecimal() and len(key) < _DIGITS:
        key = int(key)
    if type(key) is not int:  # bool is an int in Python, and `true` no question id
        raise DataError(f"{place}: question_id {key!r} must be a whole number")
    if not isinstance(said, str):
        raise DataError(f"{place}: the answer to question {key} must be one text, not {said!r:.60}")
    return key, said, kind
