"""From official files to a leaderboard row without the leaderboard: every command of docs/vqa.md, on drawn scenes.

    OMP_NUM_THREADS=2 python benchmarks/vqa_rehearsal.py --out runs/rehearsal --steps 2000

Two sets of scenes are drawn in the official layout. The validation split of the second stands in for test2015: its
questions and pictures go beside the first set, its annotations to a local server that speaks EvalAI's interface and
scores what it is sent. At the end the score of the server must be the one that `vlbeit evaluate --predictions` gives.
A command that fails ends it. Drawn shapes: the numbers are no evidence about natural images.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from vlbeit.tasks.vqa.metric import VQAAccuracy

SERVER = Path(__file__).parents[1] / "tests" / "leaderboard" / "evalai_server.py"
TOKEN = "rehearsal"
QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "hidden_test2015_annotations.json"
OTHER = 1_000_000  # what is added to the numbers of pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/rehearsal"))
    parser.add_argument("--images", type=int, default=1000, help="pictures of each set of scenes")
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    options = parser.parse_args()
    out: Path = options.out
    root, hidden = official_files(out, options.images)
    index, run, answers = out / "vqa_v2", out / "vl-vqa", out / "answers.json"
    questions = root / QUESTIONS.format("test2015")
    vlbeit("prepare", "vqa_v2", "--root", root, "--out", index)
    vlbeit("inspect", "data", index)
    data = [f"data.root={index}", "data=vqa_v2"]
    small = ["model=tiny", "recipe=scenes_vqa", "init=none", f"steps={options.steps}"]
    vlbeit("train", "stage=vl", "task=vqa", *data, *small, f"run={run}")
    vlbeit("evaluate", run)
    vlbeit("submit", run, "--split", "test2015", "--out", answers)
    vlbeit("submit", "check", answers, "--questions", questions)
    with served(questions, hidden) as server:
        account = {"EVALAI_API_URL": server.host, "EVALAI_TOKEN": TOKEN}
        vlbeit("submit", "phases", **account)
        vlbeit("submit", "upload", answers, "--phase", "test-dev", "--method", "tiny", "--wait", **account)
        vlbeit("submit", "status", run, **account)
    vlbeit("submit", "estimate", run)
    result = out / "result.json"
    files = ("--annotations", hidden / ANNOTATIONS)
    vlbeit("evaluate", "--predictions", answers, *files, "--out", result)
    ours = json.loads(result.read_text())["overall"]
    received = next(run.glob("submissions/*/evalai-*/result.json"))
    theirs = json.loads(received.read_text())[0]["test-dev"]["overall"]
    if ours == 0:
        raise SystemExit("no answer is right: that the scores agree says nothing; train more --steps")
    if ours != theirs:
        raise SystemExit(f"the server gave {theirs}, the file scores {ours}")
    print(f"\nthe server's score is that of the file: {theirs}")


def official_files(out: Path, images: int) -> tuple[Path, Path]:
    """A folder with train2014, val2014 and test2015, and the folder that holds the annotations of the last."""
    root, hidden = out / "official", out / "hidden"
    for seed, folder in enumerate((root, hidden)):
        vlbeit("prepare", "scenes", "--out", folder, "--images", images, "--seed", seed)
    renumber(hidden / QUESTIONS.format("val2014"), "questions", root / QUESTIONS.format("test2015"))
    renumber(hidden / "v2_mscoco_val2014_annotations.json", "annotations", hidden / ANNOTATIONS)
    shutil.rmtree(root / "test2015")
    (root / "test2015").mkdir()
    for picture in (hidden / "val2014").iterdir():
        number = int(picture.stem.rpartition("_")[2]) + OTHER
        shutil.copy(picture, root / "test2015" / f"COCO_test2015_{number:012d}.jpg")
    return root, hidden


def renumber(source: Path, key: str, target: Path) -> None:
    """Both sets count from 1: pictures and questions of the second get numbers of their own."""
    content = json.loads(source.read_text())
    for row in content[key]:
        row["image_id"] += OTHER
        row["question_id"] += 1000 * OTHER
    target.write_text(json.dumps({**content, "data_subtype": "test2015"}))


def served(questions: Path, hidden: Path) -> Any:
    """The local server, scoring by the official rules."""
    rows = {row["question_id"]: row for row in json.loads((hidden / ANNOTATIONS).read_text())["annotations"]}

    def score(entries: list[dict[str, Any]]) -> dict[str, float]:
        accuracy = VQAAccuracy()
        asked = [rows[entry["question_id"]] for entry in entries]
        accuracy.update(
            [entry["answer"] for entry in entries],
            [[human["answer"] for human in row["answers"]] for row in asked],
            [row["answer_type"] for row in asked],
            [row["question_type"] for row in asked],
            [row["question_id"] for row in asked],
        )
        return {name: value for name, value in accuracy.compute().items() if name != "questions"}

    ids = [row["question_id"] for row in json.loads(questions.read_text())["questions"]]
    return server_module().EvalAI(ids, score, [TOKEN])


def server_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evalai_server", SERVER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def vlbeit(*words: object, **environment: str) -> None:
    """Run a command as a user does; its output goes through."""
    typed = [str(word) for word in words]
    print(f"\n$ vlbeit {shlex.join(typed)}", flush=True)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "vlbeit", *typed], env={**os.environ, **environment})
    print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    if done.returncode:
        raise SystemExit(f"vlbeit {typed[0]} ended with {done.returncode}")


if __name__ == "__main__":
    main()
