"""`vlbeit predict RUN "a red circle" --images DIR` and `vlbeit predict RUN picture.jpg --texts FILE`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlbeit.data.records import open_named
from vlbeit.data.sources.base import check_pictures
from vlbeit.errors import DataError, UsageError

_COLUMNS = 5  # of a contact sheet
Rows = Sequence[tuple[Any, ...]]


def search_pictures(path: str, text: str, folder: Path, *, top: int = 5, out: Path | None = None) -> Rows:
    """The pictures below a folder that suit a text, best first; with `out` a contact sheet of them.

    Raises, before the run is read, UsageError for an empty text and DataError for a folder without pictures; UsageError
    for a task that does not search.
    """
    check_pictures(folder)
    if not text.strip():
        raise UsageError("the text is empty: say what is to be found")
    rows = _searcher(path, out).pictures(text, folder, top=top)
    if out is not None:
        found = [(f"{rank}. {Path(row[0]).name}", row) for rank, row in enumerate(rows, 1)]
        _draw(out, text, [(open_named(Path(row[0])), [title, *_numbers(row)]) for title, row in found])
    return rows


def search_texts(path: str, picture: Path, file: Path, *, top: int = 5, out: Path | None = None) -> Rows:
    """The texts of a file that suit a picture, best first; with `out` the picture with them under it.

    The file has a text a line, or is a JSON list. Raises DataError, before the run is read, for a picture or a file
    that cannot be read or has no text; UsageError for a task that does not search.
    """
    image, texts = open_named(picture), _texts(file)
    rows = _searcher(path, out, picture, file).texts(image, texts, top=top)
    if out is not None:
        _draw(out, picture.name, [(image, _ranked(rows))])
    return rows


def _searcher(path: str, out: Path | None, *inputs: Path) -> Any:
    """The predictor of a run that searches."""
    from vlbeit import inference
    from vlbeit.data import drawing

    if out is not None:
        drawing.check_picture_file(out)
        inference.check_out(out, *inputs)
    run = inference.Trained(path)
    task = inference.task_of(run, path)
    predictor = task.predictor(run.objective.to(inference.choose_device("auto")), run.meta)
    if not hasattr(predictor, "pictures"):
        raise UsageError(f"{path} is a run of task={run.config.task.name}, which searches nothing: task=retrieval does")
    return predictor


def _texts(file: Path) -> list[str]:
    try:
        raw = file.read_text(encoding="utf-8")
        values = json.loads(raw) if file.suffix == ".json" else raw.splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"--texts {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise DataError(f"--texts {file} is no JSON list of texts")
    texts = list(dict.fromkeys(value.strip() for value in values if value.strip()))
    if not texts:
        raise DataError(f"--texts {file} has no text in it: a line each, or a JSON list")
    return texts


def _ranked(rows: Rows) -> list[str]:
    return [f"{rank}. {row[0]} ({', '.join(_numbers(row))})" for rank, row in enumerate(rows, 1)]


def _numbers(row: tuple[Any, ...]) -> list[str]:
    """What a row says of its first value."""
    names = getattr(row, "_fields", [""] * len(row))
    return [f"{name} {value:.3f}" for name, value in zip(names[1:], row[1:], strict=True)]


def _draw(out: Path, title: str, found: Sequence[tuple[Any, Sequence[str]]]) -> None:
    from vlbeit.data import drawing
    from vlbeit.data.figure import Cell, Line, figure, sized

    cells = [Cell(sized(image, most=256), tuple(map(Line, lines))) for image, lines in found]
    drawing.write_picture(out, figure(cells, min(_COLUMNS, len(cells)), [Line(title)]))
