"""Every kind of file and folder is made by hand here, small; what is read must be what was written, to the bit."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vlbeit.errors import DataError
from vlbeit.models import weights
from vlbeit.models.weights import open_weights, read_weights

State = dict[str, Tensor]
NEW_AND_OLD = pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])


def some_state() -> State:
    torch.manual_seed(0)
    joined = torch.randn(6, 4)
    return {
        "cls_token": torch.randn(1, 1, 4),
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "double": torch.randn(2, 2).double(),
        "turned": torch.randn(4, 3).t(),
        "upper": joined[:2],
        "lower": joined[2:],
        "index": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "scale": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
    }


def differing(found: State, expected: State) -> list[str]:
    """Names of what is not the same to the bit, or not in the same place."""
    names = [name for one, other in zip_longest(found, expected) if one != other for name in (one, other) if name]
    both = [name for name in expected if name in found]
    return names + [
        name
        for name in both
        if found[name].dtype != expected[name].dtype or not torch.equal(found[name], expected[name])
    ]


def save(value: Any, path: Path, new: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=new)
    return path


class TestTorchFiles:
    @NEW_AND_OLD
    @pytest.mark.parametrize("name", ["a.pth", "a.zip", "a.safetensors", "a.tar.gz", "a"])
    def test_content_decides_not_the_suffix(self, tmp_path: Path, name: str, new: bool) -> None:
        assert differing(read_weights(save(some_state(), tmp_path / name, new)), some_state()) == []

    @NEW_AND_OLD
    def test_training_state_of_unilm(self, tmp_path: Path, new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(
            {
                "model": OrderedDict(some_state()),
                "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]},
                "scaler": {"scale": 65536.0},
                "args": argparse.Namespace(model="beit_base", device="cuda", betas=None),
                "epoch": 3,
            },
            tmp_path / "checkpoint.pth",
            new,
        )
        kinds = []
        real = torch.load
        monkeypatch.setattr(
            torch, "load", lambda *a, **k: kinds.append((k["weights_only"], k["mmap"])) or real(*a, **k)
        )
        found = open_weights(path)
        assert differing(found.state, some_state()) == []
        assert (found.source, found.others, kinds) == ("model", (), [(True, new)])

    @NEW_AND_OLD
    def test_other_entries_hold_what_libraries_leave(self, tmp_path: Path, new: bool) -> None:
        import numpy
        from omegaconf import OmegaConf

        extra = {
            "meta": {"palette": numpy.zeros(3), "best": numpy.float64(0.5), "folder": Path("a/b")},
            "hyper_parameters": OmegaConf.create({"a": [1, None, {"b": "x"}]}),
            "callbacks": {nn.Linear: {"best": torch.tensor(1.0)}},
        }
        found = read_weights(save({"state_dict": some_state(), **extra}, tmp_path / "a.ckpt", new))
        assert differing(found, some_state()) == []

    @NEW_AND_OLD
    def test_what_is_no_tensor_is_dropped(self, tmp_path: Path, new: bool) -> None:
        path = save({**some_state(), "version": 2, "names": ["a"], "empty": None}, tmp_path / "a.pt", new)
        assert differing(read_weights(path), some_state()) == []

    def test_newer_pickle_steps_and_kinds_of_numbers(self, tmp_path: Path) -> None:
        state = {"w": torch.ones(3), "small": torch.ones(4).to(torch.float8_e4m3fn)}
        torch.save({"model": state}, tmp_path / "a.pth", pickle_protocol=4)
        found = read_weights(tmp_path / "a.pth")
        assert found["small"].dtype == torch.float8_e4m3fn and torch.equal(found["w"], state["w"])

    def test_parameters_come_as_plain_tensors(self, tmp_path: Path) -> None:
        found = read_weights(save({"w": nn.Parameter(torch.ones(2))}, tmp_path / "a.pth"))
        assert type(found["w"]) is Tensor and not found["w"].requires_grad

    @NEW_AND_OLD
    def test_shared_numbers_stay_shared(self, tmp_path: Path, new: bool) -> None:
        """By torch's reader and by ours, which takes over where the file names a path."""
        plain = read_weights(save(some_state(), tmp_path / "plain", new))
        ours = read_weights(save({"model": some_state(), "p": Path("x")}, tmp_path / "ours", new))
        assert differing(plain, ours) == []
        for found in (plain, ours):
            assert found["upper"].untyped_storage().data_ptr() == found["lower"].untyped_storage().data_ptr()

    def test_a_zip_file_is_mapped_not_copied(self, tmp_path: Path) -> None:
        size = 64 * 2**20
        for extra in (1, Path("x")):  # read by torch, and by our own reader
            path = save({"model": {"w": torch.ones(size // 4)}, "x": extra}, tmp_path / "big.pth")
            before = _own_memory()
            found = read_weights(path)
            assert _own_memory() - before < size / 4
            found["w"][0] = 7.0  # a change stays in memory
            assert read_weights(path)["w"][0] == 1.0

    def test_a_legacy_file_is_in_memory_once(self, tmp_path: Path) -> None:
        size = 64 * 2**20
        for extra in (1, Path("x")):
            path = save({"model": {"w": torch.ones(size // 4)}, "x": extra}, tmp_path / "big.pth", new=False)
            before = _own_memory()
            found = read_weights(path)
            assert found["w"][-1] == 1.0 and _own_memory() - before < size * 1.5


def _own_memory() -> int:
    """Bytes that this process holds for itself, pages of mapped files left out."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found is None:
        pytest.skip("this system does not say how much memory is its own")
    return int(found[1]) * 1024


class TestModules:
    """Whole modules whose classes are not installed where they are read, as DALL-E's encoder.pkl."""

    @pytest.fixture
    def module(self, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
        foreign = types.ModuleType("dall_e_of_old")

        class Conv2d(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(torch.randn(3, 2, 1, 1))
                self.b = nn.Parameter(torch.randn(3).half())
                self.register_buffer("count", torch.tensor(4))
                self.register_buffer("scratch", torch.randn(2), persistent=False)
                self.register_parameter("absent", None)
                self.device, self.activation = torch.device("cpu"), nn.functional.gelu

        Conv2d.__module__, Conv2d.__qualname__ = foreign.__name__, "Conv2d"
        foreign.Conv2d = Conv2d  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, foreign.__name__, foreign)
        shared = Conv2d()
        return nn.Sequential(OrderedDict(input=Conv2d(), group=nn.Sequential(shared, nn.ReLU(), shared)))

    @NEW_AND_OLD
    @pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
    @pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m}, nn.DataParallel], ids=["bare", "key", "dp"])
    def test_tensors_have_the_names_of_the_state_dict(
        self, tmp_path: Path, module: nn.Module, new: bool, wrap: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, expected = save(wrap(module), tmp_path / "encoder.pkl", new), module.state_dict()
        monkeypatch.delitem(sys.modules, "dall_e_of_old")
        assert differing(read_weights(path), expected) == []
        assert "dall_e_of_old" not in sys.modules

    def test_a_module_that_holds_itself_ends(self, tmp_path: Path) -> None:
        module = nn.Module()
        module.weight = nn.Parameter(torch.ones(1))
        module._modules["inner"] = module
        with pytest.raises(DataError, match="a module in it holds itself"):
            read_weights(save(module, tmp_path / "a.pkl"))


class TestWrappers:
    A, B = {"w": torch.ones(2)}, {"w": torch.zeros(2)}

    @pytest.mark.parametrize(
        ("value", "source", "others"),
        [
            ({"model": A, "model_ema": B}, "model", ("model_ema",)),
            ({"model_ema": B, "module": A}, "module", ("model_ema",)),
            (
                {"state_dict": A, "meta": {"w": torch.zeros(1)}, "epoch": torch.tensor(3)},
                "state_dict",
                ("the top level",),
            ),
            ({"state_dict": B, "model": A}, "model", ("state_dict",)),
            ({"model": {"module": A}}, "model.module", ()),
            ({"student": A, "teacher": B}, "student", ("teacher",)),
            ({"model_ema": A, "epoch": 3}, "model_ema", ()),
            ({"model_ema": A, "teacher": B}, "model_ema", ("teacher",)),
            ({"weights": A, "optimizer": B}, "weights", ()),
            ({"model": "beit_base", "state_dict": A}, "state_dict", ()),
            (A, "", ()),
        ],
    )
    @NEW_AND_OLD
    def test_which_is_taken(self, tmp_path: Path, value: Any, source: str, others: tuple[str, ...], new: bool) -> None:
        found = open_weights(save(value, tmp_path / "a.pth", new))
        assert differing(found.state, self.A) == []
        assert (found.source, found.others) == (source, others)

    @pytest.mark.parametrize(
        "value", [{"encoder": A, "decoder": B}, {"model": {"encoder": A, "decoder": {"model": B}}}]
    )
    def test_two_without_a_name_to_go_by(self, tmp_path: Path, value: Any) -> None:
        with pytest.raises(DataError, match=r"several sets of weights in it \((model\.)?(en|de)coder.*save the one"):
            read_weights(save(value, tmp_path / "a.pth"))

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
    def test_prefixes_of_wrappers_are_cut(self, tmp_path: Path, prefix: str) -> None:
        path = save({prefix + name: value for name, value in some_state().items()}, tmp_path / "a.pth")
        assert differing(read_weights(path), some_state()) == []

    def test_a_prefix_of_some_names_stays(self, tmp_path: Path) -> None:
        assert set(read_weights(save({"module.w": torch.ones(1), "v": torch.ones(1)}, tmp_path / "a"))) == {
            "module.w",
            "v",
        }

    def test_transformer_stays(self, tmp_path: Path) -> None:
        assert list(read_weights(save({"transformer.w": torch.ones(1)}, tmp_path / "a"))) == ["transformer.w"]

    @pytest.mark.parametrize(
        "value", [{}, {"epoch": 3}, [torch.ones(2)], torch.ones(2), {"optimizer": {"w": torch.ones(2)}}]
    )
    def test_no_tensors(self, tmp_path: Path, value: Any) -> None:
        with pytest.raises(DataError, match="no tensors in it"):
            read_weights(save(value, tmp_path / "a.pth"))

    def test_loops_end(self, tmp_path: Path) -> None:
        value: dict[str, Any] = {"a": {"b": []}}
        value["a"]["self"] = value
        with pytest.raises(DataError, match="no tensors in it"):
            read_weights(save(value, tmp_path / "a.pth"))

    def test_sparse_weights_are_named(self, tmp_path: Path) -> None:
        assert list(read_weights(save({"model": self.A, "x": {"head": torch.eye(3).to_sparse()}}, tmp_path / "b"))) == [
            "w"
        ]
        with pytest.raises(DataError, match="head is sparse, quantised, spread over devices"):
            read_weights(save({"w": torch.ones(2), "head": torch.eye(3).to_sparse()}, tmp_path / "a.pth"))


class TestFolders:
    def test_safetensors_file_and_folder(self, tmp_path: Path) -> None:
        state = {name: value.contiguous().clone() for name, value in some_state().items()}
        save_file(state, tmp_path / "model.safetensors")
        shutil.copy(tmp_path / "model.safetensors", tmp_path / "weights.bin")
        for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "weights.bin", str(tmp_path)):
            found = read_weights(path)
            # safetensors has its own order
            assert differing(dict(sorted(found.items())), dict(sorted(state.items()))) == []

    def test_folder_of_several_files(self, tmp_path: Path) -> None:
        for name in ("a.pth", "b.pth"):
            save(some_state(), tmp_path / name)
        with pytest.raises(DataError, match=r"holds 2 files of weights \(a\.pth, b\.pth\): name the one"):
            read_weights(tmp_path)
        save_file({"w": torch.ones(1)}, tmp_path / "c.safetensors")
        assert list(read_weights(tmp_path)) == ["w"]

    def test_bin_folder(self, tmp_path: Path) -> None:
        save(some_state(), tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text("{}")
        assert differing(read_weights(tmp_path), some_state()) == []

    @pytest.fixture(params=["model.safetensors", "pytorch_model.bin"])
    def shards(self, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
        parts = {f"part-{i}": {f"layer.{i}.w": torch.full((2,), float(i))} for i in range(3)}
        for name, state in parts.items():
            save_file(state, tmp_path / name) if "safe" in request.param else save(state, tmp_path / name)
        places = {key: name for name, state in parts.items() for key in state}
        index = tmp_path / f"{request.param}.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": places}))
        return index

    def test_shards(self, shards: Path) -> None:
        assert {name: float(value[0]) for name, value in read_weights(shards.parent).items()} == {
            f"layer.{i}.w": float(i) for i in range(3)
        }

    def test_lost_shard(self, shards: Path) -> None:
        (shards.parent / "part-1").unlink()
        with pytest.raises(DataError, match="1 of 3 files are missing, first part-1"):
            read_weights(shards.parent)

    def test_exchanged_shard(self, shards: Path) -> None:
        shutil.copy(shards.parent / "part-0", shards.parent / "part-1")
        with pytest.raises(DataError, match=r"part-1 lacks layer\.1\.w"):
            read_weights(shards.parent)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {"w": "../other"}}', '{"weight_map": {"w": 3}}'])
    def test_damaged_index(self, shards: Path, text: str) -> None:
        shards.write_text(text)
        with pytest.raises(DataError, match=r"index\.json: a damaged list of files"):
            read_weights(shards.parent)

    @pytest.fixture
    def deepspeed(self, tmp_path: Path) -> Path:
        (tmp_path / "global_step20").mkdir()
        (tmp_path / "latest").write_text("global_step20\n")
        state = {
            "module." + name: value.half() if value.is_floating_point() else value
            for name, value in some_state().items()
        }
        shapes = [OrderedDict((name, value.shape) for name, value in state.items())]
        extra = {"optimizer": None, "param_shapes": shapes, "ds_config": {"train_batch_size": 8}, "skipped_steps": 0}
        unused = {"csr_tensor_module_names": set(), "args": argparse.Namespace(a=1)}
        save({"module": state, **extra, **unused}, tmp_path / "global_step20" / "mp_rank_00_model_states.pt")
        save({"w": torch.ones(1)}, tmp_path / "global_step20" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
        return tmp_path

    def test_deepspeed(self, deepspeed: Path) -> None:
        for folder in (deepspeed, deepspeed / "global_step20"):
            found = open_weights(folder)
            assert list(found.state) == list(some_state()) and found.source == "module"
            assert found.state["cls_token"].dtype == torch.float16

    def test_deepspeed_without_latest(self, deepspeed: Path) -> None:
        (deepspeed / "latest").unlink()
        with pytest.raises(DataError, match=r"lacks the file latest: name one of its steps, as .*global_step20"):
            read_weights(deepspeed)

    @pytest.mark.parametrize("step", ["global_step30", "../elsewhere", ".", "", "/tmp"])
    def test_deepspeed_latest_is_wrong(self, deepspeed: Path, step: str) -> None:
        (deepspeed / "latest").write_text(step)
        with pytest.raises(DataError, match="which is no folder in it"):
            read_weights(deepspeed)

    def test_deepspeed_half_copied(self, deepspeed: Path) -> None:
        (deepspeed / "global_step20" / "mp_rank_00_model_states.pt").unlink()
        with pytest.raises(DataError, match=r"mp_rank_00_model_states\.pt is missing"):
            read_weights(deepspeed)

    @pytest.mark.parametrize("name", ["zero_pp_rank_0_mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"])
    def test_deepspeed_spread_over_processes(self, deepspeed: Path, name: str) -> None:
        (deepspeed / "global_step20" / name).write_bytes(b"x")
        with pytest.raises(DataError, match=r"spread over processes: run DeepSpeed's zero_to_fp32\.py"):
            read_weights(deepspeed)

    def test_folder_without_weights(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(DataError, match=r"holds notes\.txt, but no weights"):
            read_weights(tmp_path)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no such file or folder"):
            read_weights(tmp_path / "absent.pth")


class TestDamage:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "is empty: download"),
            (b"\xff\xd8\xff\xe0" + bytes(600), "a JPEG picture"),
            (b"<!DOCTYPE html><html><body>404</body></html>", "a web page, most likely an error message"),
            (b'\n<?xml version="1.0"?><Error><Code>AuthenticationFailed</Code></Error>', "a web page"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
                "pointer of git-lfs.*git lfs pull",
            ),
            (b"--2021-03-01 10:00:00--  https://cdn.openai.com/dall-e/encoder.pkl\n", "text that begins '--2021"),
            (b"\x1f\x8b\x08\x00" + bytes(40), "packed with gzip"),
            (bytes(257) + b"ustar\x0000" + bytes(300), "a tar archive"),
            (bytes(600), "begins 00 00 00 00"),
            (b"\x80\x02]q\x00.", "a pickle that torch.save did not write"),
            (b"PK\5\6" + bytes(18), "a zip archive of nothing"),
            (struct.pack("<Q", 10**7) + b'{"w":', "a damaged safetensors file"),
        ],
    )
    def test_files_of_another_kind(self, tmp_path: Path, data: bytes, message: str) -> None:
        (tmp_path / "encoder.pkl").write_bytes(data)
        with pytest.raises(DataError, match=message) as caught:
            read_weights(tmp_path / "encoder.pkl")
        assert "\n" not in str(caught.value) and "encoder.pkl" in str(caught.value)

    @pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
    @pytest.mark.parametrize("part", [0.05, 0.5, 0.9, 0.999])
    def test_truncated(self, tmp_path: Path, kind: str, part: float) -> None:
        path, state = tmp_path / "a.pth", {"w": torch.randn(500), "v": torch.randn(50)}
        save_file(state, path) if kind == "safetensors" else save(state, path, kind == "zip")
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(DataError, match="download or copy it again"):
            read_weights(path)

    @pytest.mark.parametrize("extra", [1, Path("x")], ids=["torch", "ours"])
    def test_changed_numbers_in_a_zip(self, tmp_path: Path, extra: Any) -> None:
        path = save({"model": {"w": torch.full((50,), 3.0)}, "x": extra}, tmp_path / "a.pth")
        path.write_bytes(path.read_bytes().replace(struct.pack("<f", 3.0), struct.pack("<f", 5.0), 1))
        with pytest.raises(DataError, match="data/0 differs from its checksum"):
            read_weights(path)

    def test_changed_pickle_in_a_zip(self, tmp_path: Path) -> None:
        path = save({"weight": torch.ones(3)}, tmp_path / "a.pth")
        path.write_bytes(path.read_bytes().replace(b"weight", b"height"))
        with pytest.raises(DataError, match=r"data\.pkl differs from the checksum"):
            read_weights(path)

    def test_a_zip_that_was_saved_without_checksums(self, tmp_path: Path) -> None:
        torch.serialization.set_crc32_options(False)
        try:
            save(some_state(), tmp_path / "a.pth")
        finally:
            torch.serialization.set_crc32_options(True)
        assert differing(read_weights(tmp_path / "a.pth"), some_state()) == []

    def test_other_zip_archives(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("beit/checkpoint.pth", "x")
        with pytest.raises(
            DataError, match=r"a zip archive of beit/checkpoint\.pth, not a file of torch\.save: unpack"
        ):
            read_weights(tmp_path / "a.zip")
        with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
            for part in ("data.pkl", "code/model.py", "constants.pkl"):
                archive.writestr(f"b/{part}", "x", zipfile.ZIP_DEFLATED)
        with pytest.raises(DataError, match="a TorchScript program"):
            read_weights(tmp_path / "b.pt")

    def test_compressed_parts_are_refused(self, tmp_path: Path) -> None:
        """A zip bomb: 100 MB of zeros in 100 KB."""
        save({"w": torch.ones(3)}, tmp_path / "a.pth")
        with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
            for entry in old.infolist():
                content = bytes(10**8) if entry.filename.endswith("data/0") else old.read(entry)
                new.writestr(entry.filename, content, zipfile.ZIP_DEFLATED)
        with pytest.raises(DataError, match="is compressed, torch never does that"):
            read_weights(tmp_path / "b.pth")

    def test_a_part_twice(self, tmp_path: Path) -> None:
        save({"w": torch.ones(3)}, tmp_path / "a.pth")
        with zipfile.ZipFile(tmp_path / "a.pth", "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", b"")
        with pytest.raises(DataError, match="a part is in it twice"):
            read_weights(tmp_path / "a.pth")

    @pytest.mark.parametrize("kind", ["zip", "legacy", "ours", "safetensors"])
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_numbers_that_are_not_finite(self, tmp_path: Path, kind: str, bad: float, dtype: torch.dtype) -> None:
        state, path = {"v": torch.ones(300), "w": torch.ones(300, dtype=dtype)}, tmp_path / "a.pth"
        state["w"][123] = bad
        value = {"model": state, "x": Path("x")} if kind == "ours" else state
        save_file(state, path) if kind == "safetensors" else save(value, path, kind != "legacy")
        with pytest.raises(DataError, match="w holds NaN or infinite numbers"):
            read_weights(path)
        for allow in ("w", "w*", "?"):
            assert set(read_weights(path, allow={allow})) == {"v", "w"}
        with pytest.raises(DataError, match="--allow 'w'"):
            read_weights(path, allow={"W", "w.*"})

    def test_names_from_the_file_stay_on_one_line(self, tmp_path: Path) -> None:
        path = save({"a\n\x1b[31mb": torch.tensor(float("nan"))}, tmp_path / "a.pth")
        with pytest.raises(DataError, match=r"a\?\?\[31mb holds NaN"):
            read_weights(path)

    def test_safetensors_header_with_wrong_sizes(self, tmp_path: Path) -> None:
        for shape, end in (([10**9], 4 * 10**9), ([2], 8), ([10**9], 4)):
            header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
            (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
            with pytest.raises(DataError, match="a damaged safetensors file"):
                read_weights(tmp_path / "a")

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    @pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
    def test_random_damage_never_raises_anything_else(self, tmp_path: Path, kind: str) -> None:
        path, draw = tmp_path / "a.pth", torch.Generator().manual_seed(1)
        state = {"model": {"w": torch.ones(9), "v": torch.arange(3)}, "args": argparse.Namespace(a=1)}
        save_file(state["model"], path) if kind == "safetensors" else save(state, path, kind == "zip")  # type: ignore[arg-type]
        whole, refused = path.read_bytes(), 0
        for _ in range(400):
            data = bytearray(whole)
            for place in torch.randint(min(len(data), 700), (3,), generator=draw).tolist():
                data[place] = int(torch.randint(256, (1,), generator=draw))
            path.unlink()
            path.write_bytes(data)
            try:
                read_weights(path)
            except DataError as error:
                refused += "\n" not in str(error)
        assert refused > 100


def test_torch_reads_nothing_but_plain_names() -> None:
    """The names that are left to torch: tensors, containers, and the one class that official files carry."""
    classes = {name for name in weights._PLAIN_NAMES if not name.startswith(("torch.", "collections.", "builtins."))}
    assert classes == {"argparse.Namespace"}
