"""Pickles that would run code if they were unpickled: each is refused in every kind of file, and leaves no trace."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from vlbeit.errors import DataError
from vlbeit.models.pickles import read
from vlbeit.models.standins import Standin
from vlbeit.models.weights import read_weights


class Call(NamedTuple):
    """Pickles as a call of `function`, like an object whose __reduce__ says so."""

    function: Any
    arguments: tuple[Any, ...]
    state: Any = None

    def __reduce__(self) -> Any:
        return (self.function, self.arguments) if self.state is None else (self.function, self.arguments, self.state)


class Settable:
    """A class with a method that unpickling calls by itself."""

    def __setstate__(self, state: Any) -> None:
        Path(state).touch()


def as_zip(content: bytes, parts: dict[str, bytes] | None = None) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, part in {"data.pkl": content, "version": b"3\n", **(parts or {})}.items():
            archive.writestr(f"archive/{name}", part)
    return target.getvalue()


def as_legacy(content: bytes) -> bytes:
    frame = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": sys.byteorder == "little"})
    return b"".join(pickle.dumps(part, 2) for part in frame) + content + pickle.dumps([], 2)


def as_legacy_format(content: bytes) -> bytes:
    """In place of the first pickle, which tells the format."""
    return content + b"\x80\x02N."


FILES = {"zip": as_zip, "legacy": as_legacy, "format": as_legacy_format, "plain": lambda content: content}


def payloads(trace: str) -> dict[str, bytes]:
    """Pickles that make the file `trace` when they are unpickled by Python."""
    touch = Call(os.system, (f"touch {trace}",))
    program = f"open({trace!r}, 'w')"
    command = b"X" + len(trace).to_bytes(4, "little") + trace.encode()
    deep: Any = touch
    for _ in range(200):
        deep = [deep]
    return {
        "os.system": pickle.dumps(touch, 2),
        "protocol 0": b"\x80\x02" + pickle.dumps(touch, 0),
        "protocol 4": pickle.dumps(touch, 4),
        "protocol 5": pickle.dumps(touch, 5),
        "eval": pickle.dumps(Call(eval, (program,)), 2),
        "exec": pickle.dumps(Call(exec, (program,)), 2),
        "Popen": pickle.dumps(Call(subprocess.check_call, (["touch", trace],)), 2),
        "open": pickle.dumps(Call(open, (trace, "w")), 2),
        "in a state dict": pickle.dumps({"model": OrderedDict(w=1.0, v=touch)}, 2),
        "in its arguments": pickle.dumps(Call(OrderedDict, ([["a", touch]],)), 2),
        "in a state": pickle.dumps(Call(OrderedDict, (), {"_metadata": touch}), 2),
        "as a key": pickle.dumps({(touch,): 1}, 2),
        "deep": pickle.dumps({"model": deep}, 2),
        "getattr of a module": b"\x80\x02cbuiltins\ngetattr\ncimportlib\nimport_module\nX\x02\x00\x00\x00os\x85R"
        b"X\x05\x00\x00\x00mkdir\x86R" + command + b"\x85R.",
        "INST": b"\x80\x02(" + command + b"ios\nmkdir\n.",
        "OBJ": b"\x80\x02(cos\nmkdir\n" + command + b"o.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + command + b"\x85R.",
        "a name below a name": b"\x80\x04\x8c\x07pathlib\x8c\x08os.mkdir\x93" + command + b"\x85R.",
        "with its result built": b"\x80\x02cos\nmkdir\n" + command + b"\x85R}b.",
        "after the memo": b"\x80\x02cos\nmkdir\nq\x000h\x00" + command + b"\x85R.",
        "setstate": b"\x80\x02cfunctools\npartial\ncbuiltins\nint\n\x85R(cos\nmkdir\n" + command + b"\x85}Ntb)R.",
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted(payloads("x")))
def test_the_payloads_do_run_when_unpickled(tmp_path: Path, kind: str) -> None:
    trace = tmp_path / "trace"
    with suppress(pickle.UnpicklingError, TypeError, AttributeError):  # after the deed
        pickle.loads(payloads(str(trace))[kind])
    assert trace.exists()


@pytest.mark.parametrize("file", sorted(FILES))
@pytest.mark.parametrize("kind", sorted(payloads("x")))
def test_code_is_refused_and_does_not_run(tmp_path: Path, kind: str, file: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "model.pth"
    path.write_bytes(FILES[file](payloads(str(trace))[kind]))
    with pytest.raises(
        DataError, match=r"model\.pth: it (asks for|calls) .*can run code; nothing was run\. Get the file"
    ) as caught:
        read_weights(path)
    assert not trace.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_beside_real_weights(tmp_path: Path, new: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / "a.pth"
    value = {"model": {"w": torch.ones(2)}, "args": [Call(os.system, (f"touch {trace}",))]}
    torch.save(value, path, _use_new_zipfile_serialization=new)
    with pytest.raises(DataError, match=r"it asks for (posix|nt)\.system"):
        read_weights(path)
    assert not trace.exists()


def test_classes_of_the_file_are_not_imported_nor_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance is stood in for: neither its module is imported nor is its __setstate__ called."""
    (tmp_path / "imported_by_name.py").write_text("import pathlib; pathlib.Path(__file__).with_name('trace').touch()")
    monkeypatch.syspath_prepend(tmp_path)
    content = pickle.dumps(Settable(), 2).replace(
        f"c{__name__}\nSettable\n".encode(), b"cimported_by_name\nSettable\n"
    ).replace(b"}", b"X\x05\x00\x00\x00trace")  # fmt: skip
    value = read(io.BytesIO(content)).value
    assert isinstance(value, Standin) and value.of == "imported_by_name.Settable"
    assert "imported_by_name" not in sys.modules and not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02ctorch.nn.modules.linear\nLinear\n}X\x0c\x00\x00\x00__setstate__K\x01sb.", "it changes torch.nn"),
        (b"\x80\x02ctorch.hub\nload\nX\x01\x00\x00\x00a\x85R.", "it calls torch.hub.load"),
        (b"\x80\x02cnumpy.testing._private.utils\nrunstring\n)R.", "it calls numpy.testing"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\n)R.", "it calls torch.storage._load_from_bytes"),
        (b"\x80\x02ctorch.serialization\nos.system\n)R.", r"it calls torch.serialization.os.system"),
        (b"\x80\x02ctimm\nsubprocess.Popen\n)R.", "it calls timm.subprocess.Popen"),
        (b"\x80\x02c__main__\nrun\n)R.", "it calls __main__.run"),
        (b"\x80\x02cbuiltins\ngetattr\n)R)R.", "it calls what another call returned"),
        (b"\x80\x02cfunctools\npartial\n)R)R.", "it calls what another call returned"),
        (b"\x80\x02ccopyreg\nadd_extension\n)R.", "it asks for copyreg.add_extension"),
        (b"\x80\x02ccopy_reg\npickle\n)R.", "it asks for copyreg.pickle"),
        (b"\x80\x02c__builtin__\neval\n)R.", "it asks for builtins.eval"),
        (b"\x80\x02ccopyreg\n__newobj__\ncos\nsystem\n\x85R.", "it asks for os.system"),
        (b"\x80\x02csubprocess\nPopen\n)\x81.", "it asks for subprocess.Popen"),
        (b"\x80\x04csubprocess\nPopen\n)}\x92.", "it asks for subprocess.Popen"),
        (b"\x80\x02\x82\x01.", "it takes the step EXT1"),
        (b"\x80\x05\x97.", "it takes the step NEXT_BUFFER"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "outside the pickle that is no storage"),
        (b"\x80\x02R.", "cut short or damaged"),
        (b"\x80\x02]a.", "cut short or damaged"),
        (b"\x80\x02h\x05.", "cut short or damaged"),
        (b"\x80\x02}", "cut short or damaged"),
    ],
)
def test_tricks(content: bytes, message: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=message):
        read(io.BytesIO(content))


def test_nothing_of_this_process_is_changed() -> None:
    """Registries and classes that a pickle could reach are as before."""
    before = dict(copyreg.dispatch_table), dict(vars(OrderedDict)), set(sys.modules)
    for content in payloads(os.devnull).values():
        with pytest.raises(pickle.UnpicklingError):
            read(io.BytesIO(content))
    assert (dict(copyreg.dispatch_table), dict(vars(OrderedDict)), set(sys.modules)) == before


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values(protocol: int) -> None:
    value = {
        "a": [1, -(2**70), 2.5, None, True, False, "é\n", b"x\x00", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "b": {"c": OrderedDict([("d", [[]])]), 3: "e" * 300, 4: b"f" * 300, 5: 70000, 6: 300},
    }
    value["again"] = value["a"]
    found = read(io.BytesIO(pickle.dumps(value, protocol))).value
    if protocol < 3:  # bytes were a call then: they are stood in for
        found["a"][7], found["b"][4] = value["a"][7], value["b"][4]  # type: ignore[index]
    assert found == value and found["again"] is found["a"]


def test_instances_keep_their_attributes() -> None:
    instance = Settable()
    instance.__dict__.update(depth=12)
    found = read(io.BytesIO(pickle.dumps(instance, 2))).value
    assert found.state == {"depth": 12} and found.of.endswith("Settable")


class Stored(NamedTuple):
    """A storage that the file claims to have; `view`: key, start and length of a part, as in files of torch 0.3."""

    numel: int
    kind: Any = torch.FloatStorage
    view: Any = None


class Claim(NamedTuple):
    """A tensor that the file claims to have."""

    storage: Stored
    size: Any
    stride: Any
    offset: int = 0

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, (
            self.storage,
            self.offset,
            self.size,
            self.stride,
            False,
            OrderedDict(),
        )


def claimed(value: Any, legacy: bool) -> bytes:
    target = io.BytesIO()

    class WithStorages(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            if not isinstance(thing, Stored):
                return None
            return ("storage", thing.kind, "0", "cpu", thing.numel) + ((thing.view,) if legacy else ())

    WithStorages(target, 2).dump(value)
    return target.getvalue()


def zip_of(value: Any) -> bytes:
    return as_zip(claimed(value, legacy=False), {"data/0": bytes(8) + b"\0\0\x80\x3f" * 2})


def legacy_of(value: Any, numel: int = 4) -> bytes:
    start = as_legacy(claimed(value, legacy=True)).removesuffix(pickle.dumps([], 2))
    count = numel.to_bytes(8, "little", signed=True)
    return start + pickle.dumps(["0"], 2) + count + bytes(8) + b"\0\0\x80\x3f" * 2


SOUND = Claim(Stored(4), (2, 2), (2, 1))
WRITERS: dict[str, Callable[[Any], bytes]] = {"zip": zip_of, "legacy": legacy_of}


class TestSizes:
    """Files that claim more than they hold; each holds four float32 numbers."""

    @pytest.mark.parametrize("extra", [None, Path("x")], ids=["torch", "ours"])
    @pytest.mark.parametrize("file", sorted(WRITERS))
    def test_the_sound_file(self, tmp_path: Path, file: str, extra: Any) -> None:
        (tmp_path / "a").write_bytes(WRITERS[file]({"model": {"w": SOUND}, "extra": extra}))
        assert torch.equal(read_weights(tmp_path / "a")["w"], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))

    @pytest.mark.parametrize("file", sorted(WRITERS))
    def test_numbers_of_a_graphics_card_come_to_the_cpu(self, tmp_path: Path, file: str) -> None:
        claim = Claim(Stored(4, torch.cuda.FloatStorage), (4,), (1,))
        (tmp_path / "a").write_bytes(WRITERS[file]({"w": claim}))
        assert read_weights(tmp_path / "a")["w"].tolist() == [0.0, 0.0, 1.0, 1.0]

    @pytest.mark.parametrize("extra", [None, Path("x")], ids=["torch", "ours"])
    def test_part_of_a_storage(self, tmp_path: Path, extra: Any) -> None:
        part = Claim(Stored(4, view=("part", 1, 2)), (2,), (1,))
        (tmp_path / "a").write_bytes(legacy_of({"model": {"w": part}, "extra": extra}))
        assert torch.equal(read_weights(tmp_path / "a")["w"], torch.tensor([0.0, 1.0]))
        (tmp_path / "b").write_bytes(legacy_of({"w": part._replace(storage=Stored(4, view=("part", 3, 2)))}))
        with pytest.raises(DataError, match="a part of storage 0 ends beyond its 4 numbers"):
            read_weights(tmp_path / "b")

    @pytest.mark.parametrize("file", sorted(WRITERS))
    @pytest.mark.parametrize(
        "claim",
        [
            Claim(Stored(10**12), (10**12,), (1,)),
            Claim(Stored(5), (5,), (1,)),
            Claim(Stored(4, torch.DoubleStorage), (4,), (1,)),
            Claim(Stored(4), (10**12,), (1,)),
            Claim(Stored(4), (10**6, 10**6), (0, 0)),
            Claim(Stored(4), (2, 2), (3, 1)),
            Claim(Stored(4), (2,), (1,), 3),
            Claim(Stored(4), (2,), (1,), 10**15),
            Claim(Stored(4), (-1,), (1,)),
            Claim(Stored(4), (2,), (-1,), 1),
            Claim(Stored(4), (2, 2), (1,)),
            Claim(Stored(4), (2.0,), (1,)),
            Claim(Stored(4), (True,), (1,)),
            Claim(Stored(4), (1,) * 70, (1,) * 70),
            Claim(Stored(4), "ab", "cd"),
            Claim(Stored(-4), (0,), (1,)),
            Claim(Stored(2**200), (2**200,), (1,)),
        ],
        ids=str,
    )
    def test_wrong_claims(self, tmp_path: Path, file: str, claim: Claim) -> None:
        (tmp_path / "a").write_bytes(WRITERS[file]({"w": SOUND, "v": claim}))
        with pytest.raises(DataError, match="download or copy it again"):
            read_weights(tmp_path / "a")

    @pytest.mark.parametrize("numel", [5, 10**12, 2**62, -1, 3])
    def test_wrong_count_in_a_legacy_file(self, tmp_path: Path, numel: int) -> None:
        (tmp_path / "a").write_bytes(legacy_of({"w": SOUND}, numel))
        with pytest.raises(DataError, match=r"beyond the end of the file|should be 16 bytes and holds 12"):
            read_weights(tmp_path / "a")

    def test_missing_part(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(as_zip(claimed({"w": SOUND}, legacy=False)))
        with pytest.raises(DataError, match="storage 0 should be 16 bytes and is missing"):
            read_weights(tmp_path / "a")

    @pytest.mark.parametrize("file", sorted(WRITERS))
    @pytest.mark.parametrize(
        "call", [Call(bytearray, (10**13,)), Call(torch.FloatTensor, (10**13,))], ids=["bytes", "tensor"]
    )
    def test_calls_that_would_reserve_memory(self, tmp_path: Path, file: str, call: Call) -> None:
        """torch's own list of safe names has these."""
        (tmp_path / "a").write_bytes(WRITERS[file]({"model": {"w": SOUND}, "x": call}))
        assert list(read_weights(tmp_path / "a")) == ["w"]

    def test_long_strings_that_are_not_there(self) -> None:
        for step in (b"\x8e", b"\x8d", b"\x96"):
            with pytest.raises(pickle.UnpicklingError, match="cut short or damaged"):
                read(io.BytesIO(b"\x80\x05" + step + (2**40).to_bytes(8, "little") + b"x."))
