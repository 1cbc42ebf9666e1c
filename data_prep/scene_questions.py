"""Questions about a scene with their true answers: existence, checks, relations, counts, colour, shape, size, place.

The answers are balanced inside each kind, so that a guess from the question's words alone is wrong more often than not.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from .scene_world import CLEAR, COLORS, DIRECTIONS, SHAPES, SIZES, Scene, Thing, article, names, noun, stands

# The prefixes of mscoco_question_types.txt (VQA v2) that can occur here, longest first.
PREFIXES = (
    "what is the color of the", "what color is the", "is there a", "are there any", "how many", "what is the",
    "is there", "do you", "is the", "which", "what", "how",
)  # fmt: skip


class Question(NamedTuple):
    """One question with its true answer, in the words of the VQA v2 files."""

    text: str
    answer: str
    answer_type: str  # yes/no | number | other

    @property
    def question_type(self) -> str:
        """The official prefix that it begins with, else "none of the above"."""
        return next((p for p in PREFIXES if self.text.startswith(p + " ")), "none of the above")


Kind = Callable[[Scene, Random], Question | None]


def ask(scene: Scene, rng: Random) -> list[Question]:
    """Five or six different questions about the scene."""
    plan: list[tuple[Kind, ...]] = [
        (existence,),
        (check, relation) if rng.random() < 0.6 else (relation, check),
        (count_some,),
        *_others(rng),
        (count_all,) if rng.random() < 0.3 else (count_some,) if rng.random() < 0.3 else (),
    ]
    questions: dict[str, Question] = {}
    for kinds in plan:
        for kind in (*kinds, existence, existence) if kinds else ():  # the first that the scene allows
            question = kind(scene, rng)
            if question is not None and question.text not in questions:
                questions[question.text] = question
                break
    return list(questions.values())


def _others(rng: Random) -> list[tuple[Kind, ...]]:
    kinds = [color, shape, size, place, neighbour]
    first, second, third = rng.sample(kinds, 3, counts=(4, 4, 2, 2, 3))
    plan: list[tuple[Kind, ...]] = [(first, color, shape), (second, shape, color)]
    return [*plan, (third, size, place)] if rng.random() < 0.4 else plan


def existence(scene: Scene, rng: Random) -> Question:
    """Is there a red circle? Half of the answers are no; a near miss has the right colour and the right shape apart."""
    attributes = rng.choices((("color",), ("shape",), ("color", "shape")), weights=(3, 4, 3))[0]
    yes = rng.random() < 0.5
    there = {tuple(getattr(t, a) for a in attributes) for t in scene.things}
    values = {"color": COLORS, "shape": SHAPES}
    options: list[tuple[str, ...]] = [(c, s) for c in COLORS for s in SHAPES]
    if len(attributes) == 1:
        options = [(v,) for v in values[attributes[0]]]
    options = [o for o in options if (o in there) == yes]
    if not options:  # every shape is there
        return existence(scene, rng)
    if not yes and len(attributes) == 2 and rng.random() < 0.5:
        seen = [{getattr(t, a) for t in scene.things} for a in attributes]
        options = [o for o in options if all(v in s for v, s in zip(o, seen, strict=True))] or options
    words = dict(zip(attributes, rng.choice(options), strict=True))
    shape, color = words.get("shape", "object"), words.get("color", "")
    one, many = article(noun(shape, color)), noun(shape, color, plural=True)
    texts = f"is there {one}?", f"is there {one} in the picture?", f"are there any {many}?", f"do you see {one}?"
    return Question(rng.choice(texts), "yes" if yes else "no", "yes/no")


def check(scene: Scene, rng: Random) -> Question | None:
    """Is the circle red?"""
    hidden, values = rng.choice((("color", COLORS), ("shape", SHAPES), ("size", SIZES)))
    found = _refer(scene, rng, hidden)
    if found is None:
        return None
    thing, name = found
    true = getattr(thing, hidden)
    yes = rng.random() < 0.5
    said = true if yes else rng.choice([v for v in values if v != true])
    return Question(f"is the {name} {article(said) if hidden == 'shape' else said}?", "yes" if yes else "no", "yes/no")


def relation(scene: Scene, rng: Random) -> Question | None:
    """Is the circle left of the square?"""
    pairs = []
    for first in scene.things:
        for second in scene.things:
            if first is not second and names(first, scene) and names(second, scene):
                pairs += [(first, d, second) for d in DIRECTIONS if stands(first, d, second) is not None]
    if not pairs:
        return None
    want = rng.random() < 0.5
    first, direction, second = rng.choice([p for p in pairs if stands(*p) == want])
    one, other = rng.choice(names(first, scene)[:3]), rng.choice(names(second, scene)[:3])
    words = rng.choice((direction, f"to the {direction}")) if direction.endswith("of") else direction
    return Question(f"is the {one} {words} the {other}?", "yes" if want else "no", "yes/no")


def count_some(scene: Scene, rng: Random) -> Question:
    """How many red circles are there? Large counts are asked for more often than they occur."""
    nouns = [{"shape": s} for s in SHAPES] + [{"color": c} for c in COLORS]
    nouns += [{"color": c, "shape": s} for c in COLORS for s in SHAPES] if rng.random() < 0.4 else []
    by_count: dict[int, list[dict[str, str]]] = {}
    for words in nouns:
        count = sum(all(getattr(t, a) == v for a, v in words.items()) for t in scene.things)
        by_count.setdefault(count, []).append(words)
    counts = sorted(by_count)
    count = rng.choices(counts, weights=[(3, 3, 5, 9, 14)[c] for c in counts])[0]
    return _how_many(noun(**rng.choice(by_count[count]), plural=True), count, rng)


def count_all(scene: Scene, rng: Random) -> Question:
    """How many objects are there?"""
    return _how_many("objects", len(scene.things), rng)


def _how_many(what: str, count: int, rng: Random) -> Question:
    ends = "are there", "are in the picture", "do you see"
    return Question(f"how many {what} {rng.choice(ends)}?", str(count), "number")


def color(scene: Scene, rng: Random) -> Question | None:
    """What color is the circle?"""
    found = _refer(scene, rng, "color")
    if found is None:
        return None
    thing, name = found
    starts = "what color is", "what is the color of", "which color is"
    return Question(f"{rng.choice(starts)} the {name}?", thing.color, "other")


def shape(scene: Scene, rng: Random) -> Question | None:
    """What shape is the red object?"""
    found = _refer(scene, rng, "shape")
    if found is None:
        return None
    thing, name = found
    text = rng.choice((f"what shape is the {name}?", f"what is the shape of the {name}?", f"name the {name}"))
    return Question(text, thing.shape, "other")


def size(scene: Scene, rng: Random) -> Question | None:
    """Is the circle large or small?"""
    found = _refer(scene, rng, "size")
    if found is None:
        return None
    thing, name = found
    text = rng.choice((f"is the {name} large or small?", f"how big is the {name}?", f"what size is the {name}?"))
    return Question(text, thing.size, "other")


def place(scene: Scene, rng: Random) -> Question | None:
    """Is the circle on the left or on the right?"""
    found = _refer(scene, rng, "")
    if found is None:
        return None
    thing, name = found
    across, down = thing.x - 0.5, thing.y - 0.5
    if max(abs(across), abs(down)) < CLEAR:
        return None
    if abs(across) >= CLEAR and (abs(down) < CLEAR or rng.random() < 0.5):
        text = rng.choice((f"is the {name} on the left or right?", f"which side is the {name} on, left or right?"))
        return Question(text, "left" if across < 0 else "right", "other")
    return Question(f"is the {name} at the top or bottom?", "top" if down < 0 else "bottom", "other")


def neighbour(scene: Scene, rng: Random) -> Question | None:
    """What is left of the circle? Asked where exactly one thing is, and no other one nearly."""
    options = []
    for thing in scene.things:
        for direction in DIRECTIONS:
            others = [t for t in scene.things if t is not thing]
            answers = [t for t in others if stands(t, direction, thing) is not False]
            if len(answers) == 1 and stands(answers[0], direction, thing) and names(thing, scene):
                options.append((thing, direction, answers[0]))
    if not options:
        return None
    thing, direction, found = rng.choice(options)
    name = rng.choice(names(thing, scene)[:3])
    words = f"to the {direction}" if direction.endswith("of") and rng.random() < 0.5 else direction
    if rng.random() < 0.5:
        return Question(f"what color is the object {words} the {name}?", found.color, "other")
    return Question(f"what is {words} the {name}?", found.shape, "other")


def _refer(scene: Scene, rng: Random, hidden: str) -> tuple[Thing, str] | None:
    """A thing that can be named without its `hidden` attribute, and one of its names; short names are preferred."""
    options = [(thing, found) for thing in scene.things if (found := names(thing, scene, hidden))]
    if not options:
        return None
    thing, found = rng.choice(options)
    return thing, found[0] if rng.random() < 0.7 else rng.choice(found)
