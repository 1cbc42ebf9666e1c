"""Masks: blocks of image patches (BEiT, Bao et al. 2021, algorithm 1) and whole words of a text (BERT)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from vlbeit.data.text import Tokenizer
from vlbeit.errors import UsageError

_ATTEMPTS = 10  # tries to place a block before a mask is left as it is
_MIN_ASPECT = 0.3


class BlockwiseMask:
    """Draws masks of rectangular blocks of patches.

    As published (BEiT v1) a mask never has more than `num_masked` patches and may have a few less; `exact=True` adds
    single random patches up to the number, as BEiT v2 does. Blocks have at least `min_block` patches where so many are
    left to mask; 16 is the published size for a grid of 14 x 14, a smaller grid needs a smaller one.
    """

    def __init__(self, grid: tuple[int, int], num_masked: int, min_block: int = 16, exact: bool = False) -> None:
        _check_count(grid, num_masked)
        if min_block < 1:
            raise UsageError(f"the smallest block of a mask, {min_block}, must have at least 1 patch")
        self.grid, self.num_masked, self.min_block, self.exact = grid, num_masked, min_block, exact

    def __call__(self, generator: np.random.Generator) -> np.ndarray:
        """A bool array [rows, columns], True = masked."""
        mask = np.zeros(self.grid, dtype=bool)
        while (wanted := self.num_masked - int(mask.sum())) > 0:
            if not self._add_block(mask, wanted, generator):
                break
        if self.exact:
            free = np.flatnonzero(~mask)
            mask.flat[generator.choice(free, self.num_masked - int(mask.sum()), replace=False)] = True
        return mask

    def _add_block(self, mask: np.ndarray, most: int, generator: np.random.Generator) -> bool:
        """Mask one block with 1 to `most` new patches; False if none was found."""
        rows, columns = self.grid
        for _ in range(_ATTEMPTS):
            # With fewer patches left than the smallest block the range is reversed, as in the published code.
            area = self.min_block + (most - self.min_block) * generator.random()
            aspect = math.exp(generator.uniform(math.log(_MIN_ASPECT), -math.log(_MIN_ASPECT)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top = int(generator.integers(rows - height, endpoint=True))
            left = int(generator.integers(columns - width, endpoint=True))
            block = mask[top : top + height, left : left + width]
            if 0 < block.size - int(block.sum()) <= most:
                block[:] = True
                return True
        return False


class RandomMask:
    """Draws `num_masked` single patches, all equally likely: BEiT's ablation without blocks (2106.08254, table 4)."""

    def __init__(self, grid: tuple[int, int], num_masked: int) -> None:
        _check_count(grid, num_masked)
        self.grid, self.num_masked = grid, num_masked

    def __call__(self, generator: np.random.Generator) -> np.ndarray:
        """A bool array [rows, columns], True = masked."""
        mask = np.zeros(self.grid, dtype=bool)
        mask.flat[generator.choice(mask.size, self.num_masked, replace=False)] = True
        return mask


def _check_count(grid: tuple[int, int], num_masked: int) -> None:
    if not 0 < num_masked <= grid[0] * grid[1]:
        raise UsageError(f"{num_masked} masked patches do not fit a grid of {grid[0]} x {grid[1]}")


def mask_words(
    ids: Sequence[int],
    words: Sequence[int | None],
    tokenizer: Tokenizer,
    generator: np.random.Generator,
    probability: float = 0.15,
) -> tuple[list[int], list[int]]:
    """Whole-word masking: (mlm_ids, mlm_labels), labels -100 where nothing is to be predicted.

    Words in random order are masked up to max(1, round(len(ids) * probability)) tokens, special tokens counted in; one
    that goes beyond is skipped (as in transformers' whole-word collator). Each token of a masked word becomes [MASK]
    with 0.8, a random token with 0.1, and stays with 0.1. Differs from that collator: if every word is too long, the
    first one is masked all the same, so a text with a word is never without a label.
    """
    places: dict[int, list[int]] = defaultdict(list)
    for place, word in enumerate(words):
        if word is not None:
            places[word].append(place)
    order = [list(places.values())[index] for index in generator.permutation(len(places))]
    budget = max(1, round(len(ids) * probability))
    chosen: list[int] = []
    for word_places in order:
        if len(chosen) + len(word_places) <= budget:
            chosen += word_places
    chosen = chosen or (order[0] if order else [])
    mlm_ids, mlm_labels = list(ids), [-100] * len(ids)
    for place in chosen:
        mlm_labels[place] = ids[place]
        draw = generator.random()
        if draw < 0.8:
            mlm_ids[place] = tokenizer.mask_id
        elif draw < 0.9:
            mlm_ids[place] = int(generator.integers(tokenizer.vocab_size))
    return mlm_ids, mlm_labels
