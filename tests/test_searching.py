"""A small run of task=retrieval on the command line: training, evaluation, search; the last also by two processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from PIL import Image

import vlbeit
from vlbeit.cli import main

MODEL = ("model.embed_dim=32", "model.depth=3", "model.num_heads=2", "model.fused_layers=1")
WORDS = (
    *("task=retrieval", "init=none", *MODEL, "task.matching_weight=1", "task.rerank=3", "steps=2"),
    *("global_batch_size=8", "micro_batch_size=4", "data.workers=0", "data.max_bad_fraction=0.5", "engine.log_every=1"),
)


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/vl-retrieval`; the tests run in it."""
    folder = tmp_path_factory.mktemp("retrieval")
    with chdir(folder):
        assert main(["train", *WORDS, f"data.root={scenes}"]) == 0
    return folder


@pytest.fixture
def there(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(run)
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path / "cache"))
    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for name, colour in (("red", (220, 30, 30)), ("below/green", (30, 200, 30)), ("blue", (30, 30, 220))):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 40), colour).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def test_evaluation_and_comparison(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "runs/vl-retrieval"]) == 0
    said = capsys.readouterr().out
    assert "text to its picture, first 3 re-ranked" in said and "chance, picture to its texts" in said
    assert said.endswith('next: vlbeit predict runs/vl-retrieval "a red circle" --images DIR\n')
    found = json.loads(Path("runs/vl-retrieval/evaluation.json").read_text())
    assert found["metric"] == "recall_mean" and found["rerank"] == 3 and found["captions"] > found["pictures"] > 1
    assert found["interval"]["txt_r1"][0] <= found["txt_r1"] <= found["interval"]["txt_r1"][1]
    assert main(["compare", "runs/vl-retrieval", "runs/vl-retrieval"]) == 0
    said = capsys.readouterr().out
    assert "recall at 1, in percent, over the queries of both" in said
    assert [line.split("  ")[0] for line in said.splitlines()[4:7]] == [
        "all", "text to its picture", "picture to its texts"
    ]  # fmt: skip


def test_the_best_pictures_of_a_folder(there: Path, pictures: Path, capsys, caplog) -> None:
    words = ["predict", "runs/vl-retrieval", "a red circle", "--images", str(pictures)]
    assert main([*words, "--json", "--top", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 2 and set(rows[0]) == {"picture", "score", "match", "similarity"}
    assert "broken.jpg" in caplog.text and "1 of 4 pictures cannot be read and are left out" in caplog.text
    assert main([*words, "--out", "sheet.png"]) == 0
    out = capsys.readouterr().out
    assert "wrote sheet.png\n" in out and out.count(".png") == 4
    assert Image.open("sheet.png").width > 3 * 192
    searcher = vlbeit.pipeline("runs/vl-retrieval")
    again = searcher.pictures("a red circle", pictures, top=2)
    assert [row.picture for row in again] == [row["picture"] for row in rows]


def test_the_best_texts_of_a_file(there: Path, pictures: Path, tmp_path: Path, capsys) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("a red circle\n\na blue square\na red circle\n a green cross \n")
    words = ["predict", "runs/vl-retrieval", str(pictures / "red.png"), "--texts"]
    assert main([*words, str(texts), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert sorted(row["text"] for row in rows) == ["a blue square", "a green cross", "a red circle"]
    (tmp_path / "texts.json").write_text(json.dumps(["a red circle", "a blue square", "a green cross"]))
    assert main([*words, str(tmp_path / "texts.json"), "--json", "--out", "best.png"]) == 0
    for row, other in zip(rows, json.loads(capsys.readouterr().out), strict=True):
        assert row == pytest.approx(other, abs=1e-5)
    assert Path("best.png").is_file()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["a red circle", "--images", "nowhere"], 1, "error: nowhere is no folder"),
        (["a red circle", "--images", "empty"], 1, "error: empty has no pictures in it"),
        ([" ", "--images", "pictures"], 2, "the text is empty"),
        (["pictures/red.png", "--texts", "nowhere.txt"], 1, "--texts nowhere.txt cannot be read"),
        (["pictures/red.png", "--texts", "blank.txt"], 1, "--texts blank.txt has no text in it"),
        (["pictures/red.png", "--texts", "wrong.json"], 1, "--texts wrong.json is no JSON list of texts"),
        (["nowhere.png", "--texts", "texts.txt"], 1, "nowhere.png does not exist"),
        (["x", "--images", "pictures", "--texts", "texts.txt"], 2, 'vlbeit predict RUN "a text" --images DIR, or'),
        (["pictures/red.png", "what?", "--texts", "texts.txt"], 2, 'vlbeit predict RUN "a text" --images DIR, or'),
    ],
)
def test_mistakes_are_told_in_a_line_before_the_run_is_read(
    words: list[str], code: int, said: str, pictures: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    Path("empty").mkdir()
    for name, text in (("texts.txt", "a"), ("blank.txt", "\n \n"), ("wrong.json", '{"a": 1}')):
        Path(name).write_text(text)
    assert main(["predict", "no-run", *words]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and said in captured.err


def test_what_a_run_cannot_do_is_said(there: Path, pictures: Path, capsys) -> None:
    assert main(["predict", "runs/vl-retrieval", str(pictures / "red.png")]) == 2
    assert "--texts FILE" in capsys.readouterr().err
    words = ["a red circle", "--images", str(pictures)]
    assert main(["predict", "runs/vl-retrieval", *words, "--out", "sheet.txt"]) == 2
    assert "tells no format of pictures" in capsys.readouterr().err
    assert main(["evaluate", "runs/vl-retrieval", "task.rerank=0", "task.matching_weight=0"]) == 2
    assert "do not fit a model with task.rerank=0 task.matching_weight=0; leave that out" in capsys.readouterr().err


def test_two_processes_find_what_one_finds(there: Path) -> None:
    """Of the 6 pictures, a batch, one process gets all; both search, one of them re-ranks."""
    assert main(["evaluate", "runs/vl-retrieval"]) == 0
    folder = Path("runs/vl-retrieval")
    found = [json.loads((folder / name).read_text()) for name in ("evaluation.json", "retrieval_details.json")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "evaluate", "runs/vl-retrieval"]
    done = subprocess.run(command, env={**os.environ, **common}, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("recall_mean ") == 2, "with and without re-ranking, by the main process alone"
    again = [json.loads((folder / name).read_text()) for name in ("evaluation.json", "retrieval_details.json")]
    assert again[1] == found[1] and again[0] == found[0]


def test_published_weights_are_evaluated_as_they_are(there: Path, scenes: Path, unilm, capsys, tmp_path: Path) -> None:
    """Files fine-tuned for retrieval have no matching head; pre-trained ones have one, for re-ranking."""
    words = json.loads(Path("runs/vl-retrieval/checkpoint/tokenizer.json").read_text())["vocab_size"]
    for part in ("irtr", "itm"):
        parts = ("irtr",) if part == "irtr" else ("itc", "itm", "mlm")
        torch.save({"state_dict": unilm.vlmo(parts=parts, words=words, side=4)}, tmp_path / f"{part}.pth")
    call = [
        "task=retrieval",
        "data=scenes",
        f"data.root={scenes}",
        "text.tokenizer=runs/vl-retrieval",
        "data.workers=0",
    ]
    assert main(["evaluate", str(tmp_path / "irtr.pth"), *call, "data.max_bad_fraction=0.5"]) == 0
    assert "recall_mean" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "itm.pth"), *call, "task.rerank=2", "data.max_bad_fraction=0.5"]) == 0
    assert "reranked_txt_r1" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "irtr.pth"), *call, "task.rerank=2"]) == 2
    assert "has not all that is to be measured" in capsys.readouterr().err


def test_prepared_captions_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Karpathy's file to `vlbeit evaluate` on the test split, pictures inside the shards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path / "cache"))
    images = []
    for number in range(12):
        name, split = f"{number}.jpg", ("train", "train", "val", "test")[number % 4]
        Path("raw/flickr30k_images").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (20 * number, 200, 90)).save(f"raw/flickr30k_images/{name}")
        sentences = [{"raw": f"{text} number {number}.", "tokens": []} for text in ("Picture", "Green wall", "A shade")]
        images.append({"filename": name, "split": split, "imgid": number, "sentids": [], "sentences": sentences})
    Path("raw/dataset_flickr30k.json").write_text(json.dumps({"dataset": "flickr30k", "images": images}))
    assert main(["prepare", "flickr30k", "--from", "raw", "--out", "data", "--format", "parquet"]) == 0
    words = [word for word in WORDS if not word.startswith(("global_", "micro_"))]
    sizes = ["model=tiny", "data.image_size=32", "global_batch_size=6", "micro_batch_size=3"]
    assert main(["train", *words, "data=flickr30k", "data.root=data", "text.vocab_size=200", *sizes, "run=run"]) == 0
    assert main(["evaluate", "run", "data.val_split=test"]) == 0
    found = json.loads(Path("run/evaluation-flickr30k-test.json").read_text())
    assert (found["pictures"], found["captions"]) == (3, 9) and found["txt_r10"] == 100
    rows = json.loads(Path("run/retrieval_details-flickr30k-test.json").read_text())
    assert len({row["sample_id"] for row in rows}) == 12


CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize("towers", ["both of open_clip", "pictures of timm"])
def test_towers_of_others(towers: str, there: Path, scenes: Path, pictures: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {}}))
    clip = f"open_clip:{folder}@none"
    words = {
        "both of open_clip": [f"model.image_tower={clip}", f"model.text_tower={clip}"],
        "pictures of timm": ["model.image_tower=timm:test_vit@none"],
    }[towers]
    run, size = tmp_path / "run", ["data.image_size=32", "data.limit=16"]
    assert main(["train", *WORDS, f"data.root={scenes}", *words, *size, f"run={run}"]) == 0
    assert main(["evaluate", str(run)]) == 0
    capsys.readouterr()
    assert main(["predict", str(run), "a red circle", "--images", str(pictures), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


def _two_processes(words: list[str]) -> int:
    """`vlbeit WORDS` on two processes, which fork from this one: it imports once what both need."""
    import vlbeit.inference
    import vlbeit.tasks.retrieval

    assert vlbeit.inference and vlbeit.tasks.retrieval
    children = []
    for rank in "01":
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
            code = main(words)
            sys.stdout.flush()
            os._exit(code)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(_two_processes(sys.argv[1:]))
