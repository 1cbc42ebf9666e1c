"""kill -9 of one of two processes, at random moments, again and again: are the weights those of the unbroken run?

    python benchmarks/survival.py --kills 20 --out survival.json

Trains stage=vl on small scenes with two gloo processes, once undisturbed and once killed: each time one process, drawn
at random, dies at a random moment, half of them in a piece of work that was drawn; the other must end by itself, and
the same command is started again. Reports in what the killed ones were, how long the others took to end, and whether
the last weights, moments and evaluation are equal to the bit. Exit code 1 where they are not.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from vlbeit import cli, launch
from vlbeit.engine.folder import RunFolder
from vlbeit.engine.loop import Engine

assert launch  # loaded here once: what is started below is a copy of this process

STEPS = 40
WORDS = (
    "train", "stage=vl", "init=none", "model.embed_dim=32", "model.depth=3", "model.num_heads=2",
    "model.fused_layers=1", "data.workers=1", "data.limit=48", "global_batch_size=8", "micro_batch_size=4",
    f"steps={STEPS}", "engine.log_every=1", "engine.save_every=4", "engine.evaluate_every=5",
)  # fmt: skip
DOING = ("starting", "step", "waiting for data", "evaluation", "writing weights", "saving the state")
METHODS = {"train_step": 1, "_next": 2, "evaluate": 3, "_export_best": 4, "_save": 5}
PATIENCE = 120.0  # seconds that the other process has to end


class Death(NamedTuple):
    """One kill."""

    rank: int
    doing: str
    step: int | None  # of the last saved state
    seconds: float  # until the other process had ended
    code: int  # with which it ended; -9: it had to be killed too


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("survival.json"))
    options = parser.parse_args()
    out = options.out.absolute()
    with tempfile.TemporaryDirectory() as place, chdir(place):
        assert quiet(lambda: cli.main(["prepare", "scenes", "--out", "data/scenes", "--images", "60"])) == 0
        began = time.monotonic()
        assert Pair("whole").wait() == [0, 0], Path("whole.log").read_text()[-2000:]
        whole = time.monotonic() - began
        print(f"unbroken: {STEPS} steps in {whole:.1f} s", flush=True)
        deaths, runs = survive(options.kills, random.Random(options.seed), whole)
        equal = {run: differing("whole", run) == [] for run in runs}
    found = {
        "kills": len(deaths), "seed": options.seed, "runs": equal,
        "doing": Counter(death.doing for death in deaths),
        "ranks": Counter(str(death.rank) for death in deaths),
        "slowest_end_of_the_other_s": max(death.seconds for death in deaths),
        "hung": sum(death.code == -9 for death in deaths),
        "deaths": [death._asdict() for death in deaths],
    }  # fmt: skip
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "deaths"}), f"wrote {out}", sep="\n")
    return 0 if all(equal.values()) and not found["hung"] else 1


def survive(kills: int, chance: random.Random, whole: float) -> tuple[list[Death], list[str]]:
    """Kill so often, in as many runs as that takes; every run is brought to its end."""
    deaths: list[Death] = []
    runs: list[str] = []
    while len(deaths) < kills:
        runs.append(f"survived{len(runs)}")
        while len(deaths) < kills:
            pair, rank = Pair(runs[-1]), chance.randrange(2)
            pair.wait_until(lambda pair=pair: pair.doing(0) != DOING[0] or pair.over())
            time.sleep(chance.uniform(0, whole / 6))
            if chance.random() < 0.5:  # most of the time is that of steps: half of the kills fall into what is rare
                rare = chance.choice(DOING[2:])
                pair.wait_until(lambda pair=pair, rank=rank, rare=rare: pair.doing(rank) == rare or pair.over())
            if pair.over():
                break
            deaths.append(pair.kill(rank))
            print(f"kill {len(deaths)}: {deaths[-1]}", flush=True)
        assert Pair(runs[-1]).wait() == [0, 0], Path(f"{runs[-1]}.log").read_text()[-2000:]
    return deaths, runs


class Pair:
    """Two processes that train `run`, forked with everything imported."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.shared = mmap.mmap(-1, 2)  # what each is doing: a place in DOING
        self.codes: list[int | None] = [None, None]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.children = [self._start(rank) for rank in (0, 1)]

    def _start(self, rank: int) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        try:  # a copy of this process must never go on above here
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port), "WORLD_SIZE": "2"}
            os.environ |= {**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            log = os.open(f"{self.run}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(log, 1), os.dup2(log, 2)
            for name, number in METHODS.items():
                setattr(Engine, name, telling(getattr(Engine, name), self.shared, rank, number))
            code = cli.main([*WORDS, f"run={self.run}"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def doing(self, rank: int) -> str:
        return DOING[self.shared[rank]]

    def over(self) -> bool:
        """Whether one of them has ended."""
        for rank, child in enumerate(self.children):
            if self.codes[rank] is None and os.waitpid(child, os.WNOHANG)[0]:
                self.codes[rank] = 0
        return any(code is not None for code in self.codes)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            time.sleep(0.001)

    def wait(self) -> list[int]:
        """Their exit codes; those already seen count as they were."""
        return [
            os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if code is None else code
            for child, code in zip(self.children, self.codes, strict=True)
        ]

    def kill(self, rank: int) -> Death:
        """kill -9, and see the other one end."""
        doing = self.doing(rank)
        os.kill(self.children[rank], signal.SIGKILL)
        began = time.monotonic()
        os.waitpid(self.children[rank], 0)
        other, ended = self.children[1 - rank], 0
        while not ended and time.monotonic() - began < PATIENCE:
            ended, status = os.waitpid(other, os.WNOHANG)
            time.sleep(0.001)
        if not ended:
            os.kill(other, signal.SIGKILL)
            _, status = os.waitpid(other, 0)
        seconds = round(time.monotonic() - began, 2)
        return Death(rank, doing, RunFolder(self.run).last_step(), seconds, os.waitstatus_to_exitcode(status))


def telling(method: Callable[..., Any], shared: mmap.mmap, rank: int, number: int) -> Callable[..., Any]:
    """The method, which tells that it is running."""

    def told(*arguments: Any) -> Any:
        before, shared[rank] = shared[rank], number
        result = method(*arguments)
        shared[rank] = before or METHODS["_next"]
        return result

    return told


def differing(left: str, right: str) -> list[str]:
    """What of two finished runs is not equal to the bit."""
    folders = [RunFolder(run) for run in (left, right)]
    state = [load_file(folder.state_of(STEPS) / "model.safetensors") for folder in folders]
    progress = [torch.load(folder.state_of(STEPS) / "progress.pt", weights_only=True) for folder in folders]
    exported = [load_file(folder.checkpoint / "model.safetensors") for folder in folders]
    moments = [
        {
            f"{index}.{name}": value
            for index, values in p["optimizer"]["state"].items()
            for name, value in values.items()
        }
        for p in progress
    ]
    wrong = []
    for what, (one, other) in {"weights": state, "moments": moments, "exported": exported}.items():
        same = one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
        wrong += [] if same else [what]
    evaluations = [json.loads(folder.evaluation_file.read_text()) for folder in folders]
    return (
        wrong
        + ["counters"] * (progress[0]["state"] != progress[1]["state"])
        + ["evaluation"] * (evaluations[0] != evaluations[1])
    )


def quiet(work: Callable[[], int]) -> int:
    """Run in a process of its own, its output left out."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
