"""kill -9 of one of two processes, at random moments, again and again: are the weights those of the unbroken run?

    python benchmarks/survival.py --kills 20 --out survival.json
    python benchmarks/survival.py --words engine.checkpoint=sharded engine.async_save=true data.workers=2

Trains stage=vl on small scenes with two gloo processes, once undisturbed and once killed: each time one process, drawn
at random, dies at a random moment: of five one while it starts, two in a piece of work that was drawn, two at any time;
the other must end by itself, and the same command is started again. `--out` gets in what the killed ones were, how long
the others took to end, and whether the last weights, moments and evaluations are equal to the bit. Exit code 1 where
they are not, or a process hung.
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
from torch.distributed.checkpoint import FileSystemReader

from vlbeit import cli, launch
from vlbeit.engine import shard_files
from vlbeit.engine.folder import RunFolder
from vlbeit.engine.loop import Engine

assert launch  # loaded here once: what is started below is a copy of this process

STEPS = 40
WORDS = (
    "train", "stage=vl", "init=none", "model.embed_dim=32", "model.depth=3", "model.num_heads=2",
    "model.fused_layers=1", "data.workers=1", "data.limit=48", "global_batch_size=8", "micro_batch_size=4",
    f"steps={STEPS}", "engine.log_every=1", "engine.save_every=4", "engine.evaluate_every=5",
    "engine.timeout=30",
)  # fmt: skip
DOING = ("starting", "step", "waiting for data", "evaluation", "writing weights", "saving the state")
METHODS = {"train_step": 1, "_next": 2, "evaluate": 3, "_export_best": 4, "_save": 5}
PATIENCE = 120.0  # seconds that the other process has to end
LONGEST = 1800.0  # seconds that a run, or any part of it, may take


class Death(NamedTuple):
    """One kill."""

    rank: int
    doing: str
    step: int | None  # of the last saved state; None: none yet
    seconds: float  # until the other process had ended
    code: int  # with which it ended; -9: it had to be killed too


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--words", nargs="*", default=[], help="more words for `vlbeit train`")
    parser.add_argument("--out", type=Path, default=Path("survival.json"))
    options = parser.parse_args()
    out = options.out.absolute()
    with tempfile.TemporaryDirectory() as place, chdir(place):
        assert quiet(lambda: cli.main(["prepare", "scenes", "--out", "data/scenes", "--images", "60"])) == 0
        began = time.monotonic()
        pair = Pair("whole", options.words)
        pair.wait_until(pair.has_begun)
        start = time.monotonic() - began
        pair.wait_for_success()
        whole = time.monotonic() - began
        print(f"unbroken: {STEPS} steps in {whole:.1f} s, the first after {start:.1f} s", flush=True)
        deaths, runs = survive(options, start, whole)
        equal = {run: differing("whole", run) == [] for run in runs}
    found = {
        "kills": len(deaths), "seed": options.seed, "words": options.words, "runs": equal,
        "doing": Counter(death.doing for death in deaths),
        "ranks": Counter(str(death.rank) for death in deaths),
        "slowest_end_of_the_other_s": max(death.seconds for death in deaths),
        "hung": sum(death.code == -9 for death in deaths),
        "deaths": [death._asdict() for death in deaths],
    }  # fmt: skip
    out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "deaths"}), f"wrote {out}", sep="\n")
    return 0 if all(equal.values()) and not found["hung"] else 1


def survive(options: argparse.Namespace, start: float, whole: float) -> tuple[list[Death], list[str]]:
    """Kill so often, in as many runs as that takes; every run is brought to its end.

    `start`, `whole`: seconds that an unbroken run takes to its first step and to its end.
    """
    chance = random.Random(options.seed)
    deaths: list[Death] = []
    runs: list[str] = []
    while len(deaths) < options.kills:
        runs.append(f"survived{len(runs)}")
        while len(deaths) < options.kills:
            pair, rank = Pair(runs[-1], options.words), chance.randrange(2)
            wait_for_a_moment(pair, rank, chance, start, whole)
            if pair.over():
                pair.wait_for_success()
                break
            deaths.append(pair.kill(rank))
            print(f"kill {len(deaths)}: {deaths[-1]}", flush=True)
        Pair(runs[-1], options.words).wait_for_success()
    return deaths, runs


def wait_for_a_moment(pair: Pair, rank: int, chance: random.Random, start: float, whole: float) -> None:
    """Most of the time is that of steps: more kills than would fall there by themselves fall into what is rare."""
    kind = chance.choices(("start", "rare", "any"), (1, 2, 2))[0]
    if kind == "start":
        time.sleep(chance.uniform(0, start))
        return
    pair.wait_until(pair.has_begun)
    time.sleep(chance.uniform(0, whole / 6))
    if kind == "rare":
        rare = chance.choice(DOING[2:])
        pair.wait_until(lambda: pair.doing(rank) == rare or pair.over())


class Pair:
    """Two processes that train `run`, forked with everything imported."""

    def __init__(self, run: str, words: list[str]) -> None:
        self.run, self.words = run, words
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
            code = cli.main([*WORDS, *self.words, f"run={self.run}"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)

    def doing(self, rank: int) -> str:
        return DOING[self.shared[rank]]

    def has_begun(self) -> bool:
        """Whether the main process is in its steps, or all is over."""
        return self.doing(0) != DOING[0] or self.over()

    def over(self) -> bool:
        """Whether one of them has ended."""
        return any([self._look(rank) is not None for rank in (0, 1)])

    def _look(self, rank: int) -> int | None:
        """The exit code of one of them; None while it lives."""
        if self.codes[rank] is None:
            ended, status = os.waitpid(self.children[rank], os.WNOHANG)
            self.codes[rank] = os.waitstatus_to_exitcode(status) if ended else None
        return self.codes[rank]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Where that takes too long, what still lives is killed and the benchmark ends with exit code 1."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > LONGEST:
                hung = [rank for rank in (0, 1) if self._look(rank) is None]
                for rank in hung:
                    os.kill(self.children[rank], signal.SIGKILL)
                doing = ", ".join(f"process {rank} ({self.doing(rank)})" for rank in hung)
                sys.exit(
                    f"{self.run} hangs, {LONGEST:g} s were given to {doing}; the end of its log:\n{self.log_end()}"
                )
            time.sleep(0.001)

    def wait_for_success(self) -> None:
        """Both end, with exit code 0."""
        self.wait_until(lambda: all([self._look(rank) is not None for rank in (0, 1)]))
        assert self.codes == [0, 0], (self.codes, self.log_end())

    def log_end(self) -> str:
        return Path(f"{self.run}.log").read_text()[-2000:]

    def kill(self, rank: int) -> Death:
        """kill -9, and see the other one end."""
        doing = self.doing(rank)
        os.kill(self.children[rank], signal.SIGKILL)
        began = time.monotonic()
        other = 1 - rank
        self.wait_until(lambda: self._look(other) is not None or time.monotonic() - began > PATIENCE)
        if self._look(other) is None:
            os.kill(self.children[other], signal.SIGKILL)
        self.wait_until(lambda: all([self._look(each) is not None for each in (0, 1)]))
        code, seconds = self.codes[other], round(time.monotonic() - began, 2)
        assert code is not None
        return Death(rank, doing, RunFolder(self.run).last_step(), seconds, code)


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
    progress = [torch.load(folder.state_of(STEPS) / "progress.pt", weights_only=True) for folder in folders]
    state = [saved(folder.state_of(STEPS), found) for folder, found in zip(folders, progress, strict=True)]
    exported = [load_file(folder.checkpoint / "model.safetensors") for folder in folders]
    wrong = []
    for what, (one, other) in {"state": state, "exported": exported}.items():
        same = one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
        wrong += [] if same else [what]
    best = [json.loads(folder.evaluation_file.read_text()) for folder in folders]
    lines = [[json.loads(line) for line in folder.metrics_file.read_text().splitlines()] for folder in folders]
    evaluated = [[(line["step"], line["evaluation"]) for line in each if "evaluation" in line] for each in lines]
    return (
        wrong
        + ["counters"] * (progress[0]["state"] != progress[1]["state"])
        + ["evaluations"] * (best[0] != best[1] or evaluated[0] != evaluated[1])
    )


def saved(state: Path, progress: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Weights and moments of a state folder, whole or in parts."""
    if shard_files.are_in(state):
        described = FileSystemReader(state).read_metadata().state_dict_metadata
        parts = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in described.items()}
        shard_files.read(state, parts)
        return parts
    moments = progress["optimizer"]["state"].items()
    moments = {f"{index}.{name}": value for index, values in moments for name, value in values.items()}
    return {**load_file(state / "model.safetensors"), **moments}


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
