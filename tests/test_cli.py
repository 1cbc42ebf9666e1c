"""The command line in one process; what it costs to start, in processes of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pytest
from PIL import Image

from vlbeit import inference, registry, table
from vlbeit.cli import main
from vlbeit.errors import DataError, UsageError
from vlbeit.evaluation_file import class_tables

HEAVY = ("torch", "hydra", "omegaconf", "transformers", "accelerate", "datasets", "timm", "numpy")
VERBS = (
    *("train", "evaluate", "predict", "submit", "convert", "export"),
    *("prepare", "checks", "demo", "tasks", "runs", "compare", "models", "inspect"),
)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [["tasks"], ["models"], ["--help"], ["train", "oops=1", "--hlp"], ["prepare"], ["inspect"], ["submit", "--help"]],
)
def test_fast_verbs_load_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, vlbeit.cli\n"
        f"code = vlbeit.cli.main({arguments!r})\n"
        f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    allowed = {"hydra", "omegaconf"} if arguments[0] == "train" else set()  # a wrong word of train: no torch either
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.rpartition("LOADED")[2].split()) <= allowed


def test_mistakes_in_what_was_typed_are_told_before_torch_is_loaded() -> None:
    mistakes = (
        ["submit", "runs/vqa"],
        ["submit", "runs/vqa", "--questions", "asked.json"],
        ["evaluate", "--predictions", "answers.json"],
        ["evaluate", "runs/vqa", "--predictions", "answers.json", "--annotations", "a.json"],
        ["predict", "runs/vqa", "none.jpg", "what?"],
    )
    code = f"import sys, vlbeit.cli\nprint([vlbeit.cli.main(words) for words in {mistakes!r}], 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[2, 2, 2, 2, 1] False\n" and run.stderr.count("error: ") == len(mistakes)


def test_the_words_of_a_task_are_read_without_torchmetrics() -> None:
    """It brings scipy, matplotlib and transformers, which take longer than torch; only its own metric needs it."""
    code = "import sys, vlbeit.cli\nprint(vlbeit.cli.main(['train', 'task=vqa', 'task.min_cont=5']), *sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = run.stdout.split()
    assert loaded[0] == "2" and "did you mean task.min_count?" in run.stderr
    assert not {"torchmetrics", "scipy", "matplotlib", "transformers"} & set(loaded)


@pytest.mark.parametrize("arguments", [["tasks"], ["models"], ["--help"]])
def test_fast_verbs_answer_in_half_a_second(arguments: list[str]) -> None:
    """Processor time, not wall time: other processes on the machine do not count."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "vlbeit", *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in VERBS)


def test_console_script_and_module_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    version = capsys.readouterr().out
    assert (
        subprocess.run([sys.executable, "-m", "vlbeit", "--version"], capture_output=True, text=True).stdout == version
    )


def test_tasks_lists_all_groups_in_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("mim", "mlm", "vl", "vqa", "classification", "scenes", "imagefolder", "vqa_v2", "pairs", "text"):
        assert [line for line in lines if line.split()[:1] == [name] and len(line.split()) > 3], name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "nothing to train"),
        (["train", "stage=mim", "lr=1"], "did you mean optim.lr?"),
        (["train", "stage=mim", "--lr", "1e-3"], "optim.lr=VALUE"),
        (["train", "stage=mim", "optim.lr=abc"], "optim.lr=abc is not a number"),
        (["train", "task=vqaa"], "did you mean vqa?"),
        (["predict"], "Missing argument 'RUN'"),
        (["inspect", "atention"], "No such command 'atention'"),
        (["inspect", "attention"], "Missing argument 'RUN'"),
        (["inspect", "attention", "runs/mim", "--limit", "0"], "'--limit'"),
        (["prepare", "scnes"], "did you mean scenes?"),
        (["prepare", "scenes", "--images", "many"], "'--images'"),
        (["prepare", "scenes", "--imgs", "3"], "--imgs"),
        (["prepare", "scenes", "images=3", "out=a b"], "written --images 3 --out 'a b', not images=3 out=a b"),
        (["prepare", "vqa", "from=my.csv", "held-out=3"], "written --from my.csv --held-out 3, not from=my.csv"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and said in captured.err
    assert captured.out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("x.json is damaged"), 1, "error: x.json is damaged\n"),
        (UsageError("no"), 2, "error: no\n"),
        (KeyboardInterrupt(), 130, ""),
        (OSError(28, "No space left on device", "runs/x"), 1, "error: runs/x: No space left on device"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(group: str) -> dict[str, str]:
        raise error

    monkeypatch.setattr("vlbeit.registry.names", fail)
    assert main(["tasks"]) == code
    assert capsys.readouterr().err.startswith(said)


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlbeit.registry.names", lambda group: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["tasks"])


def test_dry_run_prints_the_config_and_makes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "stage=mim", "optim.lr=1e-5", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("data=scenes brings model=tiny") and "lr: 1.0e-05" in out and "run: runs/mim" in out
    assert main(["train", "stage=mim", "seed=1,2", "--dry-run", "--multirun"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("run: ")] == [
        "run: runs/mim-seed1",
        "run: runs/mim-seed2",
    ]
    assert not list(tmp_path.iterdir())


def test_help_of_train_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "stage=mim", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: line for line in lines if line}
    assert {"stage.target", "optim.lr", "data.root", "run", "--dry-run"} <= shown.keys() | {"--dry-run"}
    assert "learning rate" in shown["optim.lr"] and "--multirun" in lines[0]


def test_inspect_alone_lists_what_can_be_inspected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect"]) == 0
    assert "attention  Draw where a tower looks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("out", "code", "said"),
    [
        ("overlay.txt", 2, "--out overlay.txt: its name tells no format of pictures: end it in .png"),
        ("overlay", 2, "end it in .png, .jpg or .webp"),
        ("picture.png", 2, "--out picture.png: it is picture.png, which is read and would be replaced"),
        ("picture.png/overlay.png", 2, "picture.png is a file; name another file"),
        ("overlay.png", 2, "task=classification has nothing to draw, its result is a table"),
    ],
)
def test_predict_draws_only_what_can_be_drawn(
    in_chain: Path, tmp_path: Path, out: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.png"
    Image.new("RGB", (48, 48), (200, 30, 30)).save(picture)
    target = tmp_path / out
    assert main(["predict", "runs/mim-classification", str(picture), "--out", str(target)]) == code
    error = capsys.readouterr().err
    assert said in error.replace(f"{tmp_path}/", "") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [picture]
    with Image.open(picture) as image:
        assert image.getpixel((3, 3)) == (200, 30, 30)


def test_evaluate_shows_every_table_with_a_row_per_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    details = {"classes": [{"class": "sky", "iou": 61.25}, {"class": "tree", "iou": None}], "images": [{"id": "1"}]}
    tables = class_tables(details)
    assert tables == [details["classes"]] == class_tables(details["classes"])
    assert class_tables([]) == class_tables({"note": "x", "empty": []}) == []
    found = inference.Evaluation({"miou": 61.25}, tables, [Path("evaluation.json"), Path("d.json")], False, "go on")
    monkeypatch.setattr(inference, "evaluate", lambda *_: found)
    assert main(["evaluate", "runs/mim"]) == 0
    assert capsys.readouterr().out == (
        "metric  value\nmiou    61.25\n\nclass  iou\nsky    61.25\ntree   -\n"
        "wrote evaluation.json, d.json\nnext: go on\n"
    )


def test_a_cell_of_a_table_is_legible() -> None:
    values = ("cat", 0.00012, 1.0, 87.34567, 12, None, (1.4, 2.6, 3.0, 4.0), ["a", "b"])
    assert [table.cell(value) for value in values] == [
        "cat", "0.0001", "1.0000", "87.3457", "12", "", "1, 3, 3, 4", "a, b",
    ]  # fmt: skip


def test_help_of_prepare(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--help"]) == 0
    assert "vlbeit prepare NAME [OPTIONS]; `vlbeit prepare NAME --help`" in capsys.readouterr().out


@pytest.mark.parametrize("name", registry.names("prepare"))
def test_every_option_of_a_preparation_is_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    hints = get_type_hints(registry.get("prepare", name), include_extras=True)
    del hints["report"], hints["return"]
    if manner := hints.pop("manner", None):
        hints |= get_type_hints(manner, include_extras=True)
    main(["prepare", name, "--help"])
    said = "".join(capsys.readouterr().out.partition("Options:")[2].split())
    for option, hint in hints.items():
        (text,) = hint.__metadata__
        flag = f"--{option.rstrip('_').replace('_', '-')}"
        assert f"{flag}<" in said or f"{flag}/--no-" in said
        assert text.replace(" ", "") in said


class Way(NamedTuple):
    """What a preparation may take as one argument."""

    speed: int = 1
    loud: bool = False


def test_defaults_of_an_argument_go_before_those_of_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Way] = []

    def prepare(way: Way = Way(speed=3), report: Any = None) -> None:  # noqa: B008
        found.append(way)

    monkeypatch.setattr(registry, "get", lambda group, name: prepare)
    assert main(["prepare", "own"]) == main(["prepare", "own", "--loud"]) == 0
    assert found == [Way(3, False), Way(3, True)]


def test_prepare_scenes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["prepare", "scenes", "--out", "here", "--images", "20", "--seed", "3"]) == 0
    assert (tmp_path / "here").is_dir()
    assert capsys.readouterr().out.splitlines()[-1] == "next: vlbeit train stage=tokenizer data.root=here"


def test_models(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = tmp_path / "vlbeit" / "beit_base_patch16_224_pt22k.pth"
    kept.parent.mkdir()
    kept.write_bytes(bytes(2_000_000))
    assert main(["models"]) == 0
    presets, published, *_ = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in presets.splitlines()[2:]] == ["tiny", "base", "base_plus", "large"]
    lines = {line.split()[0]: line for line in published.splitlines()[2:]}
    assert {"vlmo_base_patch16_224", "timm/beit_base_patch16_224.in22k_ft_in22k_in1k", "dalle_encoder"} <= lines.keys()
    here = lines["beit_base_patch16_224_pt22k"].split()
    assert here[-1] == "yes" and "2" in here and "MIT" in here and "github.com," in here
    assert [name for name, line in lines.items() if line.split()[-1] == "yes"] == ["beit_base_patch16_224_pt22k"]


def test_models_for_programs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--facebook--flava-image-codebook" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").touch()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [preset["name"] for preset in listed["presets"]] == ["tiny", "base", "base_plus", "large"]
    found = {each["name"]: each for each in listed["published"]}
    assert found["facebook/flava-image-codebook"]["here"] == str(snapshot)
    assert found["beit_base_patch16_224_pt22k_ft22kto1k"]["here"] is None
    assert found["beit_base_patch16_224_pt22k_ft22kto1k"]["metrics"] == {"top1": 85.2, "top5": 97.6}


def test_checks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy:1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("VLBEIT_CACHE", str(tmp_path / "own"))
    assert main(["checks", "--json"]) == 0
    out = capsys.readouterr().out
    found = {check["name"]: check for check in json.loads(out)}
    assert {"python", "torch", "timm", "threads", "disk", "cache", "proxies", "bf16", "fp16"} <= found.keys()
    assert found["cache"]["found"] == f"{tmp_path / 'own'} is writable"
    assert found["proxies"]["found"].startswith("set: ") and "secret" not in out
    assert all(check["remedy"] for check in found.values() if check["status"] != "ok")


def test_a_failing_check_hides_no_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: 1 / 0)
    assert main(["checks"]) == 1
    out = capsys.readouterr().out
    assert "ZeroDivisionError" in out and "git" in out


def test_plain_tables_line_up() -> None:
    assert table.plain(("a", "bb"), [("ccc", "d"), ("e", "")], "title") == ["title", "a    bb", "ccc  d", "e"]


def test_a_reader_that_stops_early_is_no_error() -> None:
    run = subprocess.run(
        f"{sys.executable} -m vlbeit tasks | true; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert "Traceback" not in run.stderr
