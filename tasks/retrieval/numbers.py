"""From ranks to the published numbers: recall at 1, 5 and 10 both ways, by chance too, with intervals.

`txt`: a picture is asked for its texts (TR, image to text); `img`: a text is asked for its picture (IR, text to image).

Legend: P pictures, M captions, R resamples, F parts of a picture that add up over a set.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vlbeit.bootstrap import Interval, statistic_interval

DEPTHS = (1, 5, 10)
NAMES = tuple(f"{way}_r{depth}" for way in ("txt", "img") for depth in DEPTHS)


class Ranks(NamedTuple):
    """Rank of the right answer to every query, 1 the best."""

    texts_P: np.ndarray  # of a picture, of its best caption
    pictures_M: np.ndarray  # of a caption, of its picture


def recalls(ranks: Ranks) -> dict[str, float]:
    """`recall_mean` of all six, then each, in percent; `txt_median_rank` and `img_median_rank`."""
    ways = {"txt": ranks.texts_P, "img": ranks.pictures_M}
    six = {f"{way}_r{depth}": 100 * float((rank <= depth).mean()) for way, rank in ways.items() for depth in DEPTHS}
    medians = {f"{way}_median_rank": float(np.median(rank)) for way, rank in ways.items()}
    return {"recall_mean": float(np.mean(list(six.values()))), **six, **medians}


def chance(picture_of_M: np.ndarray) -> dict[str, float]:
    """What guessing reaches: the six recalls in percent, and `recall_mean`."""
    captions_P = np.bincount(picture_of_M)
    pictures, captions = len(captions_P), len(picture_of_M)
    six = {}
    for depth in DEPTHS:
        drawn = np.arange(min(depth, captions))
        missed_P = np.prod(np.clip(captions - captions_P[:, None] - drawn, 0, None) / (captions - drawn), axis=1)
        six[f"txt_r{depth}"] = 100 * float(1 - missed_P.mean())
        six[f"img_r{depth}"] = 100 * min(depth, pictures) / pictures
    return {"recall_mean": float(np.mean(list(six.values()))), **{name: six[name] for name in NAMES}}


def intervals(ranks: Ranks, picture_of_M: np.ndarray) -> dict[str, Interval]:
    """95 % of `recall_mean` and the six recalls, in percent, over pictures drawn with all their captions.

    The captions of one picture are not independent of each other: drawn one by one they would give too narrow ones.
    """
    pictures = len(ranks.texts_P)
    columns = [ranks.texts_P <= depth for depth in DEPTHS]
    columns += [np.bincount(picture_of_M, ranks.pictures_M <= depth, pictures) for depth in DEPTHS]
    columns += [np.ones(pictures), np.bincount(picture_of_M, minlength=pictures)]
    parts_PF = np.stack(columns, axis=1).astype(np.float64)

    def six(sums_RF: np.ndarray) -> np.ndarray:
        return 100 * np.concatenate([sums_RF[:, :3] / sums_RF[:, 6:7], sums_RF[:, 3:6] / sums_RF[:, 7:8]], axis=1)

    found = {"recall_mean": statistic_interval(parts_PF, lambda sums_RF: six(sums_RF).mean(axis=1))}
    for place, name in enumerate(NAMES):
        found[name] = statistic_interval(parts_PF, lambda sums_RF, place=place: six(sums_RF)[:, place])
    return found
