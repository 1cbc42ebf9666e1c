"""The answer file of the VQA v2 server: one JSON array of {"question_id": int, "answer": str}.

The server compares the set of question ids with its own and rejects the whole file on any difference; of two answers
to a question it silently takes the last. So everything is checked before and after writing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from vlbeit.errors import DataError
from vlbeit.files import write_text

SHOWN = 5  # ids that an error message names


def write_answers(path: str | Path, predictions: Mapping[int, str], question_ids: Collection[int]) -> int:
    """Write one answer for every question, sorted by id, whole or not at all; read it back; return how many.

    Raises DataError, with nothing overwritten, if a question is unanswered, asked twice, or an answer is foreign.
    """
    path = Path(path)
    entries = [{"question_id": key, "answer": answer} for key, answer in sorted(predictions.items(), key=_by_id)]
    _check_questions(question_ids, "the question file")
    check_entries(entries, question_ids, str(path))
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")) + "\n"
    write_text(path, text)
    return check_answers(path, question_ids)


def check_answers(path: str | Path, questions: str | Path | Collection[int]) -> int:
    """Check an answer file against an official question file (or its ids); return the number of answers.

    Raises DataError naming the file and the ids at fault.
    """
    if isinstance(questions, str | Path):
        questions = read_question_ids(questions)
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such answer file; vlbeit submit writes one") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a UTF-8 JSON file ({error}); write it again with vlbeit submit") from error
    check_entries(entries, questions, str(path))
    return len(entries)


def read_question_ids(path: str | Path) -> list[int]:
    """Ids of an official question file, in its order. Raises DataError naming the file and what is wrong with it."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        ids = [question["question_id"] for question in content["questions"]]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such question file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a UTF-8 JSON file ({error}); fetch the question file again") from error
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a VQA question file: expected {{'questions': [{{'question_id': ...}}, ...]}}"
        ) from error
    _check_questions(ids, str(path))
    return ids


def check_entries(entries: Any, question_ids: Collection[int], where: str) -> None:
    """Raise DataError unless the entries are a list with exactly one well-formed answer for every question."""
    if not isinstance(entries, list):
        raise DataError(f"{where}: must be one JSON array, not {type(entries).__name__}")
    for place, entry in enumerate(entries):
        _check_entry(entry, f"{where}: entry {place}")
    ids = [entry["question_id"] for entry in entries]
    asked, answered = set(question_ids), set(ids)
    for problem, wrong in (
        ("answered twice", [key for key, count in Counter(ids).items() if count > 1]),
        ("without an answer", asked - answered),
        ("that the question file does not have", answered - asked),
    ):
        if wrong:
            raise DataError(f"{where}: {_named(wrong)} {problem}; answer every question of the file exactly once")


def _check_entry(entry: Any, where: str) -> None:
    if not isinstance(entry, dict) or set(entry) != {"question_id", "answer"}:
        raise DataError(f"{where} must be an object of question_id and answer and nothing else: {entry!r:.80}")
    # bool is an int in Python, and `true` no question id
    if type(entry["question_id"]) is not int:
        raise DataError(f"{where}: question_id {entry['question_id']!r} must be an integer")
    if not isinstance(entry["answer"], str):
        raise DataError(f"{where}: the answer to question {entry['question_id']} must be a text")


def _check_questions(ids: Collection[Any], where: str) -> None:
    if not ids:
        raise DataError(f"{where}: holds no questions")
    odd = [key for key in ids if type(key) is not int]
    if odd:
        raise DataError(f"{where}: question ids must be integers, not {odd[0]!r}")
    twice = [key for key, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(f"{where}: {_named(twice)} asked twice; every question must have its own id")


def _named(ids: Iterable[int]) -> str:
    ordered = sorted(ids)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return f"question {', '.join(map(str, ordered[:SHOWN]))}{more}"


def _by_id(item: tuple[Any, str]) -> tuple[bool, Any]:
    return (type(item[0]) is not int, item[0] if type(item[0]) is int else str(item[0]))
