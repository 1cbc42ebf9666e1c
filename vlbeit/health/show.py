"""A report in words: rows of its tables, lines of its findings, the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from .findings import KINDS
from .following import following
from .report import Report

_MOST = 12  # question types and answers that are shown; --json has all question types

_WIDE = 40  # letters of an answer or a type

Table = tuple[str, tuple[str, ...], list[tuple[Any, ...]]]


def tables(report: Report) -> Iterator[Table]:
    """Title, columns and rows of every table that has rows, as any terminal can print them."""
    for title, columns, rows in _tables(report):
        cells = [tuple(printable(str(value)) for value in row) for row in rows]
        yield title, tuple(map(printable, columns)), cells


def _tables(report: Report) -> Iterator[Table]:
    splits: dict[str, dict[str, Any]] = report.tables["splits"]
    yield _splits(splits)
    if sizes := [_size_row(name, facts["image_sizes"]) for name, facts in splits.items() if facts["pictures"]]:
        yield "pictures", ("split", "readable", "width", "height", "aspect", "formats"), sizes
    for field, title in (("answer_types", "answer types"), ("answers_per_question", "answers per question"),
                         ("question_types", "question types")):  # fmt: skip
        counted = {name: facts[field] for name, facts in splits.items() if facts.get(field)}
        if counted:
            yield _shares(title, counted)
    if answers := {name: facts["main_answers"] for name, facts in splits.items() if facts.get("main_answers")}:
        yield _most_frequent(answers, splits)
    yield from _learning(report.tables)


def printable(text: str) -> str:
    """The text in one line, what UTF-8 cannot hold written as escapes."""
    return " ".join(text.split()).encode(errors="backslashreplace").decode()


def findings(report: Report) -> Iterator[str]:
    """Two lines for each finding: what it is, and the remedy."""
    for finding in report.findings:
        yield printable(f"{finding.severity}: {finding.split}: {finding.message} [{finding.code}]")
        yield f"    {KINDS[finding.code].remedy}"


def verdict(report: Report) -> list[str]:
    """Whether training is safe, why not, and what to do next."""
    counts = {name: sum(each.severity == name for each in report.findings) for name in ("error", "warning", "note")}
    found = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items())
    following_line = f"next: {printable(following(report))}"
    if report.unsafe:
        codes = ", ".join(dict.fromkeys(finding.code for finding in report.unsafe))
        return [f"not safe to train on ({found}): {codes}", following_line]
    deeper = "" if report.wanted.thorough else "; with --thorough every picture is decoded"
    return [f"safe to train on ({found}; {report.seconds:.1f} s{deeper})", following_line]


def _splits(splits: dict[str, dict[str, Any]]) -> Table:
    """A column that no split fills is left out."""
    columns = {
        "questions": "questions", "pictures": "pictures", "unused_pictures": "not asked about", "annotations":
        "annotations", "answers": "answers", "distinct_answers": "distinct", "texts": "texts",
        "distinct_texts": "distinct",
    }  # fmt: skip
    kept = {key: title for key, title in columns.items() if any(facts.get(key) for facts in splits.values())}
    words = {name: facts.get("question_words") or facts.get("text_words") for name, facts in splits.items()}
    rows = []
    for name, facts in splits.items():
        cells = [f"{facts[key]:,}" if key in facts else "-" for key in kept]
        rows.append((name, *cells, *([(words[name] or {}).get("max", "-")] if any(words.values()) else [])))
    return "splits", ("split", *kept.values(), *(["words, max"] if any(words.values()) else [])), rows


def _size_row(name: str, sizes: dict[str, Any]) -> tuple[Any, ...]:
    if not sizes["readable"]:
        return (name, 0, "-", "-", "-", "-")
    sides = (f"{side['min']}-{side['max']}, median {side['median']}" for side in (sizes["width"], sizes["height"]))
    formats = ", ".join(f"{kind} {count:,}" for kind, count in sizes["formats"].items())
    return (name, f"{sizes['readable']:,}", *sides, "{min:g}-{max:g}".format(**sizes["aspect"]), formats)


def _shares(title: str, counted: dict[str, dict[str, int]]) -> Table:
    """How often a value is in each split, with its share; the most frequent of the first split."""
    keys = list(dict.fromkeys(key for counts in counted.values() for key in counts))
    rows = [
        (
            printable(key[:_WIDE]) or "(empty)",
            *(f"{counts.get(key, 0):,} ({_share(counts, key)})" for counts in counted.values()),
        )
        for key in keys[:_MOST]
    ]
    if len(keys) > _MOST:
        rows.append((f"{len(keys) - _MOST} more", *[""] * len(counted)))
    return title, (title, *counted), rows


def _most_frequent(answers: dict[str, dict[str, int]], splits: dict[str, dict[str, Any]]) -> Table:
    """Each split's own most frequent answers, side by side."""
    columns = [
        [f"{answer[:_WIDE]} {100 * count / splits[name]['annotations']:.1f} %" for answer, count in counts.items()]
        for name, counts in answers.items()
    ]
    return (
        "most frequent answers",
        ("", *answers),
        [(number, *row) for number, row in enumerate(zip_longest(*columns, fillvalue=""), 1)],
    )


def _share(counts: dict[str, int], key: str) -> str:
    return f"{100 * counts.get(key, 0) / sum(counts.values()):.1f} %"


def _learning(found: dict[str, Any]) -> Iterator[Table]:
    if vocabulary := found.get("vocabulary"):
        rows = [
            (name, facts["ceiling"], f"{facts['covered']:,} of {facts['questions']:,}",
             f"{facts['raw']:,}", f"{facts['normalized']:,}")
            for name, facts in vocabulary["splits"].items()
        ]  # fmt: skip
        title = f"vocabulary: {vocabulary['answers']:,} answers that stand for {vocabulary['min_count']} or more"
        yield title, ("split", "ceiling", "can score", "trained if raw", "if normalized"), rows
    if blind := found.get("blind"):
        names = [name for name in blind["question_only"] if name != "questions"]
        rows = [
            (label, *(blind[key][name] for name in names))
            for label, key in (("from the question", "question_only"), ("one answer", "majority"))
        ]
        yield f"blind baselines: {blind['train']} -> {blind['scored']}", ("guess", *names), rows
