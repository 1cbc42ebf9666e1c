"""Pictures with words under them, put together in a grid: figures that need no plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from vlbeit.data.drawing import Color

INK, PAPER, PALE = (20, 20, 20), (255, 255, 255), (120, 120, 120)
TEXT_SIZE = 13  # pixels
_LINE = TEXT_SIZE + 4
_GAP = 8  # between cells


class Line(NamedTuple):
    """A line of text; it is wrapped where it is too long. `mark`: the colour of a small square before it."""

    text: str
    mark: Color | None = None
    color: Color = INK


class Cell(NamedTuple):
    """A picture (None: none) and what stands under it."""

    picture: Image.Image | None
    lines: tuple[Line, ...] = ()


def sized(image: Image.Image, least: int = 192, most: int = 384) -> Image.Image:
    """The picture at a size that can be looked at: its pixels repeated a whole number of times, or reduced.

    The longer side becomes at least `least` pixels (a multiple of what it was), or at most `most`.
    """
    longest = max(image.size)
    if longest > most:
        shape = [max(1, round(side * most / longest)) for side in image.size]
        return image.resize(shape, Image.Resampling.LANCZOS)
    factor = -(-least // longest)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def beside(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one height in a row."""
    width = sum(image.width for image in images) + 2 * (len(images) - 1)
    row = Image.new("RGB", (width, max(image.height for image in images)), PAPER)
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + 2
    return row


def figure(cells: Sequence[Cell], columns: int, head: Sequence[Line] = (), width: int = 0) -> Image.Image:
    """Cells in rows of `columns`, each as wide as the widest picture (at least `width` pixels), `head` above them all.

    Raises ValueError where there is no cell.
    """
    if not cells:
        raise ValueError("a figure needs a cell")
    wide = max([width, *(cell.picture.width for cell in cells if cell.picture is not None)])
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    whole = _GAP + min(columns, len(cells)) * (wide + _GAP)
    title = [part for line in head for part in _wrapped(line, whole - 2 * _GAP)]
    texts = [[[part for line in cell.lines for part in _wrapped(line, wide)] for cell in row] for row in rows]
    heights = [_row_height(row, under) for row, under in zip(rows, texts, strict=True)]
    top = _GAP + len(title) * _LINE + (_GAP if title else 0)
    canvas = Image.new("RGB", (whole, top + sum(height + _GAP for height in heights)), PAPER)
    pen = ImageDraw.Draw(canvas)
    _write(pen, title, _GAP, _GAP)
    for row, under, height in zip(rows, texts, heights, strict=True):
        tallest = max((cell.picture.height for cell in row if cell.picture is not None), default=0)
        for column, (cell, lines) in enumerate(zip(row, under, strict=True)):
            left = _GAP + column * (wide + _GAP)
            if cell.picture is not None:
                canvas.paste(cell.picture, (left, top))
                edge = (left - 1, top - 1, left + cell.picture.width, top + cell.picture.height)
                pen.rectangle(edge, outline=PALE)  # around it: a white picture ends somewhere too
            _write(pen, lines, left, top + tallest + (3 if tallest else 0))
        top += height + _GAP
    return canvas


def _row_height(row: Sequence[Cell], texts: Sequence[Sequence[Line]]) -> int:
    tallest = max((cell.picture.height for cell in row if cell.picture is not None), default=0)
    return tallest + 3 + max(map(len, texts)) * _LINE


def _write(pen: ImageDraw.ImageDraw, lines: Sequence[Line], left: int, top: int) -> None:
    for number, (text, mark, color) in enumerate(lines):
        y = top + number * _LINE
        if mark is not None:
            pen.rectangle((left, y + 3, left + 9, y + 12), fill=mark, outline=INK)
        pen.text((left + (14 if mark is not None else 0), y), text, fill=color, font=_font())


def _wrapped(line: Line, width: int) -> list[Line]:
    """The line in pieces that are not wider than `width` pixels; only a word that is wider by itself is cut."""
    room = width - (14 if line.mark is not None else 0)
    pieces, piece = [], ""
    for word in " ".join(line.text.split()).split(" "):
        joined = f"{piece} {word}" if piece else word
        if _font().getlength(joined) <= room:
            piece = joined
            continue
        pieces += [piece] if piece else []
        while _font().getlength(word) > room and len(word) > 1:
            fits = next((n for n in range(len(word), 1, -1) if _font().getlength(word[:n]) <= room), 1)
            pieces.append(word[:fits])
            word = word[fits:]
        piece = word
    pieces.append(piece)
    return [line._replace(text=text, mark=line.mark if not n else None) for n, text in enumerate(pieces)]


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT_SIZE)
