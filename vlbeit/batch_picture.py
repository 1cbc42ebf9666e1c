"""`batch0.png`: the first training batch of a run, drawn as the model sees it.

Only what stands in the batch is drawn (`vlbeit.types.Batch`): pictures brought back from their normalisation, masked
patches grey, classes, answers, questions and captions under them, segments and boxes over them. A key that a plug-in
uses otherwise, or does not have, is left out.

Legend: B batch, N patches, T text tokens, H W height and width in pixels, n boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from vlbeit.config import RunConfig
from vlbeit.data.drawing import IGNORED, draw_boxes, draw_segments, palette
from vlbeit.data.figure import INK, PALE, Cell, Line, beside, figure, sized
from vlbeit.data.text import Tokenizer
from vlbeit.types import Batch, Meta

MOST = 16  # samples that are drawn
_COLUMNS = 4
_GREY = 0.5  # of a masked patch
_BOXED = 288  # longer side of a picture whose boxes carry names, at least, in pixels
_MOST_LABELS = 6  # classes of one picture that are named
_MASKED = (150, 60, 20)  # of a text with words masked
_BETWEEN = "  |  "  # packed texts
_MOST_PACKED = 6  # rows of packed texts, which are long
_MOST_TOKENS = 96  # of such a row
_TEXT_WIDTH = 420  # of a cell without a picture, in pixels


def draw_batch(batch: Batch, config: RunConfig, meta: Meta) -> Image.Image | None:
    """The samples of a batch with what they are labelled, in a grid; None where it holds neither pictures nor text.

    `config` gives the normalisation and names the run, `meta` its classes, answers and tokenizer.
    """
    drawn = _Drawn(config, meta)
    packed = "text_segments" in batch
    count = min(_MOST_PACKED if packed else MOST, len(batch["sample_id"]))
    cells = [drawn.cell(batch, index) for index in range(count)]
    if not any(cell.picture is not None or cell.lines for cell in cells):
        return None
    pictures = any(cell.picture is not None for cell in cells)
    head = [
        Line(f"{config.title}: {count} of the {config.global_batch_size} samples of step 0, as the model sees them")
    ]
    head += [Line(text, color=PALE) for text in _remarks(batch, config)]
    return figure(cells, _COLUMNS if pictures else 2, head, width=0 if pictures else _TEXT_WIDTH)


def _remarks(batch: Batch, config: RunConfig) -> list[str]:
    """What the picture does not show by itself."""
    remarks = []
    if "mask" in batch and "image" in batch:
        beside_it = "; beside it the view that its tokens or pixels are made of" if "pixels" in batch else ""
        remarks.append(f"grey: masked patches{beside_it}")
    if any(getattr(config.task, name, 0) for name in ("mixup", "cutmix")):
        remarks.append("mixup and cutmix come later, inside the objective: they and mixed labels are not shown")
    if "text_segments" in batch:
        told = f", the first {_MOST_TOKENS} tokens of a row" * (batch["text_ids"].shape[1] > _MOST_TOKENS)
        remarks.append(f"packed texts{told}: those between bars do not see each other")
    if "segments" in batch:
        remarks.append("right: the class of every pixel; those without a colour are not scored")
    if bad := batch.get("bad"):
        remarks.append(f"replaced, since they cannot be read: {', '.join(map(str, bad[:3]))}")
    return remarks


class _Drawn:
    """Draws samples of one run."""

    def __init__(self, config: RunConfig, meta: Meta) -> None:
        mean, std = config.normalization
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (mean, std))
        self.classes: Sequence[str] = meta.get("classes", ())
        self.answers: Sequence[str] = meta.get("answers", ())
        stored = meta.get("tokenizer")
        self.tokenizer = None if stored is None else Tokenizer.from_json(stored, config.text.max_length)

    def cell(self, batch: Batch, index: int) -> Cell:
        """One sample: its picture, or pictures beside each other, and its lines."""
        pictures = []
        for name in ("image_0", "image_1"):
            if _is_pictures(batch.get(name)):
                pictures.append(sized(_pil(self._pixels(batch[name][index]))))
        if _is_pictures(batch.get("image")):
            image = self._picture(batch, index)
            pictures.append(self._with_boxes(image, batch, index) if "boxes" in batch else sized(image))
            if "segments" in batch:  # beside it, on grey: a class's colour mixes with no other
                grey = image.convert("L").convert("RGB")
                pictures.append(sized(draw_segments(grey, batch["segments"][index].cpu(), alpha=0.6)))
        if _is_pictures(batch.get("pixels")):
            view = sized(_pil(batch["pixels"][index]))
            pictures.append(view.resize((view.width, pictures[0].height)) if pictures else view)
        return Cell(beside(pictures) if pictures else None, tuple(self._lines(batch, index)))

    def _picture(self, batch: Batch, index: int) -> Image.Image:
        """The image as it was before it was normalised, masked patches grey."""
        pixels_CHW = self._pixels(batch["image"][index])
        if "mask" in batch:
            pixels_CHW = _greyed(pixels_CHW, batch["mask"][index].cpu())
        return _pil(pixels_CHW)

    def _pixels(self, image_CHW: Tensor) -> Tensor:
        """In [0, 1]."""
        return image_CHW.float().cpu() * self.std + self.mean

    def _with_boxes(self, image: Image.Image, batch: Batch, index: int) -> Image.Image:
        """Enlarged, so that the names can be read, with boxes and what they hold."""
        things = {name: batch[name][index] for name in ("boxes", "box_labels", "box_masks") if name in batch}
        boxes_n4, labels = things["boxes"].cpu(), things["box_labels"].tolist()
        large = sized(image, _BOXED)
        masks_nHW = things.get("box_masks")
        if masks_nHW is not None and len(masks_nHW):
            masks_nHW = torch.nn.functional.interpolate(
                masks_nHW.cpu()[None].float(), (large.height, large.width), mode="nearest"
            )[0].bool()
        scale = torch.tensor([large.width / image.width, large.height / image.height]).repeat(2)
        names = [self._class(label) for label in labels]
        return draw_boxes(large, boxes_n4 * scale, labels, names, masks_nHW)

    def _lines(self, batch: Batch, index: int) -> list[Line]:
        lines = [Line(text, color=_MASKED if number else INK) for number, text in enumerate(self._texts(batch, index))]
        if "label" in batch:
            lines.append(Line(self._class(int(batch["label"][index]))))
        if "target" in batch:
            lines.append(Line(self._scores(batch["target"][index])))
        if "segments" in batch:
            found = [int(value) for value in batch["segments"][index].unique() if value != IGNORED]
            colors = palette(max(found) + 1) if found else []
            lines += [Line(self._class(value), colors[value]) for value in found[:_MOST_LABELS]]
            lines += [Line(f"and {len(found) - _MOST_LABELS} more")] if len(found) > _MOST_LABELS else []
        if "boxes" in batch:
            count = len(batch["boxes"][index])
            lines.append(Line(f"{count} {'box' if count == 1 else 'boxes'}"))
        return lines

    def _texts(self, batch: Batch, index: int) -> list[str]:
        """Question or caption, and what it looks like with words masked."""
        if self.tokenizer is None or "text_ids" not in batch:
            return []
        packed = "text_segments" in batch
        number_T = batch["text_segments" if packed else "text_keep"][index].int()
        number_T = number_T[:_MOST_TOKENS] if packed else number_T
        texts = [self._row(batch["text_ids"][index], number_T)]
        if "mlm_ids" in batch:
            texts.append("masked: " + self._row(batch["mlm_ids"][index], number_T))
        return texts

    def _row(self, ids_T: Tensor, number_T: Tensor) -> str:
        """Texts of a row, a bar between them: token t is of text `number_T[t]`, 0 is padding; later ones are cut."""
        ids_T = ids_T[: len(number_T)]
        numbers = range(1, int(number_T.max()) + 1)
        return _BETWEEN.join(self._text(ids_T[number_T == number].tolist()) for number in numbers)

    def _text(self, ids: list[int]) -> str:
        """The text of token ids, masked ones as [MASK], those of words that the vocabulary lacks as [UNK]."""
        assert self.tokenizer is not None
        shown = {self.tokenizer.unknown_id: "[UNK]", self.tokenizer.mask_id: "[MASK]"}
        words: list[str] = []
        for name, part in groupby(ids, lambda token: shown.get(token)):
            tokens = list(part)
            words += [self.tokenizer.decode(tokens)] if name is None else [name] * len(tokens)
        return " ".join(" ".join(words).split())

    def _scores(self, target_V: Tensor) -> str:
        """The likeliest answers with their soft scores."""
        scores = target_V.float().topk(min(3, len(target_V)))
        named = zip(scores.values.tolist(), scores.indices.tolist(), strict=True)
        told = [f"{_name(self.answers, index)} ({score:.1f})" for score, index in named if score > 0]
        return ", ".join(told) or "no known answer"

    def _class(self, label: int) -> str:
        return _name(self.classes, label)


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def _is_pictures(value: Any) -> bool:
    """A batch of RGB pictures: a plug-in may call something else `image`."""
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] == 3


def _pil(pixels_CHW: Tensor) -> Image.Image:
    return to_pil_image((pixels_CHW.float().clamp(0, 1) * 255).round().byte().cpu())


def _greyed(pixels_CHW: Tensor, mask_N: Tensor) -> Tensor:
    """The picture with its masked patches grey; as it is where the mask is not one of square patches."""
    _, height, width = pixels_CHW.shape
    rows = round((mask_N.numel() * height / width) ** 0.5)
    if not rows or mask_N.numel() % rows or height % rows or width % (mask_N.numel() // rows):
        return pixels_CHW
    grid = mask_N.bool().reshape(rows, -1)
    mask_HW = grid.repeat_interleave(height // rows, 0).repeat_interleave(width // grid.shape[1], 1)
    return torch.where(mask_HW, _GREY, pixels_CHW)
