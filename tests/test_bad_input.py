"""Mistakes of the user: one line that names place and remedy, the right exit code, at once, nothing overwritten.

All through the command line in one process. What can be known before any work is refused before any file is written.
"""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from vlbeit import chain as chaining
from vlbeit import compose
from vlbeit.cli import main
from vlbeit.data.records import ImageError, open_image

SMALL = (
    "model.patch_size=8",
    "model.embed_dim=32",
    "model.depth=3",
    "model.num_heads=2",
    "model.fused_layers=1",
    "data.workers=0",
    "global_batch_size=8",
    "micro_batch_size=4",
    "steps=2",
    "engine.log_every=1",
    "data.limit=24",
)
PIXELS = ("stage=mim", "stage.target=pixels", "run=runs/pixels")
FINISHED = {
    "pixels": PIXELS,
    "mlm": ("stage=mlm", "init=none", "run=runs/mlm"),
    "vqa": ("task=vqa", "init=none", "task.min_count=1", "run=runs/vqa"),
}
OWN = ("model=tiny", "data.image_size=64")  # what data=scenes brings, on other data


@pytest.fixture(scope="module")
def runs(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished runs, in runs/: pixels, mlm, vl-vqa."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "data").mkdir()
    (folder / "data" / "scenes").symlink_to(scenes)
    with chdir(folder):
        for words in FINISHED.values():
            assert main(["train", *words, *SMALL]) == 0
    return folder / "runs"


@pytest.fixture
def place(scenes: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: data/scenes and runs/ are there, to be damaged at will."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scenes").symlink_to(scenes)
    shutil.copytree(runs, tmp_path / "runs")
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path.parent / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with this exit code, in one line, and leave every file as it was; gives the line."""

    def run(code: int, *words: str) -> str:
        capsys.readouterr()
        before = contents(place)
        assert main(list(words)) == code
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
        assert "training" not in captured.out.partition("error:")[0].replace("training stage", "")
        assert contents(place) == before
        return captured.err

    return run


def last_of_each(*words: str) -> list[str]:
    """Of two words for one key the later one."""
    return list({word.partition("=")[0]: word for word in words}.values())


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder with its bytes; links are not followed."""
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not str(path).startswith(str(folder / "data" / "scenes"))
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stage=mimm",), "did you mean mim"),
        (("task=vqaa",), "did you mean vqa"),
        (("stage=mlm", "task=vqa"), "task=vqa does not take stage=mlm: it takes vl, mim"),
        (("stage=mim", "optim.lrr=1"), "did you mean optim.lr"),
        (("stage=mim", "optim.lr=fast"), "optim.lr=fast is not a number"),
        (("stage=mim", "optim.lr=nan"), "optim.lr=nan is not a finite number"),
        (("stage=mim", "optim.lr=-1"), "optim.lr=-1.0 must be positive"),
        (("stage=mim", "steps=many"), "steps=many is not a whole number or null"),
        (("stage=mim", "data=imagefoldr"), "did you mean imagefolder"),
        (("stage=mim", "model=huge"), "there is base, base_plus, large, tiny"),
        (("stage=mim", "model.num_heads=0"), "model.num_heads=0 must be positive"),
        (("stage=mim", "model.num_heads=5", "model.embed_dim=32"), "model.embed_dim=32 is not a multiple"),
        (("stage=mim", "data.image_size=100"), ": 100 is not a multiple of model.patch_size=8: try 96 or 104"),
        (("stage=mim", "data.image_size=[64,60]"), ": 60 is not a multiple of model.patch_size=8: try 56 or 64"),
        (("stage=mim", "data.image_size=big"), "data.image_size=big must be a positive number"),
        (("stage=mim", "task=classification", "stage.target=pixels"), "settings of the task begin with task."),
        (("stage=mlm", "text.max_length=500"), "text.max_length=500 is longer than text.positions="),
        (("stage=mim", "steps=null", "epochs=null"), "how long? give steps= or epochs="),
        (("stage=mim", "global_batch_size=8", "micro_batch_size=3"), "is not a multiple of micro_batch_size=3"),
        (("stage=vl", "micro_batch_size=1"), "stage=vl needs a global_batch_size and a micro_batch_size of at least 2"),
        (("stage=mim", "micro_batch_size=some"), "micro_batch_size=some must be a positive number or auto"),
        (("stage=mim", "optim.name=adamww"), "optim.name=adamww is no optimizer of timm; nearest: adamw"),
        (("stage=mim", "optim.betas=[0.9,2]"), "must be two numbers in [0, 1)"),
        (("stage=mim", "precision=fp16", "device=cpu"), "use precision=bf16"),
        (("stage=mim", "device=tpu"), "device=tpu is not one of"),
        (("stage=mim", "engine.trackers=[tensorbrd]"), "engine.trackers=tensorbrd is unknown: did you mean tensor"),
        (("stage=mim", "seed=-1"), "seed=-1 must not be negative"),
        (("task=classification", "init=none", "task.randaugment=rnd-m9"), "randaugment=rnd-m9 is no policy of timm"),
        (("task=vqa", "run=new", "task.min_count=100000", "init=none"), "lower task.min_count"),
        (("stage=mim", "data=text", "data.root=."), "data=text gives text, not images; images records come from data="),
        (("task=vqa", "data=pairs", "data.root=.", "init=none"), "vqa records come from data=aokvqa, data=okvqa"),
        (("stage=mlm", "run=new", "init=runs/nothing"), "init=runs/nothing: no run or checkpoint there"),
        (("stage=mlm", "run=new", "init=runs/pixels", "model.embed_dim=64"), "has model.embed_dim=32, this run has 64"),
        (("stage=mlm", "run=new", "init=runs/pixels", "model.depth=2"), "has model.depth=3, this run has 2: set"),
        (("stage=vl", "init=runs/mlm", "text.positions=50"), "not longer; set text.positions=32"),
        (("stage=mim", "stage.tokenizer=runs/mlm"), "is a run of stage=mlm; a run of stage=tokenizer is needed"),
        (("stage=mim", "stage.tokenizer=runs/none"), "runs/none is missing"),
        ((*PIXELS, "data.root=${nowhere}"), "data.root: Interpolation key 'nowhere' not found"),
        (("stage=mlm", "run=new", "init=none", "text.tokenizer=./none"), "text.tokenizer=./none is not a folder"),
        (("stage=mlm", "run=new", "init=none", "text.vocab_size=5"), "raise it"),
        ((*PIXELS, "run=data/scenes/scenes.json"), "scenes.json is a file, not a folder; choose another run="),
        ((*PIXELS, "run=data/scenes/scenes.json/a/b"), "scenes.json is a file, not a folder; choose another run="),
        ((*PIXELS, "optim.lr=1e-5"), "there, 1e-05 here): give the same keys, another run="),
        ((*PIXELS, "run=new", "resume=runs/mlm"), "a run of stage=mlm, this is mim: init=runs/mlm takes"),
        (("stage=mlm", "init=none", "run=runs/pixels"), "run=NEW resume=runs/pixels, or overwrite=true"),
        ((*PIXELS, "resume=runs/pixels", "overwrite=true"), "choose another run="),
    ],
)  # fmt: skip
def test_usage(refused: Callable[..., str], words: tuple[str, ...], said: str) -> None:
    assert said in refused(2, "train", *last_of_each(*SMALL, *words))


def test_overwrite_destroys_nothing_before_all_is_checked(refused: Callable[..., str], place: Path) -> None:
    over = (*SMALL, *PIXELS, "overwrite=true")
    folder = ("data=imagefolder", "data.root=data/scenes/imagefolder")
    assert "data.root=" in refused(1, "train", *over, "data=imagefolder", "data.root=nowhere")
    assert "no folder 'valid'" in refused(1, "train", *over, *folder, "data.val_split=valid")
    assert "no saved state there" in refused(1, "train", *over, "resume=runs/none")
    (place / "runs/pixels").rename(place / "runs/other")
    shutil.copytree(place / "runs/vqa", place / "runs/pixels")
    said = refused(1, "train", *last_of_each(*over, "resume=runs/other", "model.depth=2"))
    assert "does not fit this run (model.depth 3 there, 2 here); give the keys as they are there" in said
    assert "was trained with optim.name=adamw" in refused(2, "train", *over, "resume=runs/other", "optim.name=sgd")


def test_hub_out_of_reach(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No minute of attempts, no lines of libraries."""
    monkeypatch.setattr("vlbeit.hub._answers", lambda endpoint: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for word, said in (
        ("text.tokenizer=no-such/tokenizer", "text.tokenizer=no-such/tokenizer cannot be loaded: "),
        ("model.image_tower=timm:vit_tiny_patch16_224", "no weights: "),
        ("model.image_tower=timm:vit_tinny_patch16_224", "nearest: vit_tiny_patch16_224"),
        ("model.text_tower=transformers:no-such/model", "no-such/model"),
        ("model.image_tower=tim:vit", "model.image_tower=tim:vit is not own or timm:NAME or open_clip:NAME"),
    ):
        words = last_of_each(*SMALL, "stage=vl", "init=none", "run=runs/new", word, "data.image_size=224")
        assert said in refused(2, "train", *words)


def test_words_that_are_not_utf8(refused: Callable[..., str]) -> None:
    assert "is not UTF-8" in refused(2, "train", *SMALL, *PIXELS, os.fsdecode(b"data.root=caf\xe9"))


def test_any_tokenizer_fits_any_grid(place: Path) -> None:
    """The tokenizer's view of a picture is made of the size that gives a token per patch."""
    for groups in (2, 4):
        words = ("stage=tokenizer", "stage.vocab_size=32", "stage.hidden=8", f"stage.num_groups={groups}")
        assert main(["train", *SMALL, *words, f"run=runs/tokenizer{groups}"]) == 0
        words = ("stage=mim", f"stage.tokenizer=runs/tokenizer{groups}", f"run=runs/mim{groups}")
        assert main(["train", *SMALL, *words]) == 0


def test_missing_predecessor_on_own_data(refused: Callable[..., str], place: Path) -> None:
    """The command that makes it, and how to do without."""
    folder = ("data=imagefolder", "data.root=data/scenes/imagefolder", *SMALL)
    for words, stage in (
        (("stage=mim",), "runs/tokenizer is missing, and this run starts from it: first `vlbeit train stage=tokenizer"),
        (
            ("task=classification",),
            "first `vlbeit train stage=mim model=base data=imagefolder data.root=data/scenes/im",
        ),
    ):
        assert stage in refused(2, "train", *words, *folder)
    assert "init=none to start from scratch" in refused(2, "train", "task=classification", *folder)
    (place / "runs/pixels").rename(place / "runs/mim")
    (place / "runs/mim/last.json").write_text('{"step": 1}')
    (place / "runs/mim/state/step-000002").rename(place / "runs/mim/state/step-000001")
    assert "runs/mim is unfinished" in refused(2, "train", "task=classification", *folder)


def damage(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def drop(key: str, most: int = 2) -> Callable[[dict], dict]:
    return lambda value: {**value, key: value[key][most:]}


OFFICIAL = "v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda root: damage(root / OFFICIAL[0], drop("questions")), "annotations without question in "),
        (lambda root: damage(root / OFFICIAL[1], drop("annotations")), "questions without annotation in "),
        (lambda root: next((root / "train2014").iterdir()).unlink(), "questions whose image is not in "),
        (lambda root: (root / OFFICIAL[0]).unlink(), "questions.json does not exist; the split 'train' needs it"),
        (lambda root: shutil.rmtree(root / "train2014"), "train2014 does not exist"),
        (lambda root: (root / OFFICIAL[0]).write_text('{"questions": [{"question'), "line 1 column 17: not JSON"),
        (lambda root: (root / OFFICIAL[0]).write_bytes(b'{"questions": ["\xff"]}'), "byte 16: not UTF-8"),
        (lambda root: (root / OFFICIAL[0]).write_text("{}"), "has no 'questions': is it the right file?"),
        (
            lambda root: damage(root / OFFICIAL[0], lambda v: {**v, "questions": [{}]}),
            "[0] is not as published",
        ),
        (
            lambda root: [damage(root / name, drop(k, 10**6)) for name, k in EMPTY],
            "the split 'train' of vqa has no vqa",
        ),
        (lambda root: shutil.rmtree(root), "data.root="),
    ],
)
def test_questions(refused: Callable[..., str], place: Path, break_it: Callable[[Path], Any], said: str) -> None:
    root = place / "vqa"
    shutil.copytree(
        place / "data/scenes", root, ignore=shutil.ignore_patterns("imagefolder", "annotations", "test2015")
    )
    break_it(root)
    words = ("task=vqa", "data=vqa_v2", "data.root=vqa", "init=none", "task.min_count=1", "run=runs/new")
    assert said in refused(1, "train", *words, *SMALL, *OWN)


def test_validation_questions_without_answers(refused: Callable[..., str]) -> None:
    words = last_of_each(*SMALL, *FINISHED["vqa"], "data.val_split=test", "run=runs/new")
    assert "the split 'test' have no human answers to score against" in refused(1, "train", *words)


EMPTY = list(zip(OFFICIAL, ("questions", "annotations"), strict=True))


@pytest.mark.parametrize(
    ("files", "words", "said"),
    [
        ({}, ("data=pairs",), "has no file for the split 'train'; pairs reads train.jsonl"),
        (
            {"train.jsonl": b'{"image": "x.png"}\n'},
            ("data=pairs",),
            "train.jsonl has no column caption; it has image: rename",
        ),
        (
            {"train.jsonl": b'{"image": "x.png", "caption": "a"}\nnonsense\n'},
            ("data=pairs",),
            "train.jsonl, line 2: not JSON: Expecting value at column 1; pairs",
        ),
        ({"train.jsonl": b'{"image": "x.png", "caption": "\xe4"}\n'}, ("data=pairs",), "line 1: b'\\xe4' is not UTF-8"),
        ({"train.jsonl": b'{"image": "x.png", "caption": "a"}\n'}, ("data=pairs",), "images that do not exist: 1 ("),
        ({"train.jsonl": b"\n"}, ("data=pairs",), "train.jsonl has no row; it must hold"),
        ({"train.parquet": b"PAR1 no"}, ("data=pairs",), "own cannot be read as a datasets table"),
        ({"train.txt": b"caf\xe9\n"}, ("stage=mlm", "data=text"), "train.txt is not UTF-8 text"),
        ({"train.txt": b"\n \n"}, ("stage=mlm", "data=text"), "the split 'train' of own has no text records"),
        ({"train.txt": b"a\n"}, ("stage=mlm", "data=text"), "has no file for the split 'val'"),
        ({"train.txt": b"a\n"}, ("stage=mlm", "data=text", "data.root=own/train.txt"), "or set data.val_split=train"),
        (
            {"note.txt": b""},
            ("task=classification", "data=imagefolder"),
            "own has no folder 'train' (it has no folders)",
        ),
        ({"train/x.txt": b""}, ("task=classification", "data=imagefolder"), "train has no class folders"),
        ({"train/a/x.txt": b""}, (*PIXELS, "data=imagefolder"), "the split 'train' of own has no images records"),
        (
            {"train/a/x.png": b"", "val/b/x.png": b""},
            ("task=classification", "data=imagefolder"),
            "training split has not",
        ),
    ],
)
def test_own_data(
    refused: Callable[..., str], place: Path, files: dict[str, bytes], words: tuple[str, ...], said: str
) -> None:
    (place / "own").mkdir()
    for name, content in files.items():
        (place / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "own" / name).write_bytes(content)
    default = ("stage=vl", "init=none", "data.root=own", "run=runs/new")
    assert said in refused(
        1, "train", *{w.partition("=")[0]: w for w in (*default, *SMALL, *words, default[-1])}.values()
    )


def test_places_that_cannot_be_used(refused: Callable[..., str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access, forbidden = os.access, {str(place / "locked"): os.W_OK, str(place / "secret"): os.R_OK}
    # not by chmod: tests may run as root, who may do everything
    monkeypatch.setattr(os, "access", lambda path, mode: not forbidden.get(str(path), 0) & mode and access(path, mode))
    (place / "locked").mkdir(), (place / "secret").mkdir()
    assert "locked is not writable; change its permissions or choose another run=" in refused(
        1, "train", *SMALL, *PIXELS, "run=locked/a/b"
    )
    assert "data.root=" in refused(1, "train", *SMALL, *PIXELS, "data=imagefolder", "data.root=secret", "run=runs/new")
    assert "data.root=" in refused(1, "train", *SMALL, *PIXELS, "data=imagefolder", "data.root=none", "run=runs/new")
    assert "does not end in" in refused(
        1, "train", *SMALL, "stage=vl", "init=none", "data=pairs", "data.root=data/scenes/scenes.json", "run=runs/new"
    )
    assert "set data.cache=DIR" in refused(
        1, "train", *SMALL, *PIXELS, "data=imagefolder", "data.root=data/scenes/imagefolder", "run=runs/new",
        "data.cache=data/scenes/scenes.json",
    )  # fmt: skip
    assert "holds no scenes" in refused(2, "train", *SMALL, *PIXELS, "data.root=runs", "run=runs/new")
    assert "does not exist" in refused(2, "train", *SMALL, *PIXELS, "data.root=typo", "run=runs/new")


@pytest.mark.parametrize(
    ("break_it", "code", "said"),
    [
        (lambda run: without_optim(run / "config.yaml"), 2, "belongs to another config (optim."),
        (lambda run: cut(run / "config.yaml", 0), 1, "config.yaml holds no config: restore it, or overwrite=true"),
        (lambda run: (run / "config.yaml").write_text("stage: ["), 1, "config.yaml is not YAML"),
        (lambda run: (run / "config.yaml").write_bytes(b"\xff\xfe\x00"), 1, "config.yaml is not YAML"),
        (lambda run: (run / "config.yaml").write_text("stage: mim\n"), 1, "config.yaml"),
        (lambda run: (run / "last.json").write_text('{"step": 9}'), 1, "step-000009, which is missing: restore it"),
        (lambda run: cut(run / "last.json", 0.5), 1, "last.json is damaged"),
        (lambda run: (run / "last.json").write_text("[]"), 1, "last.json is damaged"),
        (lambda run: (run / "last.json").write_bytes(b"\xff"), 1, "last.json is damaged"),
        (lambda run: shutil.rmtree(run / "state"), 1, "which is missing: restore it, or overwrite=true"),
        (lambda run: (run / "checkpoint/target.json").unlink(), 1, "target.json is missing, and the run needs it"),
        (lambda run: cut(run / "checkpoint/target.json", 0.5), 1, "target.json cannot be read"),
    ],
)
def test_damaged_run_folder(
    refused: Callable[..., str], place: Path, break_it: Callable[[Path], Any], code: int, said: str
) -> None:
    run = place / "runs/pixels"
    break_it(run)
    assert said in refused(code, "train", *SMALL, *PIXELS, "steps=4")
    assert main(["runs"]) == 0  # the list shows it as it is
    assert main(["train", *SMALL, *PIXELS, "steps=4", "overwrite=true"]) == 0


def without_optim(path: Path) -> None:
    """Cut off where what is left is still good YAML."""
    path.write_text(path.read_text().partition("optim:")[0])


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


@pytest.mark.parametrize("file", ["model.safetensors", "progress.pt"])
def test_damaged_state(place: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    cut(place / "runs/pixels/state/step-000002" / file, 0.7)
    before = contents(place)
    assert main(["train", *SMALL, *PIXELS, "steps=4"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: cannot go on from runs/pixels/state/step-000002: ") and error.count("\n") == 1
    after = contents(place)
    changed = {Path(name).name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {"config.yaml", ".lock", "target.json"}  # it now says steps=4


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda run: shutil.rmtree(run), "runs/vqa: no such run or checkpoint; `vlbeit runs` lists"),
        (lambda run: shutil.rmtree(run / "checkpoint"), "runs/vqa: holds no checkpoint/config.json"),
        (lambda run: cut(run / "checkpoint/config.json", 0.5), "config.json: cannot read the checkpoint"),
        (lambda run: (run / "checkpoint/config.json").write_text("[]"), "config.json is no checkpoint of vlbeit"),
        (lambda run: (run / "checkpoint/config.json").write_text("{}"), "it lacks format, description"),
        (lambda run: damage(run / "checkpoint/config.json", lambda v: {**v, "format": 99}), "format 99 is newer"),
        (lambda run: damage(run / "checkpoint/config.json", set_in("config", "stage", "vl")), "does not name a stage"),
        (lambda run: damage(run / "checkpoint/config.json", set_in("config", "nonsense", 1)), "nonsense"),
        (lambda run: damage(run / "checkpoint/config.json", set_in("config", "seed", -1)), "config.json: seed=-1 must"),
        (
            lambda run: damage(run / "checkpoint/config.json", set_in("config", "task", {"name": "gone"})),
            "config.json: unknown task 'gone'",
        ),
        (lambda run: damage(run / "checkpoint/config.json", set_in("config", "seed", "x")), "config.json: "),
        (lambda run: damage(run / "checkpoint/config.json", set_in("config", "model", None)), "config.json: "),
        (lambda run: cut(run / "checkpoint/model.safetensors", 0.9), "model.safetensors differs from the hash"),
        (lambda run: (run / "checkpoint/model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda run: (run / "checkpoint/answers.json").unlink(), "answers.json"),
        (lambda run: cut(run / "checkpoint/tokenizer.json", 0.5), "tokenizer.json"),
        (lambda run: (run / "checkpoint/answers.json").write_text('["yes"]'), "does not fit its config.json"),
    ],
)
def test_damaged_checkpoint(
    refused: Callable[..., str], place: Path, break_it: Callable[[Path], Any], said: str
) -> None:
    break_it(place / "runs/vqa")
    picture = next((place / "data/scenes/val2014").iterdir())
    assert said in refused(1, "evaluate", "runs/vqa")
    assert said in refused(1, "predict", "runs/vqa", str(picture), "what is there?")


def test_checkpoint_without_a_config(refused: Callable[..., str], place: Path) -> None:
    """As a conversion leaves it: weights that were made for no task of ours."""
    damage(place / "runs/vqa/checkpoint/config.json", lambda v: {**v, "config": {}})
    said = "runs/vqa/checkpoint carries no config: `vlbeit evaluate runs/vqa/checkpoint task=classification|detection|"
    said += "nlvr2|probe|retrieval|segmentation|vqa "
    assert said in refused(2, "evaluate", "runs/vqa")


def set_in(section: str, key: str, value: Any) -> Callable[[dict], dict]:
    return lambda whole: {**whole, section: {**whole[section], key: value}}


def test_predict(refused: Callable[..., str], place: Path) -> None:
    (place / "note.jpg").write_text("no picture")
    picture = next((place / "data/scenes/val2014").iterdir())
    (place / "half.jpg").write_bytes(picture.read_bytes()[:600])
    assert "none.jpg does not exist; give the path of a picture" in refused(
        1, "predict", "runs/vqa", "none.jpg", "what?"
    )
    assert "data is a folder; give the path of a picture" in refused(1, "predict", "runs/vqa", "data", "what?")
    assert "note.jpg is not an image in a known format" in refused(1, "predict", "runs/vqa", "note.jpg", "what?")
    assert "half.jpg cannot be read" in refused(1, "predict", "runs/vqa", "half.jpg", "what?")
    assert "needs a question" in refused(2, "predict", "runs/vqa", str(picture))
    assert "train a task on it" in refused(2, "predict", "runs/pixels", str(picture))
    assert "'--top'" in refused(2, "predict", "runs/vqa", str(picture), "what?", "--top", "0")


def test_submit(refused: Callable[..., str], place: Path) -> None:
    questions, images = "data/scenes/v2_OpenEnded_mscoco_test2015_questions.json", "data/scenes/test2015"

    def said(code: int, run: str = "runs/vqa", **options: str) -> str:
        options = {"questions": questions, "images": images, "out": "a.json", **options}
        return refused(code, "submit", run, *(word for name in options for word in (f"--{name}", options[name])))

    assert "none.json does not exist" in said(1, questions="none.json")
    assert "none does not exist" in said(1, images="none")
    assert "questions whose image is not in" in said(1, images="data/scenes/val2014")
    assert "has no 'questions'" in said(1, questions="data/scenes/v2_mscoco_val2014_annotations.json")
    assert "scenes.json is a file; name another file" in said(2, out="data/scenes/scenes.json/a.json")
    assert "runs is a folder; name another file" in said(2, out="runs")
    assert "train a task on it" in said(2, run="runs/mlm")


def test_evaluate(refused: Callable[..., str]) -> None:
    assert "data.root=" in refused(1, "evaluate", "runs/vqa", "data=vqa_v2", "data.root=none")
    assert "has no split 'valid'" in refused(1, "evaluate", "runs/vqa", "data.val_split=valid")
    assert "did you mean data.val_split" in refused(2, "evaluate", "runs/vqa", "data.val_splt=val")
    assert "not vqa; vqa records come from" in refused(2, "evaluate", "runs/vqa", "data=text", "data.root=data")
    assert "do not fit a model with model.depth=2; leave that out" in refused(
        2, "evaluate", "runs/vqa", "model.depth=2"
    )
    assert "cannot be changed" in refused(2, "evaluate", "runs/vqa", "model=base")
    assert "no human answers to score against" in refused(1, "evaluate", "runs/vqa", "data.val_split=test")
    assert "name a run: vlbeit evaluate runs/vl-vqa" in refused(2, "evaluate")


def test_prepare(refused: Callable[..., str], place: Path, scenes: Path) -> None:
    assert "holds scenes with images=60, not images=70; remove it or choose another folder" in refused(
        2, "prepare", "scenes", "--out", "data/scenes", "--images", "70"
    )
    assert "holds no finished scenes; remove it" in refused(2, "prepare", "scenes", "--out", "runs")
    assert "images=3 is too small" in refused(2, "prepare", "scenes", "--out", "new", "--images", "3")
    assert "--out" in refused(2, "prepare", "scenes", "--out")
    assert main(["prepare", "scenes", "--out", "data/scenes", "--images", "60"]) == 0  # already there


@pytest.fixture
def own_pictures(place: Path) -> list[Path]:
    """Own data of 10 pictures in own/train, some of every class, and 8 in own/val; gives those of own/train."""
    shutil.copytree(place / "data/scenes/imagefolder", place / "own")
    classes = [sorted(folder.glob("*.jpg")) for folder in sorted((place / "own/train").iterdir())]
    pictures = [picture for row in itertools.zip_longest(*classes) for picture in row if picture]
    for picture in pictures[10:]:
        picture.unlink()
    return sorted(pictures[:10])


FOLDER = ("data=imagefolder", "data.root=own", *OWN, *SMALL, *PIXELS, "run=runs/new")


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_pictures_are_survived_up_to_a_share(
    place: Path, own_pictures: list[Path], capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    """Named once, counted, replaced in the same way every time; beyond the share training stops."""
    own_pictures[3].write_bytes(own_pictures[3].read_bytes()[:500])
    own_pictures[7].write_text("no picture")
    words = ["train", *last_of_each(*FOLDER, "steps=5", f"data.workers={workers}")]
    assert main([*words, "data.max_bad_fraction=0.2"]) == 0
    error = capsys.readouterr().err
    names = [f"{path.parent.name}/{path.name}" for path in (own_pictures[3], own_pictures[7])]
    for name in names:
        assert error.count(f"unusable sample {name}: {place}/own/train/{name} ") == 1
    state = torch.load(place / "runs/new/state/step-000005/progress.pt", weights_only=True)["state"]
    assert state["bad"] == sorted(names)
    assert main([*words[:-1], "run=runs/again", "data.max_bad_fraction=0.2"]) == 0
    assert weights("runs/new", 5) == weights("runs/again", 5)
    capsys.readouterr()
    assert main([*words, "data.max_bad_fraction=0.1", "run=runs/strict"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        "error: 2 of 10 samples cannot be used (2 unreadable picture), more than data.max_bad_fraction=0.1 ("
    )
    assert all(name in last for name in names) and last.endswith("restore or correct them, or raise the fraction")
    assert not (place / "runs/strict/last.json").exists()
    assert main([*words, "data.max_bad_fraction=0.2", "run=runs/strict"]) == 0, "the remedy works in the same folder"


def weights(run: str, step: int) -> bytes:
    return Path(run, f"state/step-{step:06d}/model.safetensors").read_bytes()


def test_all_pictures_unreadable(place: Path, own_pictures: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    for picture in own_pictures:
        picture.write_text("")
    assert main(["train", *FOLDER, "data.max_bad_fraction=1"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: \d+ unusable samples in a row: ", last) and "restore or correct them, or remove" in last


def test_unreadable_picture_in_the_validation_split(
    place: Path, own_pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    next((place / "own/val").rglob("*.jpg")).write_text("")
    assert main(["train", *FOLDER, "data.max_bad_fraction=0.2"]) == 0
    assert capsys.readouterr().err.count("unusable sample ") == 1
    assert json.loads((place / "runs/new/evaluation.json").read_text())["unreadable"] == 1
    assert main(["train", *last_of_each(*FOLDER, "run=runs/strict", "data.max_bad_fraction=0")]) == 1
    assert "1 of 8 samples cannot be used" in capsys.readouterr().err.splitlines()[-1]


def test_every_kind_of_picture_trains(place: Path, own_pictures: list[Path]) -> None:
    """Odd modes, sizes and formats; nothing of it is unreadable, nothing warns."""
    pixels = np.random.default_rng(0).integers(0, 65535, (40, 50), dtype=np.uint16)
    rgb = Image.fromarray((pixels // 257).astype(np.uint8)).convert("RGB")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    odd = {
        "alpha.png": rgb.convert("RGBA"), "grey.png": rgb.convert("L"), "grey_alpha.png": rgb.convert("LA"),
        "bits.png": rgb.convert("1"), "palette.png": rgb.convert("P"), "cmyk.jpg": rgb.convert("CMYK"),
        "deep.png": Image.fromarray(pixels), "deep.tif": Image.fromarray(pixels), "wide.png": rgb.resize((9000, 3)),
        "tall.png": rgb.resize((1, 4000)), "dot.png": rgb.resize((1, 1)), "webp.webp": rgb, "bmp.bmp": rgb,
    }  # fmt: skip
    folder, other = sorted({picture.parent for picture in own_pictures})[:2]
    for picture in own_pictures:
        picture.unlink()
    for empty in {picture.parent for picture in own_pictures} - {folder, other}:
        empty.rmdir()
    for number, (name, image) in enumerate(odd.items()):
        image.save((folder, other)[number % 2] / name)
    rgb.save(folder / "moving.gif", save_all=True, append_images=[rgb.rotate(90), rgb.rotate(180)])
    rgb.save(folder / "turned.jpg", exif=turned)
    rgb.quantize(8).save(folder / "clear.png", transparency=bytes(range(8)))
    shutil.rmtree(place / "own/val")
    shutil.copytree(place / "own/train", place / "own/val")
    for task in (
        PIXELS,
        ("task=classification", "init=none"),
        ("stage=tokenizer", "stage.vocab_size=32", "stage.hidden=8"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            words = last_of_each(*FOLDER[:-4], *task, f"run=runs/{task[0]}", "steps=6", "data.max_bad_fraction=0")
            before = contents(place / "own")
            assert main(["train", *words]) == 0
            assert contents(place / "own") == before  # data.root is only read


def test_pictures_are_upright_and_of_the_right_depth() -> None:
    pixels = np.linspace(0, 65535, 35).astype(np.uint16).reshape(5, 7)
    assert (np.asarray(opened(Image.fromarray(pixels), "PNG"))[..., 0] == pixels // 257).all()
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8))
    for orientation in range(10):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        plain = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(colours, "PNG", exif=exif))))
        assert np.array_equal(opened(colours, "PNG", exif=exif), plain)
    with pytest.raises(ImageError, match="floating-point numbers of unknown range; convert it to 8 bits"):
        opened(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    return open_image(encoded(image, kind, **options))


@pytest.mark.parametrize("words", [("stage=vl", "init=none"), ("stage=mlm", "init=none")])
def test_odd_texts_train(place: Path, own_pictures: list[Path], words: tuple[str, ...]) -> None:
    """Captions that are not there, long ones, all alphabets; fewer than data.limit, one left over for evaluation."""
    texts = ["", " ", "a" * 500, "word " * 200, "\U0001f600 \u4e2d\u6587 \x7f\u0301", "[MASK] [CLS]", "a\nb"]
    lines = [{"image": str(own_pictures[i]), "caption": text} for i, text in enumerate(texts)]
    for split, part in (("train", lines), ("val", [*lines, *lines][:9])):
        (place / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
    settings = (
        "data=pairs",
        "data.root=.",
        *OWN,
        *SMALL,
        "text.max_length=16",
        "run=runs/new",
        "steps=3",
        "data.max_bad_fraction=0.5",
    )
    assert main(["train", *last_of_each(*words, *settings)]) == 0
    assert main(["train", *last_of_each(*words, *settings, "steps=4")]) == 0


def test_full_disk(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the disk is full, the state before stays, and the same command goes on from it."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    words = ["train", *last_of_each(*SMALL, *PIXELS, "steps=4")]
    before = weights("runs/pixels", 2)
    for where in ("checkpoint.save_file", "folder.write_json", "folder._flush_tree", "folder.write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(f"vlbeit.engine.{where}", full)
            assert main(words) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert (
            last.startswith("error: cannot write runs/pixels/") and "the disk is full: free space and run the" in last
        )
        assert weights("runs/pixels", 2) == before and not list(place.rglob(".tmp-*"))
    assert main(words) == 0
    assert "going on from step 2" in capsys.readouterr().out


def test_full_disk_after_an_evaluation(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere")

    monkeypatch.setattr("vlbeit.files.tempfile.mkstemp", full)
    assert "No space left on device; nothing that was there before is lost" in refused(1, "evaluate", "runs/vqa")


def test_a_loader_process_dies(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the kernel kills it for lack of memory."""
    own = os.getpid()
    monkeypatch.setattr("vlbeit.stages.mim.open_image", lambda path: os._exit(9) if os.getpid() != own else None)
    assert main(["train", *last_of_each(*SMALL, *PIXELS, "data.workers=1", "steps=4")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: a loader process died, for lack of memory perhaps: fewer data.workers= (")


def test_weights_that_run_away(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The samples of the step are named, also where a negative is drawn from the weights that are gone."""
    words = ("stage=vl", "init=none", "optim.lr=1e20", "optim.warmup_steps=0", "optim.schedule=constant", "steps=9")
    assert main(["train", *last_of_each(*SMALL, *words)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: step ") and "samples of the batch: train2014/COCO_" in last and "optim.lr" in last


def test_other_classes(refused: Callable[..., str], place: Path, own_pictures: list[Path]) -> None:
    words = last_of_each(*FOLDER, "task=classification", "init=none", "run=runs/classes")
    assert main(["train", *(word for word in words if not word.startswith("stage."))]) == 0
    next((place / "own/train").iterdir()).rename(place / "own/train/other")
    shutil.rmtree(place / "own/val")
    (place / "own/val").mkdir()
    shutil.copytree(place / "own/train/other", place / "own/val/other")
    assert "and they differ (such as" in refused(1, "evaluate", "runs/classes")


def test_words_for_another_kind_of_record() -> None:
    """The command that is suggested must be one that runs: vqa_v2 has no captions, so stage=vl cannot take it."""
    config = compose.compose(["task=vqa", "data=vqa_v2", "data.root=/vqa"]).config
    assert chaining.data_words(config, "vqa") == "data=vqa_v2 data.root=/vqa"
    assert chaining.data_words(config, "pairs") == "data=pairs data.root=DIR"
    config = compose.compose(["stage=mlm", "data=shards", "data.root=/documents"]).config
    assert chaining.data_words(config, "text") == "data=shards data.root=/documents"
    assert chaining.data_words(config, "images") == "data=imagefolder data.root=DIR"
