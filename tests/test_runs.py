"""`vlbeit runs`: what stands in the files of a run folder, on one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlbeit.cli import main
from vlbeit.runs import cells, following, list_runs, read_run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`runs/` with a stage, a task after `vlbeit evaluate`, and a damaged one."""
    monkeypatch.chdir(tmp_path)
    write("mim", "stage: {name: mim}\n", {"mim": 1.23456, "split": "val"}, step=120)  # of an older version
    config = (
        "stage: {name: vl}\ntask: {name: vqa}\nmodel: {name: base, image_tower: timm:resnet18}\n"
        "data: {name: vqa_v2}\nglobal_batch_size: 128\n"
    )
    evaluation = {
        "yes/no": 80.0, "overall": 61.25, "metric": "overall", "interval": {"overall": [60.0, 62.5]},
        "interval_over": "questions",
    }  # fmt: skip
    write("vqa", config, evaluation, step=1000)
    records = [
        {"step": 500, "time": 10.0, "samples": 64000, "samples_per_second": 640.0},
        {"step": 500, "time": 500.0, "evaluation": {}},
        {"step": 1000, "time": 9000.0, "samples": 128000, "samples_per_second": 20.0},  # after a night's pause
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "runs/vqa/metrics.jsonl").write_text(lines + '{"step": 1020, "ti')
    (tmp_path / "runs/vqa/environment.json").write_text('{"device": "NVIDIA H200"}')
    write("bad", "stage: [", {})
    (tmp_path / "runs/no run").mkdir()
    return tmp_path / "runs"


def write(name: str, config: str, evaluation: dict, step: int | None = None) -> None:
    run = Path("runs", name)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(config)
    if step is not None:
        (run / "last.json").write_text(json.dumps({"step": step, "state": f"step-{step:06d}"}))
    if evaluation:
        (run / "evaluation.json").write_text(json.dumps(evaluation))


def test_a_run_on_one_line() -> None:
    bad, mim, vqa = list_runs(Path("runs"))
    assert bad.damaged.startswith("runs/bad/config.yaml is not YAML") and bad.value is None
    assert cells(mim) == ("runs/mim", "mim", "mim", "", "mim 1.235", "-", "120 steps")
    assert vqa.samples == 128000 and vqa.seconds == 64000 / 640 + 64000 / 20
    assert cells(vqa) == (
        "runs/vqa", "vqa", "vl base timm:resnet18", "vqa_v2", "overall 61.25", "60.00 to 62.50 (questions)",
        "1000 steps, 128000 samples, 0:55:00, NVIDIA H200",
    )  # fmt: skip


def test_what_follows(folder: Path) -> None:
    """A run of a task that only training measured is evaluated; two that are measured are compared."""
    vqa = [run for run in list_runs(Path("runs")) if run.task == "vqa"]
    write("vqa2", (folder / "vqa/config.yaml").read_text(), {"overall": 1.0, "step": 3}, step=3)
    assert following(list_runs(Path("runs"))) == "vlbeit evaluate runs/vqa2"
    (folder / "vqa2/evaluation.json").write_text('{"overall": 1.0}')
    assert following([*vqa, read_run("runs/vqa2")]) == "vlbeit compare runs/vqa runs/vqa2"
    assert following([]) == "vlbeit train stage=mim"


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].split("  ")[0] == "run"
        and "damaged:" in lines[1]
        and lines[-1] == "next: vlbeit train stage=vl --help"
    )
    assert main(["runs", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in found] == ["runs/bad", "runs/mim", "runs/vqa"]
    assert found[2]["interval"] == [60.0, 62.5] and found[2]["over"] == "questions" and found[0]["damaged"]
    assert main(["runs", "nowhere"]) == 1
    assert "nowhere is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("evaluation.json", "[1, 2]"),
        ("evaluation.json", '{"overall": 1, "interval": [3]}'),
        ("evaluation.json", '{"overall": 1, "interval": {"overall": [3]}}'),
        ("evaluation.json", "{"),
        ("last.json", "{}"),
        ("environment.json", "\x00"),
        ("config.yaml", "stage: {name: vl}\nmodel: base\n"),
    ],
)
def test_damage_is_said_and_the_others_are_listed(folder: Path, file: str, text: str) -> None:
    (folder / "vqa" / file).write_text(text)
    found = list_runs(folder)
    assert [bool(run.damaged) for run in found] == [True, False, True]
    assert "\n" not in cells(found[2])[-1] and cells(found[2])[-1].startswith("damaged: ")
