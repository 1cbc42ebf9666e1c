"""Captions of a scene, and sentences of plain text about scenes that are never drawn."""

from __future__ import annotations

from random import Random

from .scene_questions import ask
from .scene_world import COLORS, DIRECTIONS, SHAPES, Scene, Thing, article, noun, stands

NUMBERS = ("no", "one", "two", "three", "four")


def captions(scene: Scene, rng: Random) -> list[str]:
    """Two captions: all things by size, colour and shape from left to right; the number and a relation or a place."""
    return [_listing(scene, rng), _relations(scene, rng)]


def sentences(scene: Scene, rng: Random) -> list[str]:
    """Sentences about one scene: captions, counts, what is not there, attributes, a question with its answer."""
    question = rng.choice(ask(scene, rng))
    asked = f"{question.text.rstrip('?')}? {question.answer}."
    return [*captions(scene, rng), _count(scene, rng), _fact(scene, rng), asked]


def _full(thing: Thing) -> str:
    return article(noun(thing.shape, thing.color, thing.size))


def _series(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _listing(scene: Scene, rng: Random) -> str:
    parts = _series([_full(t) for t in sorted(scene.things, key=lambda t: t.x)])
    return rng.choice(("", "a picture of ", "the picture shows ", "we see ")) + parts


def _relations(scene: Scene, rng: Random) -> str:
    number = f"{NUMBERS[len(scene.things)]} object{'s' if len(scene.things) > 1 else ''}"
    options = [
        (a, direction, b)
        for a in scene.things
        for b in scene.things
        if a is not b
        for direction in DIRECTIONS
        if stands(a, direction, b)
    ]
    if not options:  # a single thing, or things whose places cannot be told apart
        thing = rng.choice(scene.things)
        return f"{number}, {_full(thing)} {_place(thing)}"
    first, direction, second = rng.choice(options)
    words = f"to the {direction}" if direction.endswith("of") and rng.random() < 0.5 else direction
    rest = [_full(t) for t in scene.things if t is not first and t is not second]
    return f"{number}, {_full(first)} {words} {_full(second)}" + (f" with {_series(rest)}" if rest else "")


def _place(thing: Thing) -> str:
    row = "top" if thing.y < 0.4 else "bottom" if thing.y > 0.6 else ""
    column = "left" if thing.x < 0.4 else "right" if thing.x > 0.6 else ""
    if not row and not column:
        return "in the center"
    return f"at the {row} {column}".rstrip() if row else f"on the {column}"


def _count(scene: Scene, rng: Random) -> str:
    words = rng.choice(({"shape": rng.choice(SHAPES)}, {"color": rng.choice(COLORS)}))
    count = sum(all(getattr(t, a) == v for a, v in words.items()) for t in scene.things)
    verb = "is" if count == 1 else "are"
    return f"there {verb} {NUMBERS[count]} {noun(**words, plural=count != 1)} in the picture."


def _fact(scene: Scene, rng: Random) -> str:
    thing = rng.choice(scene.things)
    return rng.choice(
        (
            f"the {thing.color} {thing.shape} is {thing.size}.",
            f"the {thing.shape} {_place(thing)} is {thing.color}.",
            f"the {thing.size} {thing.color} object is {article(thing.shape)}.",
        )
    )
