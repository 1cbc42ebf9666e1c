"""Whether ids fit together: of questions, of annotations, of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from vlbeit.data.answer_file import repeated
from vlbeit.errors import some

from .findings import Finding, found
from .parts import Part


def check_ids(part: Part, others: Sequence[Part]) -> Iterator[Finding]:
    """What does not fit within a split; `others` tell where a picture that is missing here lies instead."""
    asked = [question.question_id for question in part.questions]
    twice = repeated(asked)
    yield from found("duplicate-question-id", part.name, twice, f"question_id used more than once: {some(twice)}")
    if part.annotations is not None:
        yield from _check_annotations(part, asked)
    yield from _check_images(part, others)


def check_ids_between(parts: Sequence[Part]) -> Iterator[Finding]:
    """Questions of one id in two splits, where ids run on from split to split (VizWiz counts each anew).

    A split whose answers are hidden may be a part of another such.
    """
    for one, other in combinations(parts, 2):
        if not (one.numbered and other.numbered) or (one.annotations is None and other.annotations is None):
            continue
        here = {question.question_id for question in one.questions}
        both = list(dict.fromkeys(row.question_id for row in other.questions if row.question_id in here))
        text = f"question_id used in both: {some(both)}"
        yield from found("question-id-in-two-splits", f"{one.name}, {other.name}", both, text)


def _check_annotations(part: Part, asked: list[int]) -> Iterator[Finding]:
    annotated = [row.question_id for row in part.annotations or []]
    twice = repeated(annotated)
    yield from found("duplicate-annotation", part.name, twice, f"questions annotated more than once: {some(twice)}")
    known, wanted = set(annotated), set(asked)
    if part.whole:  # else they lie behind the damage
        lacking = list(dict.fromkeys(number for number in asked if number not in known))
        text = f"questions without annotation: {some(lacking)}"
        yield from found("question-without-annotation", part.name, lacking, text)
        foreign = list(dict.fromkeys(number for number in annotated if number not in wanted))
        text = f"annotations of questions that are not asked: {some(foreign)}"
        yield from found("annotation-without-question", part.name, foreign, text)
    pictures = {question.question_id: question.image_id for question in part.questions}
    differing = [
        row.question_id
        for row in part.annotations or []
        if row.image_id is not None and pictures.get(row.question_id, row.image_id) != row.image_id
    ]
    text = f"question and annotation name another image_id: {some(differing)}"
    yield from found("image-id-mismatch", part.name, differing, text)


def _check_images(part: Part, others: Sequence[Part]) -> Iterator[Finding]:
    """A picture is missing, or the id that asks for it is wrong: where another id says which was meant."""
    if not part.pictures:  # said once, where the folder was read
        return
    annotated = {row.question_id: row.image_id for row in part.annotations or []}
    missing: dict[int | str, int] = {}
    dangling, meant = [], []
    for question in part.questions:
        if question.image_id in part.pictures:
            continue
        intended = _intended(question.question_id, annotated.get(question.question_id), part.pictures)
        if intended is None:
            missing[question.image_id] = missing.get(question.image_id, 0) + 1
        else:
            dangling.append(question.question_id)
            meant.append(f"{question.question_id} asks about {question.image_id}, its other ids about {intended}")
    text = f"questions with an image_id that no picture has: {some(meant)}"
    yield from found("dangling-image-id", part.name, dangling, text)
    elsewhere = [other.name for other in others if any(image in other.pictures for image in missing)]
    text = f"pictures that are not in {part.place or 'the data'}, by image_id: {some(list(missing))}, asked about in "
    text += f"{sum(missing.values())} questions" + (f"; some lie with {', '.join(elsewhere)}" if elsewhere else "")
    yield from found("missing-image", part.name, list(missing), text)


def _intended(question_id: int, annotated: int | str | None, pictures: Mapping[int | str, object]) -> int | str | None:
    """The picture that is there and that the question's other ids name, as VQA v2 counts: image_id x 1000 + n."""
    for candidate in (annotated, question_id // 1000):
        if candidate is not None and candidate in pictures:
            return candidate
    return None
