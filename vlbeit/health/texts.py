"""Captions and documents: without a word, cut off, the same one again and again, in two splits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from vlbeit.errors import some

from .findings import Finding, found
from .parts import Part, Texts
from .progress import Say
from .questions import bare, pieces

_MOSTLY = 0.1  # share of a split's texts from which on one and the same is a fault
_WIDE = 80  # letters of a text in a message
_SHORT = 5  # words: two documents of fewer may be the same by chance


class Surveyed(NamedTuple):
    """What one reading of the texts of a split told. Arrays have a value for each text."""

    split: str
    texts: Texts
    words: np.ndarray  # and marks
    prints: np.ndarray  # equal for texts of the same words
    absent: np.ndarray  # whether there is no text at all, as training has it

    def table(self) -> dict[str, Any]:
        """The numbers of a report."""
        lengths = self.words
        return {
            "texts": len(lengths),
            "distinct_texts": len(np.unique(self.prints)),
            "text_words": {"mean": round(float(lengths.mean()), 2), "p99": int(np.percentile(lengths, 99)),
                           "max": int(lengths.max())},
        }  # fmt: skip


def survey(parts: Sequence[Part], say: Say) -> list[Surveyed]:
    """Those of the parts that have texts, each read once in its order."""
    return [_read(part.name, part.texts, say) for part in parts if part.texts is not None and len(part.texts.texts)]


def check_texts(surveyed: Surveyed, max_length: int, *, few: bool) -> Iterator[Finding]:
    """Findings on a split; `max_length` is `text.max_length`, of which captions longer than it lose their end.

    `few`: whether training survives what is broken, these texts included.
    """
    split, texts, words, prints, none = surveyed
    absent = _ids(texts, np.flatnonzero(none))
    what = "samples without a caption" if texts.captions else "samples without a text"
    yield from found("no-text", split, absent, f"{what}: {some(absent)}", mild=few)
    empty = _ids(texts, np.flatnonzero((prints == 0) & ~none))
    yield from found("empty-text", split, empty, f"texts without a word: {some(empty)}")
    if texts.captions:
        long = _ids(texts, np.flatnonzero(words > max_length - 2))
        text = f"captions of more than text.max_length={max_length} tokens, [CLS] and [SEP] included: {some(long)}"
        yield from found("long-caption", split, long, text)
    kinds, counts = np.unique(prints[prints != 0], return_counts=True)
    if len(kinds) and counts.max() > max(1, _MOSTLY * len(prints)):
        rows = np.flatnonzero(prints == kinds[counts.argmax()])
        same, example = _ids(texts, rows), texts.texts[int(rows[0])][:_WIDE]
        yield from found("mostly-one-text", split, same, f"{len(same):,} of {len(prints):,} texts are {example!r}")


def check_texts_between(surveyed: Sequence[Surveyed]) -> Iterator[Finding]:
    """Documents that two splits have; short captions are the same by chance, and not looked at."""
    for one, other in combinations([each for each in surveyed if not each.texts.captions], 2):
        both = np.isin(other.prints, one.prints) & (other.words > _SHORT)
        ids = _ids(other.texts, np.flatnonzero(both))
        text = f"texts of both: {some(ids)}"
        yield from found("same-text-in-two-splits", f"{one.split}, {other.split}", ids, text)


def _read(split: str, texts: Texts, say: Say) -> Surveyed:
    say(f"{split}: reading {len(texts.texts):,} texts")
    words, prints = np.zeros(len(texts.texts), np.int32), np.zeros(len(texts.texts), np.int64)
    absent = np.zeros(len(texts.texts), bool)
    for row, text in enumerate(texts.texts):
        words[row], prints[row] = pieces(text), hash(bare(text))  # that of no word is 0
        absent[row] = not text.strip()
    return Surveyed(split, texts, words, prints, absent)


def _ids(texts: Texts, rows: np.ndarray) -> list[int | str]:
    return [texts.ids[row] for row in rows.tolist()]
