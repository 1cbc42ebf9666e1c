"""Left and right: what a flipped picture makes of a question and its answers.

A heuristic over words. "Right" also means correct ("is this the right way?"): such a question counts as one of sides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SIDE = re.compile(r"\b(left|right)(?=(?:most|wards?|handed|hand)?\b)", re.IGNORECASE)


def speaks_of_sides(text: str) -> bool:
    """Whether left or right occurs, alone or as in "leftmost", "right-hand" and "leftward"."""
    return _SIDE.search(text) is not None


def swapped(text: str) -> str:
    """The text with left and right exchanged; case is kept."""
    return _SIDE.sub(lambda found: _other(found[1]), text)


def mirrored(answers: Sequence[str]) -> list[int | None]:
    """Of every answer the place of what it becomes in a mirror; None where that is no answer."""
    place = {answer: index for index, answer in enumerate(answers)}
    return [place.get(swapped(answer)) for answer in place]


def _other(side: str) -> str:
    other = "right" if side.lower() == "left" else "left"
    return other.upper() if side.isupper() else other.capitalize() if side[0].isupper() else other
