"""From a picture of any size to a class per pixel: views, windows, and the averages over them.

A view is the picture at one size; a window is what the tower sees of it at once. Without sliding windows a picture is
one view of one window.

Legend: B windows at a time, K classes, h, w of a view or window, H, W of the original picture.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, product
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vlbeit.data.joint_transforms import fitted
from vlbeit.data.transforms import Size, normalize
from vlbeit.models.pyramid import resized

Decode = Callable[[Tensor], Tensor]  # pictures [B, 3, h, w] -> logits [B, K, any size]


class View(NamedTuple):
    """A picture at one size, uint8 [3, h, w], a quarter of the floats; it counts as often as `weight` says."""

    weight: int
    pixels: Tensor
    mean: Sequence[float]  # of the channels
    std: Sequence[float]

    def image(self, like: Tensor) -> Tensor:
        """float [3, h, w], normalised, on the device of `like` and of its type."""
        return normalize(self.pixels.to(like.device).float() / 255, self.mean, self.std).to(like.dtype)


class Views:
    """PIL picture (RGB) -> its views; a plain picklable class that runs in the loader's workers.

    Args:
        window: height and width of what the tower sees.
        mean, std: of the channels.
        resize: longest and shortest side of a view at scale 1, its aspect kept: for sliding windows. None: the picture
            is squeezed into one window, whatever its aspect. The tower's positions are those of one grid, so a whole
            picture must take its shape (transformers' image processor of BEiT does the same).
        scales: of the views. Where one would make the view's short side smaller than the window it is raised to that,
            as published: scale 0.5 of 2048:512 with a window of 512 is scale 1 again, which counts twice then.
    """

    def __init__(
        self,
        window: Size,
        mean: Sequence[float],
        std: Sequence[float],
        resize: tuple[int, int] | None = None,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        self.window, self.mean, self.std, self.resize, self.scales = window, mean, std, resize, tuple(scales)

    def __call__(self, image: Image.Image) -> list[View]:
        sizes = self.sizes((image.height, image.width))
        return [View(weight, _resized(image, size), self.mean, self.std) for size, weight in sizes.items()]

    def sizes(self, size: Size) -> dict[Size, int]:
        """Height and width of the views of a picture of this size, and how often each counts."""
        if self.resize is None:
            return {self.window: len(self.scales)}
        return dict(Counter(self._fitted(size, self.resize, scale) for scale in self.scales))

    def _fitted(self, size: Size, resize: tuple[int, int], scale: float) -> Size:
        (long, short), least = resize, max(self.window)
        scaled = (int(long * scale), int(short * scale))
        return fitted(size, scaled if scaled[1] >= least else (round(long * least / short), least))


def _resized(image: Image.Image, size: Size) -> Tensor:
    # without antialiasing, as in training
    return F.resize(F.pil_to_tensor(image), list(size), InterpolationMode.BILINEAR, antialias=False)


class Windows(NamedTuple):
    """How views are cut and put together again."""

    size: Size  # of a window
    stride: Size  # from one window to the next
    flip: bool = False  # every view is seen from both sides
    at_a_time: int = 16  # windows in one forward

    def starts(self, size: Size) -> list[tuple[int, int]]:
        """Top and left of every window over a view; the last ones lie flush with its border."""
        rows, columns = (
            sorted({min(start, max(whole - part, 0)) for start in range(0, max(whole - part, 0) + step, step)})
            for whole, part, step in zip(size, self.size, self.stride, strict=True)
        )
        return list(product(rows, columns))


@torch.no_grad()
def segment(
    decode: Decode, pictures: Iterable[tuple[Sequence[View], Size]], windows: Windows, like: Tensor
) -> list[Tensor]:
    """Views of every picture and its original height and width -> a class per pixel, int64 [H, W], of each picture.

    Logits of a view are averaged where windows overlap and brought to the original size (bilinear, corners not
    aligned); probabilities are averaged over views. The order of the pictures and the number of windows at a time
    change nothing. `decode` takes what is of the device and type of `like`; a view goes there when it is cut.
    """
    pictures = list(pictures)
    sides = (False, True) if windows.flip else (False,)
    seen = [(view, flipped) for views, _ in pictures for view in views for flipped in sides]
    shown = (view.image(like).flip(-1) if flipped else view.image(like) for view, flipped in seen)
    maps = slide(decode, shown, windows)
    parts = (
        (view.weight, logits.flip(-1) if flipped else logits)
        for (view, flipped), logits in zip(seen, maps, strict=True)
    )
    return [_classes(islice(parts, len(views) * len(sides)), size) for views, size in pictures]


def _classes(parts: Iterator[tuple[int, Tensor]], size: Size) -> Tensor:
    """Weights and logits [K, h, w] of all views of one picture, taken one by one -> classes [H, W]."""
    total_KHW: Any = 0
    for weight, logits_Khw in parts:
        # probabilities, so that views weigh alike whatever the range of their logits
        total_KHW = total_KHW + weight * resized(logits_Khw[None], size)[0].softmax(0)
    return total_KHW.argmax(0)


def slide(decode: Decode, views: Iterable[Tensor], windows: Windows) -> Iterator[Tensor]:
    """Views [3, h, w] of any sizes -> their logits [K, h, w], in order, float32 (or float64).

    Windows of several views share a forward; as few views are kept at a time as that allows.
    """
    waiting: deque[_Canvas] = deque()  # views whose windows are not all seen
    queue: list[tuple[_Canvas, int, int, Tensor]] = []
    for view in views:
        canvas = _Canvas(view, windows)
        waiting.append(canvas)
        for top, left, window in canvas.cut():
            queue.append((canvas, top, left, window))
            if len(queue) == windows.at_a_time:
                _see(decode, queue, windows.size)
                queue = []
        while waiting and waiting[0].missing == 0:
            yield waiting.popleft().mean()
    if queue:
        _see(decode, queue, windows.size)
    yield from (canvas.mean() for canvas in waiting)


def _see(decode: Decode, queue: Sequence[tuple[_Canvas, int, int, Tensor]], size: Size) -> None:
    logits = decode(torch.stack([window for *_, window in queue]))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    for (canvas, top, left, _), small in zip(queue, logits, strict=True):  # one by one: at full size they are large
        canvas.add(top, left, resized(small[None], size)[0])


class _Canvas:
    """One view: its windows, and the logits that came back for them so far."""

    def __init__(self, view: Tensor, windows: Windows) -> None:
        self.size = (view.shape[1], view.shape[2])
        self.window = windows.size
        below, right = (max(0, part - whole) for whole, part in zip(self.size, windows.size, strict=True))
        self.view = F.pad(view, [0, 0, right, below])  # with the mean colour, as training pads
        self.starts = windows.starts(self.size)
        self.missing = len(self.starts)
        self.total_Khw: Tensor | None = None

    def cut(self) -> Iterator[tuple[int, int, Tensor]]:
        """Top, left and pixels of every window."""
        height, width = self.window
        for top, left in self.starts:
            yield top, left, self.view[:, top : top + height, left : left + width]

    def add(self, top: int, left: int, logits_Khw: Tensor) -> None:
        """Take in the logits of one window."""
        if self.total_Khw is None:
            self.total_Khw = logits_Khw.new_zeros(len(logits_Khw), *self.view.shape[1:])
        self.total_Khw[:, top : top + self.window[0], left : left + self.window[1]] += logits_Khw
        self.missing -= 1

    def mean(self) -> Tensor:
        """Logits [K, h, w] averaged over the windows that saw a pixel, without the padding."""
        assert self.total_Khw is not None
        rows, columns = (self._seen(axis) for axis in (0, 1))
        mean_Khw = self.total_Khw / (rows[:, None] * columns).to(self.total_Khw)
        return mean_Khw[:, : self.size[0], : self.size[1]]

    def _seen(self, axis: int) -> Tensor:
        """How many rows (axis 0) or columns of windows cover each line of pixels."""
        seen = torch.zeros(self.view.shape[axis + 1])
        for start in {start[axis] for start in self.starts}:
            seen[start : start + self.window[axis]] += 1
        return seen
