"""What two processes do in the tests of `test_many.py`: `python ranks.py FOLDER` forks both ranks for each of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
import toy

from vlbeit import dist
from vlbeit.engine import processes, shard_files
from vlbeit.engine.checkpoint import read_weights
from vlbeit.engine.device import make_accelerator
from vlbeit.engine.folder import RunFolder
from vlbeit.errors import DataError, UserError

OWN = {"micro_batch": 2, "dropout": 0.0, "precision": "fp64", "ema_decay": 0.9, "clip_grad": 0.5}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
WAYS = ("killed", "stopped", "refused", "broken", "agreed", "waits", "main refused", "main broken")
MODES = {
    "whole": {"checkpoint": "whole"},
    "parts": {"checkpoint": "sharded"},
    "whole, later": {"checkpoint": "whole", "async_save": True},
    "parts, later": {"checkpoint": "sharded", "async_save": True},
}


def train(root: Path) -> None:
    """A run of each way to save, broken off in the middle and gone on with; and what a failed write is told as."""
    make_accelerator("cpu", "fp64", timeout=60)
    for name, mode in MODES.items():
        toy.make_engine(root / name, stream=toy.Samples(2), steps=8, schedule_steps=12, **OWN, **mode).fit()
        engine = toy.make_engine(root / name, stream=toy.Samples(2), **OWN, **mode)
        engine.fit()
    restored = toy.Regression().double()
    read_weights(root / "parts" / "state" / "step-000012", restored)
    told = {"sharded": engine.weights.sharded, "scale": restored.scale.item()}
    for later in (False, True):
        told[f"full disk, {later}"] = full_disk(root / f"full {later}", later)
    (root / f"rank{dist.rank()}.json").write_text(json.dumps(told))
    dist.barrier()


def full_disk(path: Path, later: bool) -> str:
    """What is said where process 1 cannot write its part of the second state."""
    engine = toy.make_engine(path, stream=toy.Samples(2), checkpoint="sharded", async_save=later, **OWN)
    write = shard_files.FileSystemWriter.write_data

    def failing(self, plan, planner):
        if dist.rank() == 1 and "step-000008" in str(self.path):
            raise OSError(28, "No space left on device")
        return write(self, plan, planner)

    shard_files.FileSystemWriter.write_data = failing
    try:
        engine.fit()
    except DataError as error:
        return str(error)
    finally:
        shard_files.FileSystemWriter.write_data = write
    return ""


def fail(root: Path) -> None:
    """Process 1 ends in the third step, in the way that the folder is named for: what process 0 says, and how soon."""
    make_accelerator("cpu", "fp64", timeout=3 if root.name == "stopped" else 60)
    processes.PATIENCE = 2.5
    engine = toy.make_engine(root, stream=Ending(root.name), save_every=1, **OWN)
    started = time.monotonic()
    try:
        with processes.together(RunFolder(root).say_intact):
            if root.name == "waits":  # no collective: for the main process, and it never comes
                if dist.is_main():
                    time.sleep(0.5)
                    os.kill(os.getpid(), signal.SIGKILL)
                dist.wait_for_main()
            if root.name.startswith("main "):
                processes.GRACE = 20.0  # rank 1 ends before its thread has to end it
                dist.on_main(lambda: main_fails(root.name))
            engine.fit()
    except UserError as error:
        told = {"said": str(error), "quiet": error.quiet, "seconds": time.monotonic() - started}
        (root / f"rank{dist.rank()}.json").write_text(json.dumps(told))
        os._exit(error.exit_code)
    except KeyError:
        os._exit(3)


def main_fails(way: str) -> None:
    raise DataError("runs/vl is in use") if way == "main refused" else KeyError("ours")


class Ending(toy.Samples):
    """Samples in reading which process 1 ends."""

    def __init__(self, way: str) -> None:
        super().__init__(2)
        self.way = way

    def batch(self, step, start, stop):
        if step == 3 and start == 4 and dist.rank() == 1:
            if self.way == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.way == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.way == "refused":
                raise DataError("shard 7 has vanished")
            if self.way == "broken":
                raise KeyError("ours")
        if step == 3 and self.way == "agreed":
            raise DataError("all of us")
        return super().batch(step, start, stop)


def rank(job: Callable[[Path], None], folder: Path, number: int, environment: dict[str, str]) -> int:
    """The id of a forked process that does a job as one rank; what it says goes to a file."""
    child = os.fork()
    if child:
        return child
    os.environ |= {**environment, "RANK": str(number), "LOCAL_RANK": str(number)}
    said = os.open(folder / f"said{number}", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1), os.dup2(said, 2)
    try:
        job(folder)
    except BaseException:
        traceback.print_exc()
        os._exit(99)
    os._exit(0)


def two(job: Callable[[Path], None], folder: Path, **environment: str) -> list[int]:
    """Both ranks of a job."""
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    return [rank(job, folder, number, {**common, **environment}) for number in (0, 1)]


def codes(pair: list[int]) -> list[int]:
    """How they ended; the second may have to be woken first."""
    first = os.waitstatus_to_exitcode(os.waitpid(pair[0], 0)[1])
    os.kill(pair[1], signal.SIGCONT)
    return [first, os.waitstatus_to_exitcode(os.waitpid(pair[1], 0)[1])]


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    trained = {"ddp": two(train, root / "ddp"), "fsdp": two(train, root / "fsdp", **FSDP)}
    found = {name: codes(pair) for name, pair in trained.items()}
    failing = {way: two(fail, root / way) for way in WAYS}
    (root / "codes.json").write_text(json.dumps(found | {way: codes(pair) for way, pair in failing.items()}))
