"""Archives as streams: nothing is unpacked, nothing is trusted, damage is named."""

from __future__ import annotations

import tarfile
import tracemalloc
import zipfile
from itertools import islice
from pathlib import Path

import pytest

from vlbeit.data.tar_samples import tar_samples
from vlbeit.data_prep import archives
from vlbeit.data_prep.archives import entries, nested, unsafe_name
from vlbeit.errors import DataError


def read(path: Path) -> dict[str, bytes | str]:
    """Name -> content, or the reason of the refusal."""
    with entries(path) as found:
        return {f"{entry.name}{'!' * bool(entry.refused)}": entry.refused or entry.read() for entry in found}


def header(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar_plain_and_compressed(make_tar, mode):
    path = make_tar("a.tar", [header("sub", tarfile.DIRTYPE), ("sub/a.txt", b"one"), ("./b.txt", b"two" * 9999)], mode)
    assert read(path) == {"sub/a.txt": b"one", "b.txt": b"two" * 9999}


@pytest.mark.parametrize("outer", ["w", "w:gz"])
@pytest.mark.parametrize("inner", ["w", "w:gz"])
def test_a_tar_inside_a_tar(make_tar, pack, outer, inner):
    inside = [(f"n{i}.tar", pack([(f"{i}.jpg", bytes([i])), ("x", b"")], inner)) for i in (1, 2)]
    path = make_tar("a.tar", inside, outer)
    with entries(path) as found:
        members = [(entry.is_tar, [(one.name, one.read()) for one in nested(entry)]) for entry in found]
    assert members == [(True, [("1.jpg", b"\1"), ("x", b"")]), (True, [("2.jpg", b"\2"), ("x", b"")])]


def test_a_tar_inside_a_zip(tmp_path, pack):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("n1.tar", pack([("x.jpg", b"1"), ("y.jpg", b"2")]))
    with entries(tmp_path / "a.zip") as found:
        assert [[(one.name, one.read()) for one in nested(entry)] for entry in found] == [
            [("x.jpg", b"1"), ("y.jpg", b"2")]
        ]


def test_an_inner_tar_is_read_without_a_copy(make_tar, pack):
    path = make_tar("a.tar", [("n.tar", pack([(f"{i}", bytes(2**20)) for i in range(16)]))])
    tracemalloc.start()
    with entries(path) as found:
        assert sum(len(one.read()) for entry in found for one in nested(entry)) == 2**24
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20  # two of the sixteen members would be in memory at most
    assert [file.name for file in path.parent.iterdir()] == ["a.tar"]


def test_members_that_are_refused(make_tar, tmp_path):
    members = [
        ("../up.jpg", b"x"), ("/etc/passwd", b"x"), ("a/../../up.jpg", b"x"), ("..\\up.jpg", b"x"), ("C:\\x.jpg", b"x"),
        header("link.jpg", tarfile.SYMTYPE, "/etc/passwd"), header("hard.jpg", tarfile.LNKTYPE, "good.jpg"),
        header("pipe", tarfile.FIFOTYPE), header("device", tarfile.CHRTYPE), ("good.jpg", b"1"), ("good.jpg", b"2"),
        ("last.jpg", b"3"),
    ]  # fmt: skip
    found = read(make_tar("a.tar", members))
    out = "a path that leads out of the archive"
    assert found == {
        "../up.jpg!": out, "/etc/passwd!": "an absolute path", "a/../../up.jpg!": out, "..\\up.jpg!": out,
        "C:\\x.jpg!": "an absolute path", "link.jpg!": "a link to /etc/passwd", "hard.jpg!": "a link to good.jpg",
        "pipe!": "a device or pipe", "device!": "a device or pipe", "good.jpg": b"1",
        "good.jpg!": "a name that comes twice", "last.jpg": b"3",
    }  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar"]


def test_names():
    assert [unsafe_name(name) for name in ("a/b.jpg", "./a", "a..b/c", "...x")] == [""] * 4
    assert all(unsafe_name(name) for name in ("", ".", "./", "a/..", "a\0b", "a\nb", "//x", "\\x", "d:x"))


def test_sizes_that_no_picture_has(make_tar, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 1000)
    assert read(make_tar("a.tar", [("big.jpg", bytes(1001))])) == {"big.jpg!": "a size of 1001 bytes (limit 1000)"}
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.json", bytes(3 * 2**20))
    (why,) = read(tmp_path / "a.zip").values()
    assert str(why).startswith("packed 1") and str(why).endswith("times, as no picture is")


def test_zip(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("sub/", b"")
        file.writestr("sub/a.jpg", b"one")
        file.writestr("../up.jpg", b"x")
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("sub/a.jpg", b"two")
    with entries(path) as found:
        listed = list(found)  # members of a zip can be read in any order
        assert [entry.read() for entry in listed if not entry.refused] == [b"one"]
    assert [entry.refused for entry in listed[1:]] == [
        "a path that leads out of the archive", "a link", "a name that comes twice",
    ]  # fmt: skip


def test_folder(tmp_path):
    for name in ("b/x.jpg", "a/y.jpg", ".hidden/z.jpg"):
        (tmp_path / "f" / name).parent.mkdir(parents=True)
        (tmp_path / "f" / name).write_text(name)
    (tmp_path / "f/gone.jpg").symlink_to("nowhere")
    assert read(tmp_path / "f") == {"gone.jpg!": "a link to nothing", "a/y.jpg": b"a/y.jpg", "b/x.jpg": b"b/x.jpg"}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("share", [0.3, 0.55, 0.97])
def test_a_tar_that_is_cut_off_names_the_member(make_tar, make_picture, mode, share):
    path = make_tar("a.tar", [(f"{i}.jpg", make_picture(i, size=(64, 64))) for i in range(9)], mode)
    whole = path.read_bytes() if mode == "w:gz" else path.read_bytes().rstrip(b"\0")
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"a.tar is cut off or damaged (in|behind) \d.jpg .*; get it again"):
        read(path)


def test_a_tar_that_is_cut_off_between_two_members(make_tar):
    path = make_tar("a.tar", [(f"{i}.jpg", bytes(512)) for i in range(9)])
    path.write_bytes(path.read_bytes()[: 4 * 1024])  # the next header is not begun: Python alone takes it for the end
    with pytest.raises(DataError, match=r"behind 3.jpg \(empty header\)"):
        read(path)


def test_a_damaged_header_is_not_the_end(make_tar):
    path = make_tar("a.tar", [(f"{i}.jpg", bytes(512)) for i in range(9)])
    data = bytearray(path.read_bytes())
    data[4 * 1024 : 4 * 1024 + 100] = b"?" * 100
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"behind 3.jpg \(bad checksum\)"):
        read(path)


def test_a_cut_inner_tar_names_both(make_tar, pack):
    path = make_tar("a.tar", [("n1.tar", pack([("x.jpg", bytes(2000)), ("y.jpg", bytes(2000))])[:3500])])
    with (
        entries(path) as found,
        pytest.raises(DataError, match=r"a.tar: n1.tar is cut off or damaged behind y.jpg"),
    ):
        [one.name for entry in found for one in nested(entry)]


def test_a_cut_zip_and_what_is_no_archive(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.jpg", bytes(5000))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"a.zip is cut off or damaged behind its beginning"):
        read(path)
    with pytest.raises(DataError, match=r"nowhere.tar does not exist"):
        read(tmp_path / "nowhere.tar")


def test_a_zip_member_with_a_wrong_check_sum(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.jpg", b"abcdefgh" * 100)
    path.write_bytes(path.read_bytes().replace(b"abcdefgh", b"abcdefgX", 1))
    with pytest.raises(DataError, match=r"a.zip is cut off or damaged in x.jpg \(Bad CRC-32"):
        read(path)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_header_that_claims_a_huge_name(tmp_path, format):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz", format=format) as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
        tar.addfile(tarfile.TarInfo("x" * 2**24))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"behind a.jpg \(a name or attributes of 16\d+ bytes\)"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def of_size(size: int, kind: bytes = tarfile.REGTYPE, more: bool = False) -> bytes:
    """A header that gives this size in base 256, and says whether more of a sparse file's map follows."""
    data = bytearray(header("a.jpg", kind).tobuf(tarfile.GNU_FORMAT))
    data[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 256**11).to_bytes(11, "big")
    data[482] = more
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def with_attributes(**attributes: str) -> bytes:
    info = header("a.jpg", tarfile.REGTYPE)
    info.pax_headers = {name.replace("_", "."): value for name, value in attributes.items()}
    return info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (of_size(-512), "a member of -512 bytes"),  # would lead back to itself, for ever
        (of_size(-512, tarfile.GNUTYPE_LONGNAME), "a member of -512 bytes"),  # would take the whole file for a name
        (of_size(2**70), "a member of 1180591620717411303424 bytes"),
        (with_attributes(size="-1024"), "a member of -1024 bytes"),
        (with_attributes(GNU_sparse_map="x"), "invalid literal"),
        (with_attributes(GNU_sparse_major="1", GNU_sparse_minor="0"), "not enough values"),
        (of_size(0, tarfile.GNUTYPE_SPARSE, more=True), "index out of range"),
    ],
)
def test_headers_that_lead_nowhere(tmp_path, damage, message):
    path = tmp_path / "a.tar"
    path.write_bytes(header("1.jpg", tarfile.REGTYPE).tobuf() + damage + bytes(1024 * (damage[482] == 0)))
    behind = rf"a\.tar is cut off or damaged behind 1\.jpg \({message}"
    with pytest.raises(DataError, match=behind), entries(path) as found:
        list(islice(found, 9))
    samples = rf"a\.tar is cut off or damaged, .* at byte 512 {message}"
    with pytest.raises(DataError, match=samples), open(path, "rb") as file:
        list(islice(tar_samples(file, str(path)), 9))


def test_long_names_within_reason(make_tar):
    assert read(make_tar("a.tar", [("d/" * 150 + "x.jpg", b"1")])) == {"d/" * 150 + "x.jpg": b"1"}


def test_names_take_little_memory():
    names = archives.Names()
    tracemalloc.start()
    for number in range(300_000):
        names.add(f"n01440764/n01440764_{number}.JPEG")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 300_000 * 40  # bytes; a set of the names takes about 124 each


def test_headers_behind_headers_without_end(tmp_path):
    """A name for a name for a name: Python calls itself for each."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4
    (tmp_path / "a.tar").write_bytes((info.tobuf(tarfile.GNU_FORMAT) + b"abc".ljust(512, b"\0")) * 2000)
    with pytest.raises(DataError, match=r"a.tar is cut off or damaged behind its beginning \(maximum recursion"):
        read(tmp_path / "a.tar")
