"""What a scene is: a few things with shape, colour, size and place; how scenes are made up; how their things relate.

All lengths are shares of the picture's side, x to the right and y down, so a scene fits every picture size.
"""

from __future__ import annotations

import zlib
from random import Random
from typing import NamedTuple

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SIZES = ("small", "large")
RADIUS = {"small": 4.5 / 48, "large": 7 / 48}
MOST_THINGS = 4
CELLS = 3  # things stand near the middles of CELLS x CELLS cells, one a cell
JITTER = 1 / 48  # large things of neighbouring cells still do not touch
CLEAR = 8 / 48  # a difference of centres that nobody would argue about
DIRECTIONS = ("left of", "right of", "above", "below")


class Thing(NamedTuple):
    """One object of a scene."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    turn: float = 0.0  # rotation in radians
    shade: float = 1.0  # brightness of its colour

    @property
    def radius(self) -> float:
        """Radius of the circle around it."""
        return RADIUS[self.size]


class Scene(NamedTuple):
    """A picture before it is drawn; things in no particular order."""

    things: tuple[Thing, ...]
    ground: int  # seed of the textured ground

    def signature(self) -> tuple[tuple[str, str, str, int, int], ...]:
        """Equal for scenes of the same things in the same cells."""
        return tuple(sorted((t.shape, t.color, t.size, int(t.y * CELLS), int(t.x * CELLS)) for t in self.things))

    def bucket(self) -> int:
        """0 to 9 by its signature; the parts of the data take different buckets, so no scene is in two of them."""
        return zlib.crc32(repr(self.signature()).encode()) % 10


def make_scene(rng: Random) -> Scene:
    """One to four things, each near the middle of a cell of its own."""
    count = rng.choices(range(1, MOST_THINGS + 1), weights=(3, 3, 3, 3))[0]
    # Attributes come from a short list, so that some scenes repeat a colour or a shape and counts above 1 occur.
    shapes = rng.sample(SHAPES, rng.randint(1, len(SHAPES)))
    colors = rng.sample(COLORS, rng.randint(1, len(COLORS)))
    things = []
    for cell in rng.sample(range(CELLS * CELLS), count):
        row, column = divmod(cell, CELLS)
        x, y = ((c + 0.5) / CELLS + rng.uniform(-JITTER, JITTER) for c in (column, row))
        look = rng.choice(shapes), rng.choice(colors), rng.choice(SIZES)
        things.append(Thing(*look, x, y, rng.uniform(-0.12, 0.12), rng.uniform(0.92, 1.04)))
    return Scene(tuple(things), rng.getrandbits(32))


def stands(first: Thing, direction: str, second: Thing) -> bool | None:
    """Whether `first` is `direction` (one of DIRECTIONS) the second thing; None where people could argue."""
    offset = second.x - first.x if direction in ("left of", "right of") else second.y - first.y
    if abs(offset) < CLEAR:
        return None
    return (offset > 0) == (direction in ("left of", "above"))


def names(thing: Thing, scene: Scene, hidden: str = "") -> list[str]:
    """Names ("circle", "red object") that fit no other thing, short ones first; `hidden` attributes are left unsaid."""
    if len(scene.things) == 1:
        return ["object"]
    found = []
    for attributes in (("shape",), ("color",), ("color", "shape")):
        if hidden in attributes:
            continue
        if all(any(getattr(t, a) != getattr(thing, a) for a in attributes) for t in scene.things if t is not thing):
            found.append(noun(**{a: getattr(thing, a) for a in attributes}))
    return found


def noun(shape: str = "object", color: str = "", size: str = "", *, plural: bool = False) -> str:
    """Such as "large red circle", "objects"."""
    word = shape if not plural else shape + ("es" if shape.endswith("s") else "s")
    return " ".join(part for part in (size, color, word) if part)


def article(words: str) -> str:
    """The words with "a" or "an" in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
