"""Relative position bias: one learned number per head for every pair of positions (BEiT; VLMo for text).

Legend: H heads, L all tokens, W rows or columns of the patch grid, T0 longest text.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlbeit.types import Span

Grid = tuple[int, int]


def image_rows(grid: Grid) -> int:
    """Rows of an image table: every 2-D offset, then CLS->patch, patch->CLS, CLS->CLS."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


def text_rows(length: int) -> int:
    """Rows of a text table for `length` tokens: every offset between words, then the three [CLS] rows."""
    return 2 * length


def _with_cls(offsets_NN: Tensor, rows: int) -> Tensor:
    """Put a CLS token in front of an index matrix; its three rows are the last of the table."""
    length = offsets_NN.shape[0] + 1
    index_LL = torch.empty(length, length, dtype=torch.long)
    index_LL[1:, 1:] = offsets_NN
    index_LL[0, :] = rows - 3
    index_LL[:, 0] = rows - 2
    index_LL[0, 0] = rows - 1
    return index_LL


def image_index(grid: Grid, largest: Grid | None = None) -> Tensor:
    """Row of the table for `largest` (None: for `grid`) of every (query, key) of CLS + patches, [1+N, 1+N].

    Offset = query - key, row-major. Patches as far apart have the same row in every grid.
    """
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    row, column = row.flatten(), column.flatten()
    largest = largest or grid
    dy = row[:, None] - row[None, :] + largest[0] - 1
    dx = column[:, None] - column[None, :] + largest[1] - 1
    return _with_cls(dy * (2 * largest[1] - 1) + dx, image_rows(largest))


def text_index(length: int, longest: int) -> Tensor:
    """Table row for every (query, key) of a text, [T, T]; VLMo's sign: offset = key - query."""
    word = torch.arange(longest - 1)
    longest_TT = _with_cls(word[None, :] - word[:, None] + longest - 2, text_rows(longest))
    position = torch.arange(length)
    # looked up, not cut: an exported graph, too, refuses a longer text, which would read rows of other tables
    return longest_TT[position[:, None], position]


class RelativePositionBias(nn.Module):
    """The bias of one layer (or of all layers, as in BEiT's pre-training).

    Up to three parameters, each built only where asked: `image` [(2W-1)^2+3, H], `cross` [2, H] (text->image,
    image->text) and `text` [2*T0, H]. All start at zero. Tables that are there but not used by a sequence get a
    zero gradient, never none.

    Args:
        num_heads: H.
        grid: rows and columns of patches that the table is for, a picture may have fewer; None builds no `image`.
        text_length: T0, the longest text; None builds neither `text` nor `cross`.
    """

    def __init__(self, num_heads: int, grid: Grid | None = None, text_length: int | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.text_length = text_length
        self.image = nn.Parameter(torch.zeros(image_rows(grid), num_heads)) if grid else None
        both = grid is not None and text_length is not None
        self.cross = nn.Parameter(torch.zeros(2, num_heads)) if both else None
        self.text = nn.Parameter(torch.zeros(text_rows(text_length), num_heads)) if text_length else None

    def forward(self, spans: tuple[Span, ...], packed_BLL: Tensor | None = None) -> Tensor:
        """Bias [H, L, L] for a sequence of image and text spans, in the tables' dtype.

        Of packed texts, which share a sequence: [B, H, L, L] for the rows of `vlbeit.nn.packed.packed_index`, with
        -inf between two of them.
        """
        table = torch.cat([part for part in (self.image, self.cross, self.text) if part is not None])
        if packed_BLL is not None:
            assert self.text is not None, "the encoder that embedded the texts has a table for them"
            unseen = torch.full_like(table[:1], float("-inf"))  # a row, not a second tensor of that size to add
            return F.embedding(packed_BLL + len(table) - len(self.text), torch.cat([table, unseen])).permute(0, 3, 1, 2)
        index_LL = self._index(spans, table.device)
        return F.embedding(index_LL, table).permute(2, 0, 1)

    def _index(self, spans: tuple[Span, ...], device: torch.device) -> Tensor:
        layout = tuple((span.modality, span.stop - span.start, span.grid) for span in spans)
        for modality, length, grid in layout:
            if modality not in ("image", "text"):
                raise ValueError(f"no position table for {modality!r}: add one here, or use absolute positions")
            if modality == "text" and (self.text_length is None or length > self.text_length):
                raise ValueError(f"a text of {length} tokens is longer than the position table ({self.text_length})")
            if modality == "image" and not within(grid, self.grid):
                raise ValueError(f"patch grid {grid} is not within the position table's {self.grid}")
        # under torch.export and torch.compile lengths may be symbols, and what is made of them is not to be kept
        make = make_index if torch.compiler.is_compiling() else _KEPT.index
        return make(layout, self.grid, self.text_length, device)


def make_index(
    layout: tuple[tuple[str, int, Grid | None], ...],
    grid: Grid | None,
    text_length: int | None,
    device: torch.device,
) -> Tensor:
    """Rows of the joined table (image | cross | text) for spans of (modality, length, own grid), [L, L].

    `grid` and `text_length` are the largest that the tables are for.
    """
    n_image = image_rows(grid) if grid else 0
    n_cross = 2 if grid and text_length else 0
    blocks = []
    for query, query_length, own_grid in layout:
        row = []
        for key, key_length, _ in layout:
            if query != key:
                cross = n_image + (0 if query == "text" else 1)
                row.append(torch.full((query_length, key_length), cross, dtype=torch.long))
            elif query == "image":
                assert own_grid is not None
                row.append(image_index(own_grid, grid))
            else:
                assert text_length is not None
                row.append(text_index(query_length, text_length) + n_image + n_cross)
        blocks.append(torch.cat(row, dim=1))
    return torch.cat(blocks).to(device)


def within(grid: Grid | None, largest: Grid | None) -> bool:
    """Whether the patches of a picture lie within the positions that there are."""
    return grid is not None and largest is not None and grid[0] <= largest[0] and grid[1] <= largest[1]


class KeptIndexes:
    """The index matrices last asked for, of at most `most` bytes together, so that the layers of a model share one.

    One of 900 patches is 7 MB, and there is one for every patch grid and every length of a text.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[Any, Tensor] = OrderedDict()

    def index(self, *asked: Any) -> Tensor:
        """As `make_index`; the one asked for is kept, however large."""
        index_LL = self._kept.pop(asked, None)
        if index_LL is None:
            with torch.inference_mode(False):  # it must serve a later backward pass too
                index_LL = make_index(*asked)
        self._kept[asked] = index_LL
        while len(self._kept) > 1 and self.bytes > self.most:
            self._kept.popitem(last=False)
        return index_LL

    @property
    def bytes(self) -> int:
        """What is kept."""
        return sum(index_LL.nbytes for index_LL in self._kept.values())


_KEPT = KeptIndexes(2**28)


@contextmanager
def keeping_apart() -> Iterator[None]:
    """Within it other indexes are kept: those of tensors without values are for nobody else."""
    global _KEPT
    before, _KEPT = _KEPT, KeptIndexes(_KEPT.most)
    try:
        yield
    finally:
        _KEPT = before
