"""Tensors written to a file: whole or not at all, and no copy of all of them in memory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vlbeit.models.writing import write_tensors

SUFFIXES = (".safetensors", ".pth")


def read(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)["model"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_parts_of_tensors_and_shared_ones_are_written_whole(suffix: str, tmp_path: Path) -> None:
    whole = torch.randn(300, 40)
    state = {"a": whole, "same": whole, "turned": whole.T, "part": whole[:3], "none": torch.zeros(0), "of": whole[7]}
    path = write_tensors(tmp_path / "new" / f"out{suffix}", state)
    found = read(path)
    assert found.keys() == state.keys() and all(torch.equal(found[name], value) for name, value in state.items())
    assert path.stat().st_size < 3.2 * whole.nbytes  # three whole ones; a part does not bring the rest along
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_the_file_and_is_an_oserror(suffix: str, tmp_path: Path) -> None:
    path = write_tensors(tmp_path / f"out{suffix}", {"a": torch.ones(3)})
    before = path.read_bytes()
    code = (
        "import resource, signal, sys, torch\n"
        "from vlbeit.models.writing import write_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n    write_tensors(sys.argv[1], {'a': torch.zeros(1 << 20)})\n"
        "except OSError as error:\n    print(error.errno, error.filename)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in (f"{errno.EFBIG} {path}", f"{errno.EIO} {path}")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("call", ["write_tensors({}/'a.pth', state)", "save_checkpoint({}, state, {{}}, {{}}, {{}})"])
def test_no_copy_of_everything(call: str, tmp_path: Path) -> None:
    size = 192
    code = (
        "import torch; from pathlib import Path\n"
        "from vlbeit.models.checkpoint import save_checkpoint; from vlbeit.models.writing import write_tensors\n"
        f"state = {{str(i): torch.ones(1 << 20) for i in range({size // 4})}}\n"
        "def peak():\n"
        "    return int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]) / 1024\n"
        f"before = peak(); {call.format(f'Path({str(tmp_path)!r})')}; print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < size / 2
