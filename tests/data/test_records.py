import io
import subprocess
import sys

import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin

from vlbeit.data.picture_sizes import picture_size
from vlbeit.data.records import (
    ChosenRecords,
    FieldColumn,
    FirstRecords,
    ImageError,
    JoinedRecords,
    ListRecords,
    check_several_pictures,
    open_image,
    spread,
    take,
)  # fmt: skip
from vlbeit.errors import DataError


def test_opens_path_bytes_and_image_as_rgb(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (3, 2), 200).save(path)
    for value in (str(path), path, path.read_bytes(), Image.open(path)):
        image = open_image(value)
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (200, 200, 200))


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "webp", "tif"])
def test_a_truncated_image_is_an_error_naming_the_file(tmp_path, draw, suffix):
    path = draw(tmp_path / f"broken.{suffix}", size=(64, 64))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=rf"broken\.{suffix}"):
        open_image(str(path))


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_missing_or_foreign_files_are_errors_naming_the_file(tmp_path, content):
    path = tmp_path / "x.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.jpg"):
        open_image(str(path))
    with pytest.raises(ImageError):
        open_image(content or b"?")


@pytest.mark.parametrize("error", [RuntimeError("x"), IndexError("x"), NotImplementedError("x"), MemoryError()])
def test_whatever_a_decoder_raises_is_the_fault_of_its_file(tmp_path, draw, monkeypatch, error):
    def load(image):
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(ImageError, match=rf"a\.png cannot be read: {str(error) or 'MemoryError'}$"):
        open_image(draw(tmp_path / "a.png"))


def test_no_program_is_run_over_a_picture(tmp_path, monkeypatch):
    """PostScript is a language: whoever sends a picture would choose what Ghostscript does."""
    run = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **options: run.append(arguments))
    path = tmp_path / "a.jpg"
    Image.new("RGB", (20, 20)).save(path, "EPS")
    for value in (path, path.read_bytes()):
        with pytest.raises(ImageError, match="is not an image in a known format"):
            open_image(value)
        assert picture_size(value) is None
    assert run == []


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "AVIF"])
def test_formats_of_data_sets_are_opened_whatever_the_name_says(tmp_path, kind):
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    Image.new("RGB", (20, 10), (200, 0, 0)).save(tmp_path / "a.jpg", kind)
    assert open_image(tmp_path / "a.jpg").getpixel((5, 5))[0] > 190


def test_encoded_bytes_are_decoded():
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (255, 0, 0)).save(file, "PNG")
    assert open_image(file.getvalue()).getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.effect_noise((6, 4), 90).convert("RGB").save(file, "PNG", exif=exif)
    once = open_image(file.getvalue())
    assert once.size == ((4, 6) if orientation > 4 else (6, 4))
    assert open_image(once).tobytes() == once.tobytes() and open_image(once).size == once.size


def test_take():
    records = ListRecords([{"id": str(i), "text": "x" * i} for i in range(5)])
    assert take(records, None) is records and take(records, 9) is records
    first = take(records, 2)
    assert len(first) == 2 and first[1]["id"] == "1" and list(first.column("id")) == ["0", "1"]
    with pytest.raises(IndexError):
        first[2]


@pytest.mark.parametrize("count", [1, 5, 64, 130, 1000])
def test_spread_keeps_captions_of_one_picture_out_of_a_batch(count):
    """Five captions a picture, side by side; every record once."""
    order = [record["n"] for record in spread(ListRecords([{"n": n} for n in range(count)]))]
    assert sorted(order) == list(range(count))
    batches = [order[start : start + 64] for start in range(0, count, 64)]
    assert count < 5 * 64 or all(len({n // 5 for n in batch}) == len(batch) for batch in batches)


def test_records_import_neither_torch_nor_datasets():
    code = "import sys, vlbeit.data.records; print([m for m in ('torch', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_pictures_of_a_part_are_read_one_at_a_time():
    """A column of encoded pictures is never held whole: a data set may be larger than memory."""

    read = []

    class Stored(ListRecords):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

        def column(self, name):
            return FieldColumn(self, name)

    stored = Stored([{"image": bytes([number])} for number in range(6)])
    parts = (ChosenRecords(stored, [4, 2]), FirstRecords(stored, 3), JoinedRecords([stored, stored]))
    for part, row in zip(parts, (2, 1, 1), strict=True):
        read.clear()
        assert part.column("image")[1] == bytes([row]) and read == [row]
        assert list(part.column("image")) == [part[place]["image"] for place in range(len(part))]


def test_a_second_picture_is_enough():
    """The names behind it are not read, and no picture of a stream."""
    read = []

    class Names(list):
        def __iter__(self):
            return (read.append(name) or name for name in super().__iter__())

    class Pairs:
        def column(self, name):
            return Names(["a", "a", "b", "c", "d"])

    check_several_pictures(Pairs())
    assert read == ["a", "a", "b"]
    with pytest.raises(DataError, match="all pairs to train on are of one picture"):
        check_several_pictures(ListRecords([{"picture": "a"}] * 3))
    check_several_pictures(FirstRecords(Streamed(), 3))


class Streamed:
    def column(self, name):
        return FieldColumn(self, name)
