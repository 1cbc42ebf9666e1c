"""Pictures of which one split learns and another is scored on: by id, byte for byte, or nearly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from vlbeit.errors import some

from .findings import SHOWN, Finding, found
from .parts import Part
from .pictures import Likeness, Picture, name_of, same

TOLERATED = 0.001  # share of a split's pictures: as data.max_bad_fraction, what a run survives


def check_image_ids(parts: Sequence[Part]) -> Iterator[Finding]:
    """Pictures that two splits use under one id, by the same file or in one numbering."""
    for one, other in _to_compare(parts):
        here = set(one.asked())
        both = [key for key in other.asked() if key in here and _one_picture(one, other, key)]
        text = f"pictures that both use, by image_id: {some(both)}"
        yield from found("image-in-two-splits", f"{one.name}, {other.name}", both, text)


def check_copies(parts: Sequence[Part], pictures: Sequence[Picture]) -> Iterator[Finding]:
    """Files with the same bytes; with looks also those that show the same."""
    usable = [picture for picture in pictures if picture.size is not None]
    groups = same(usable)
    pairs = [(one, other) for group in groups for one, other in _across(group)]
    for names, leaked in _by_splits(parts, pairs):
        finding = _finding("same-picture-in-two-splits", names, leaked, "pictures of both with the same bytes")
        yield replace(finding, mild=_is_few(parts, names, leaked))
    for part in parts:
        copies = [[picture for picture in group if picture.split == part.name] for group in groups]
        twice = [(group[0], other) for group in copies for other in group[1:]]
        if twice:
            yield _finding("same-picture-in-one-split", part.name, twice, "pictures with the same bytes")
    equal = {id(picture): number for number, group in enumerate(groups) for picture in group}
    likeness = Likeness(usable)
    between = (pair for pair in likeness.pairs() if pair[0].split != pair[1].split)
    near = [(one, other) for one, other in between if equal.get(id(one), -1) != equal.get(id(other), -2)]
    for names, leaked in _by_splits(parts, near):
        yield _finding("near-copy-in-two-splits", names, leaked, "pictures of both that look the same")
    splits = ", ".join(dict.fromkeys(picture.split for picture in likeness.crowded))
    text = "pictures like so many others that a near copy of them may have been missed: "
    text += some([name_of(picture) for picture in likeness.crowded])
    yield from found("crowded-look", splits, [picture.image_id for picture in likeness.crowded], text)


def _one_picture(one: Part, other: Part, key: int | str) -> bool:
    """In the official files an id is one picture wherever it stands; elsewhere the same file must lie behind it."""
    here, there = one.pictures.get(key), other.pictures.get(key)
    return one.numbered or (isinstance(here, str) and here == there)


def _to_compare(parts: Sequence[Part]) -> Iterator[tuple[Part, Part]]:
    """Pairs of splits, but for two whose answers are hidden: test-dev is a part of test."""
    for one, other in combinations(parts, 2):
        if one.annotations is not None or other.annotations is not None or not (one.questions and other.questions):
            yield one, other


def _across(group: Sequence[Picture]) -> Iterator[tuple[Picture, Picture]]:
    """Pairs of the first pictures of every split in a group."""
    firsts: dict[str, Picture] = {}
    for picture in group:
        firsts.setdefault(picture.split, picture)
    return combinations(firsts.values(), 2)


def _by_splits(
    parts: Sequence[Part], pairs: Iterable[tuple[Picture, Picture]]
) -> Iterator[tuple[str, list[tuple[Picture, Picture]]]]:
    allowed = {frozenset((one.name, other.name)): f"{one.name}, {other.name}" for one, other in _to_compare(parts)}
    numbered = all(part.numbered for part in parts)
    grouped: dict[str, list[tuple[Picture, Picture]]] = {}
    for one, other in pairs:
        names = allowed.get(frozenset((one.split, other.split)))
        told = one.image_id == other.image_id and (numbered or one.place == other.place)  # by check_image_ids
        if names is not None and not told:
            grouped.setdefault(names, []).append((one, other))
    yield from grouped.items()


def _is_few(parts: Sequence[Part], names: str, leaked: Sequence[tuple[Picture, Picture]]) -> bool:
    sizes = [len(part.asked()) for part in parts if part.name in names.split(", ")]
    return len(leaked) <= TOLERATED * min(sizes)


def _finding(code: str, split: str, pairs: Sequence[tuple[Picture, Picture]], what: str) -> Finding:
    shown = [f"{name_of(one)} = {name_of(other)}" for one, other in pairs]
    ids = [picture.image_id for pair in pairs for picture in pair]
    return Finding(code, split, len(pairs), ids[:SHOWN], f"{what}: {some(shown)}")
