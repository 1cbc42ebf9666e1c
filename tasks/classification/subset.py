"""Evaluation among some of the classes that a classifier knows, as ImageNet-A and ImageNet-R have it."""

from __future__ import annotations

from collections.abc import Sequence

from timm.data import ImageNetInfo

from vlbeit.errors import DataError, UsageError, some

_IMAGENETS = {1000: "imagenet-1k", 21841: "imagenet-22k"}
"""By the number of classes: timm's list of WordNet ids, in the order of ImageNet's sorted folders."""


def subset_rows(found: Sequence[str], known: Sequence[str], place: str) -> list[int]:
    """Row of the classifier for each of the found classes, by name.

    Raises DataError naming classes that are not among the `known`, or where there are fewer than two.
    """
    row = {name: number for number, name in enumerate(known)}
    if unknown := [name for name in found if name not in row]:
        raise DataError(
            f"{place} has classes that the classifier does not know: {some(unknown)}; it knows {some(list(known))}"
        )
    if len(found) < 2:
        raise DataError(f"{place} has one class, {', '.join(found)}: there is nothing to tell apart")
    return [row[name] for name in found]


def weights_classes(theirs: Sequence[str], found: Sequence[str]) -> list[str]:
    """Names of all rows of a classifier that comes without a run: its own where the found classes are among them.

    Else, by their number, the WordNet ids of ImageNet-1k or -22k. Raises UsageError for any other number.
    """
    if {*found} <= {*theirs}:
        return list(theirs)
    if len(theirs) not in _IMAGENETS:
        raise UsageError(
            f"task.subset=true: nothing says which classes the {len(theirs)} rows of this classifier stand for (1000 "
            f"or 21841 are ImageNet's): evaluate without it, on data with all of its classes"
        )
    return list(ImageNetInfo(_IMAGENETS[len(theirs)]).label_names())
