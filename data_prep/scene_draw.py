"""Drawing of scenes: pictures, the pixels of every thing, and pictures of one dominant thing."""

from __future__ import annotations

import io
import math
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .scene_world import COLORS, SHAPES, Scene, Thing

# Brighter than every ground, so that a shape shows as a bright patch whatever its colour.
RGB = {
    "red": (240, 60, 60),
    "green": (50, 205, 80),
    "blue": (70, 120, 255),
    "yellow": (255, 230, 60),
    "purple": (190, 80, 240),
    "orange": (255, 150, 40),
}
FINE = 4  # things are drawn at this multiple of the size and reduced: smooth edges
STYLES = ("filled", "outlined")
assert tuple(RGB) == COLORS


class Drawing(NamedTuple):
    """A drawn scene."""

    image: np.ndarray  # uint8 [side, side, 3]
    things: np.ndarray  # bool [number of things, side, side]: pixels that a thing covers at least half


def draw(scene: Scene, side: int) -> Drawing:
    """The scene as a picture of `side` x `side` pixels."""
    image = _ground(scene.ground, side)
    covered = np.zeros((len(scene.things), side, side), bool)
    for index, thing in enumerate(scene.things):
        cover = _paint(image, thing, outline(thing), "filled")
        covered[index] = cover >= 0.5
    return Drawing(np.clip(image, 0, 255).round().astype(np.uint8), covered)


def draw_single(shape: str, style: str, rng: Random, side: int) -> np.ndarray:
    """One dominant thing of any colour in one of the STYLES, uint8 [side, side, 3]."""
    radius = rng.uniform(0.26, 0.38)
    x, y = (rng.uniform(radius, 1 - radius) for _ in range(2))
    thing = Thing(shape, rng.choice(COLORS), "large", x, y, rng.uniform(-0.2, 0.2), rng.uniform(0.9, 1.08))
    image = _ground(rng.getrandbits(32), side)
    _paint(image, thing, outline(thing, radius), style)
    return np.clip(image, 0, 255).round().astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    """JPEG bytes of uint8 [height, width, 3], colours not subsampled."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def png(labels: np.ndarray) -> bytes:
    """PNG bytes of uint8 labels [height, width]."""
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG")
    return buffer.getvalue()


def outline(thing: Thing, radius: float | None = None) -> np.ndarray:
    """Corners of the thing, float [corners, 2], x and y as shares of the side."""
    points = _CORNERS[thing.shape]
    cos, sin = math.cos(thing.turn), math.sin(thing.turn)
    turned = points @ np.array([[cos, sin], [-sin, cos]])
    return turned * (thing.radius if radius is None else radius) + (thing.x, thing.y)


def _regular(corners: int, radii: tuple[float, ...]) -> np.ndarray:
    angles = np.arange(corners) * (2 * math.pi / corners) - math.pi / 2
    length = np.resize(radii, corners)
    return np.stack([np.cos(angles) * length, np.sin(angles) * length], axis=1)


def _plus(arm: float) -> np.ndarray:
    a, b = arm, 0.95
    quarter = np.array([(-a, -b), (a, -b), (a, -a)])
    turns = (np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)))
    return np.concatenate([quarter @ turn for turn in turns])


# Corners for a circle of radius 1 around the thing, y down. Areas are made similar, so that size tells no shape.
_CORNERS = {
    "circle": _regular(32, (0.95,)),
    "square": np.array([(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]),
    "triangle": _regular(3, (1.05,)) + np.array([0, 0.25]),
    "cross": _plus(0.33),
}
assert tuple(_CORNERS) == SHAPES


def _paint(image: np.ndarray, thing: Thing, corners: np.ndarray, style: str) -> np.ndarray:
    """Put the thing on the float image in place; returns how much of each pixel it covers, in [0, 1]."""
    side = image.shape[0]
    canvas = Image.new("L", (side * FINE, side * FINE))
    points = [(float(x), float(y)) for x, y in corners * (side * FINE)]
    pen = ImageDraw.Draw(canvas)
    if style == "filled":
        pen.polygon(points, fill=255)
    else:
        pen.line([*points, *points[:2]], fill=255, width=round(0.07 * side * FINE), joint="curve")
    cover = np.asarray(canvas.reduce(FINE), np.float32) / 255
    color = np.array(RGB[thing.color], np.float32) * thing.shade
    image += cover[..., None] * (color - image)
    return cover


def _ground(seed: int, side: int) -> np.ndarray:
    """A dark ground with a soft texture and little colour, float32 [side, side, 3]."""
    rng = np.random.default_rng(seed)
    base = 50 + rng.uniform(-10, 10) + rng.uniform(-6, 6, 3)
    cells = int(rng.choice([3, 6, 12]))
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    texture = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) * rng.uniform(4, 10)
    texture = texture + rng.normal(0, 1.5, (side, side))
    return (base + texture[..., None]).astype(np.float32)
