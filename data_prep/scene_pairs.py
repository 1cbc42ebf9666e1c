"""Statements about two scenes, true or false, in the layout of NLVR2: with the same words true of two pairs of a set.

A set is four pairs of scenes and two statements, each of which is true of exactly two of the pairs: whoever reads the
words alone is right half of the time, whatever the words are.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from .scene_captions import NUMBERS
from .scene_world import COLORS, DIRECTIONS, SHAPES, Scene, article, noun, stands

PAIRS = 4  # of a set
STATEMENTS = 2
Pair = tuple[Scene, Scene]  # left, right
Words = dict[str, str]  # attribute -> value: what a thing must be


class Statement(NamedTuple):
    """A sentence about a pair of pictures."""

    text: str
    holds: Callable[[Scene, Scene], bool]


class PairSet(NamedTuple):
    """Four pairs, and two statements with what they are of each pair."""

    pairs: list[Pair]
    texts: list[str]
    labels: list[list[bool]]  # of each statement: by pair


def make_set(scenes: Callable[[], Scene], rng: Random) -> PairSet:
    """A set of scenes as `scenes()` gives them, anew until two different statements divide its pairs evenly."""
    while True:
        pairs = [(scenes(), scenes()) for _ in range(PAIRS)]
        texts: dict[str, list[bool]] = {}
        for _ in range(60):
            statement = rng.choice(_KINDS)(rng)
            labels = [statement.holds(*pair) for pair in pairs]
            if 2 * sum(labels) == PAIRS:
                texts.setdefault(statement.text, labels)
            if len(texts) == STATEMENTS:
                return PairSet(pairs, list(texts), list(texts.values()))


def _number(scene: Scene, words: Words) -> int:
    return sum(all(getattr(thing, name) == value for name, value in words.items()) for thing in scene.things)


def _words(rng: Random) -> Words:
    """Of what is spoken: mostly a colour or a shape, which are there in about every second picture."""
    chosen = rng.choices((("shape",), ("color",), ("color", "shape")), weights=(5, 4, 1))[0]
    values = {"shape": SHAPES, "color": COLORS}
    return {name: rng.choice(values[name]) for name in chosen}


def _one(words: Words) -> str:
    return article(noun(**words))


def _both(rng: Random) -> Statement:
    words = _words(rng)
    text = rng.choice(("both pictures show {}.", "there is {} in each picture.", "each picture contains {}."))
    return Statement(text.format(_one(words)), lambda a, b: min(_number(a, words), _number(b, words)) > 0)


def _either(rng: Random) -> Statement:
    words = _words(rng)
    text = rng.choice(("at least one picture shows {}.", "one picture or the other contains {}."))
    return Statement(text.format(_one(words)), lambda a, b: _number(a, words) + _number(b, words) > 0)


def _only_one(rng: Random) -> Statement:
    words = _words(rng)
    text = rng.choice(("exactly one of the pictures shows {}.", "{} is in only one of the two pictures."))
    return Statement(text.format(_one(words)), lambda a, b: (_number(a, words) > 0) != (_number(b, words) > 0))


def _neither(rng: Random) -> Statement:
    words = _words(rng)
    return Statement(f"neither picture shows {_one(words)}.", lambda a, b: _number(a, words) + _number(b, words) == 0)


def _total(rng: Random) -> Statement:
    words, count = rng.choice(({}, _words(rng))), rng.choice((1, 2, 2, 3, 4))
    verb = "is" if count == 1 else "are"
    exact = rng.random() < 0.5
    text = (
        f"there {verb} {'exactly' if exact else 'at least'} {NUMBERS[count]} {noun(**words, plural=count != 1)} in all."
    )

    def holds(left: Scene, right: Scene) -> bool:
        found = _number(left, words) + _number(right, words)
        return found == count if exact else found >= count

    return Statement(text, holds)


def _more(rng: Random) -> Statement:
    words, left_first = rng.choice(({}, _words(rng))), rng.random() < 0.5
    first, second = ("left", "right") if left_first else ("right", "left")
    text = f"there are more {noun(**words, plural=True)} in the {first} picture than in the {second} one."

    def holds(left: Scene, right: Scene) -> bool:
        more, fewer = (left, right) if left_first else (right, left)
        return _number(more, words) > _number(fewer, words)

    return Statement(text, holds)


def _as_many(rng: Random) -> Statement:
    words = rng.choice(({}, _words(rng)))
    text = f"both pictures have the same number of {noun(**words, plural=True)}."
    return Statement(text, lambda a, b: _number(a, words) == _number(b, words))


def _sides(rng: Random) -> Statement:
    one, other = _words(rng), _words(rng)
    text = f"the left picture shows {_one(one)} and the right one {_one(other)}."
    return Statement(text, lambda a, b: _number(a, one) > 0 and _number(b, other) > 0)


def _placed(rng: Random) -> Statement:
    """A thing beside another in one of the pictures; where people could argue it does not stand so."""
    side, direction = rng.randrange(2), rng.choice(DIRECTIONS)
    first, second = {"shape": rng.choice(SHAPES)}, {"color": rng.choice(COLORS)}
    place = f"to the {direction}" if direction.endswith("of") else direction
    text = f"in the {('left', 'right')[side]} picture {_one(first)} is {place} {_one(second)}."

    def holds(*pair: Scene) -> bool:
        things = pair[side].things
        return any(
            bool(stands(a, direction, b))
            for a in things
            for b in things
            if a is not b and a.shape == first["shape"] and b.color == second["color"]
        )

    return Statement(text, holds)


_KINDS = (  # most are about what is there, which is learned before numbers and places
    *(_both, _both, _both, _either, _either, _neither, _neither, _only_one),
    *(_total, _more, _as_many, _sides, _placed),
)
