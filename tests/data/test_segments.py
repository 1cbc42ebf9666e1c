"""Reading masks: the zero label, what is not scored, and files that are no masks."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlbeit.data.records import ImageError, ListRecords
from vlbeit.data.segments import check_pairs, open_pair, read_segments
from vlbeit.data.stand_in import stand_in
from vlbeit.errors import DataError

ADE = {"num_classes": 150, "reduce_zero_label": True}
PLAIN = {"num_classes": 4, "reduce_zero_label": False}


def save(path, rows, mode=None, dtype=np.uint8):
    image = Image.fromarray(np.array(rows, dtype))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([255 - i // 3 for i in range(768)])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def test_zero_label_is_reduced_once(tmp_path):
    """0 -> 255, 1..150 -> 0..149, and 255 stays: `label - 1` in uint8 would make 254 of it."""
    path = save(tmp_path / "a.png", [[0, 1, 2], [150, 255, 7]])
    segments = read_segments(path, **ADE)
    assert segments.dtype == torch.uint8 and segments.tolist() == [[255, 0, 1], [149, 255, 6]]
    wrapped = np.array([0, 1, 255], np.uint8) - np.uint8(1)
    assert wrapped.tolist() == [255, 0, 254]  # the trap
    assert torch.equal(read_segments(str(path), **ADE), segments)  # reading leaves nothing behind
    assert torch.equal(read_segments(path.read_bytes(), **ADE), segments)


def test_segments_that_are_written_are_read_back_without_a_second_reduction(tmp_path):
    once = read_segments(save(tmp_path / "a.png", [[0, 1, 2, 150]]), **ADE)
    stored = save(tmp_path / "b.png", once.numpy())
    assert read_segments(stored, num_classes=150, reduce_zero_label=False).tolist() == once.tolist()
    assert read_segments(stored, **ADE).tolist() == [[255, 255, 0, 148]]  # what doing it twice would give


def test_without_the_zero_label_0_is_a_class(tmp_path):
    path = save(tmp_path / "a.png", [[0, 3, 255]])
    assert read_segments(path, **PLAIN).tolist() == [[0, 3, 255]]


@pytest.mark.parametrize(
    ("rows", "mode", "dtype"),
    [
        ([[0, 3, 1]], "P", np.uint8),
        ([[0, 3, 1]], None, np.uint16),
        ([[0, 3, 1]], None, np.int32),
        ([[0, 1, 1]], None, np.bool_),
    ],
)
def test_labels_are_the_numbers_of_palettes_and_of_any_depth(tmp_path, rows, mode, dtype):
    path = save(tmp_path / ("a.tif" if dtype is np.int32 else "a.png"), rows, mode, dtype)
    assert read_segments(path, **PLAIN).tolist() == rows


@pytest.mark.parametrize(
    ("rows", "dtype", "options", "message"),
    [
        ([[4, 0]], np.uint8, PLAIN, r"a\.png: label 4 out of range.*4 classes holds 0\.\.3 and 255 .*without"),
        ([[0, 9, 7, 254]], np.uint8, PLAIN, r"labels 7, 9, 254 out of range"),
        ([[151, 0]], np.uint8, ADE, r"label 151 out of range.*0 \(not scored\), 1\.\.150 and 255 .* with reduce_zero"),
        ([[256, 511]], np.uint16, PLAIN, r"labels 256, 511 out of range"),  # 8 bits would make 0 and 255 of them
        ([list(range(10, 30))], np.uint8, PLAIN, r"labels 10, 11, 12, 13, 14, \.\.\. out of range"),
    ],
)
def test_labels_out_of_range_name_file_and_values(tmp_path, rows, dtype, options, message):
    with pytest.raises(DataError, match=message) as error:
        read_segments(save(tmp_path / "a.png", rows, dtype=dtype), **options)
    assert not isinstance(error.value, ImageError) and "task.reduce_zero_label" in str(error.value)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_are_refused_with_a_remedy(tmp_path, mode):
    Image.new(mode, (4, 3)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=rf"m\.png has mode {mode}, it is no map of classes: write one number") as error:
        read_segments(tmp_path / "m.png", **PLAIN)
    assert not isinstance(error.value, ImageError)  # every mask of such a set is like this: stop, do not replace


@pytest.mark.parametrize("content", [None, b"", b"not an image", "cut"])
def test_a_mask_that_cannot_be_read_is_an_image_error(tmp_path, content):
    path = tmp_path / "m.png"
    if content == "cut":
        save(path, np.random.default_rng(0).integers(0, 4, (64, 64)))
        path.write_bytes(path.read_bytes()[:400])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"m\.png"):
        read_segments(path, **PLAIN)


def test_a_mask_with_nothing_to_score(tmp_path):
    assert read_segments(save(tmp_path / "a.png", [[0, 0], [255, 0]]), **ADE).tolist() == [[255, 255], [255, 255]]


@pytest.mark.parametrize(("classes", "reduced"), [(0, False), (256, False), (255, True)])
def test_classes_must_leave_255_free(tmp_path, classes, reduced):
    with pytest.raises(DataError, match=rf"masks of {classes} classes: 1\.\.{255 - reduced} can be told"):
        read_segments(tmp_path / "a.png", num_classes=classes, reduce_zero_label=reduced)


def record_of(folder, image_size=(3, 2), mask_size=(3, 2)):
    Image.new("RGB", image_size, (9, 8, 7)).save(folder / "i.png")
    save(folder / "m.png", np.ones(mask_size[::-1], np.uint8))
    return {"id": "the id", "image": str(folder / "i.png"), "mask": str(folder / "m.png")}


def test_open_pair(tmp_path):
    record = record_of(tmp_path)
    image, segments = open_pair(record, 4, True)
    assert image.mode == "RGB" and image.size == (3, 2) and segments.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_pair_of_different_sizes_names_both(tmp_path):
    record = record_of(tmp_path, mask_size=(2, 3))
    with pytest.raises(DataError, match=r"i\.png has 3x2 pixels, but .*m\.png 2x3; take both from the same"):
        open_pair(record, 4, True)
    record = {key: value if key == "id" else Path(value).read_bytes() for key, value in record.items()}
    with pytest.raises(DataError, match=r"the image of the id has 3x2 pixels, but the mask of the id 2x3"):
        open_pair(record, 4, True)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_beside_a_mask_stays_as_it_is_stored(tmp_path, orientation):
    record = record_of(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new("RGB", (3, 2))
    stored.putpixel((0, 0), (255, 0, 0))
    stored.save(record["image"], exif=exif)
    image, segments = open_pair(record, 4, True)
    assert image.getpixel((0, 0)) == (255, 0, 0) and image.size == (3, 2) == tuple(segments.shape[::-1])
    assert (stand_in({**record, "mask": "none.png"})["mask"][16:24]) == bytes([0, 0, 0, 3, 0, 0, 0, 2])


def test_a_split_without_a_scored_pixel_is_refused_or_where_not_all_was_seen_a_warning(tmp_path, caplog):
    record = record_of(tmp_path)
    save(Path(record["mask"]), [[255] * 3] * 2)
    with pytest.raises(DataError, match="no pixel of 64 masks of the split 'val' is scored, of 64 that it has"):
        check_pairs(ListRecords([record] * 64), "val", 4, True)
    check_pairs(ListRecords([record] * 65), "val", 4, True)
    assert "no pixel of 33 masks of the split 'val' is scored, of 65 that it has" in caplog.text


def test_a_mask_of_bytes_is_named_by_its_record(tmp_path):
    record = {**record_of(tmp_path), "mask": b"?"}
    with pytest.raises(ImageError, match=r"^the id: an image of 1 bytes is not an image"):
        open_pair(record, 4, True)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "I;16", "P", "1"])
def test_pictures_of_any_mode_go_with_a_mask(tmp_path, mode):
    deep = np.full((2, 3), 257 * 100, np.uint16)
    image = Image.fromarray(deep) if mode == "I;16" else Image.new(mode, (3, 2))
    file = io.BytesIO()
    image.save(file, "TIFF")
    record = {**record_of(tmp_path), "image": file.getvalue()}
    image, segments = open_pair(record, 4, False)
    assert image.mode == "RGB" and image.size == (3, 2) and segments.shape == (2, 3)
    assert mode != "I;16" or image.getpixel((0, 0)) == (100, 100, 100)
