"""Ten annotators who mostly agree: synonyms, slips, counts off by one, spelling."""

from __future__ import annotations

from random import Random

ANNOTATORS = 10
# How many of the ten say something else than the truth, and how often; the truth always keeps the majority.
DISSENT = {0: 50, 1: 26, 2: 14, 3: 7, 4: 3}

OTHER_WORDS = {
    "yes": ("no", "yes it is", "i think so"),
    "no": ("yes", "not here", "nothing"),
    "red": ("crimson", "dark red", "orange"),
    "green": ("dark green", "grean", "lime"),
    "blue": ("dark blue", "navy", "purple"),
    "yellow": ("gold", "yelow", "orange"),
    "purple": ("violet", "pink", "blue"),
    "orange": ("yellow", "dark yellow", "peach"),
    "circle": ("round", "ball", "dot", "cirlce"),
    "square": ("box", "rectangle", "block"),
    "triangle": ("tent", "pyramid", "traingle"),
    "cross": ("plus", "plus sign", "x"),
    "small": ("tiny", "little", "large"),
    "large": ("big", "medium", "small"),
    "left": ("left side", "right", "west"),
    "right": ("right side", "left", "east"),
    "top": ("upper half", "bottom", "up"),
    "bottom": ("lower half", "top", "down"),
}


def annotate(answer: str, rng: Random) -> list[dict[str, object]]:
    """The official ten answers: answer_id 1 to 10, answer, answer_confidence."""
    dissenters = rng.choices(list(DISSENT), weights=list(DISSENT.values()))[0]
    said = [answer] * (ANNOTATORS - dissenters) + [rng.choice(_others(answer)) for _ in range(dissenters)]
    rng.shuffle(said)
    return [
        {"answer": words, "answer_confidence": _confidence(words == answer, rng), "answer_id": index}
        for index, words in enumerate(said, start=1)
    ]


def _others(answer: str) -> tuple[str, ...]:
    if answer.isdigit():
        count = int(answer)
        return (str(count + 1), str(count - 1), "several" if count > 1 else "no") if count else ("1", "none", "no")
    return OTHER_WORDS[answer]


def _confidence(right: bool, rng: Random) -> str:
    return rng.choices(("yes", "maybe", "no"), weights=(88, 10, 2) if right else (45, 40, 15))[0]
