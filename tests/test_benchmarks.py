"""The benchmarks that train: every command they give is understood, every comparison has its sides, intervals right."""

from __future__ import annotations

import importlib
import json
import math
import os
import signal
import time
from pathlib import Path
from types import ModuleType

import pytest

from vlbeit import compose
from vlbeit.config import RunConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/claims.py; a run of it is only composed, and top-1 grows with its steps."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("claims")

    def train(words: list[str]) -> RunConfig:
        config = compose.compose(words).config
        config.steps = config.steps or 10
        Path(config.run).mkdir(parents=True, exist_ok=True)
        evaluations = [json.dumps({"evaluation": {"top1": config.steps * share}}) for share in (0.01, 0.02)]
        (Path(config.run) / "metrics.jsonl").write_text("\n".join(['{"step": 1}', *evaluations]))
        return config

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "flops_of_step", lambda run: 3 if run.task else 6)
    monkeypatch.setattr(module, "EPOCHS", 40)
    return module


def test_every_claim_composes_and_has_its_sides(claims, scenes, tmp_path):
    lab = claims.Lab(0, tmp_path, scenes)
    points = [point for claim in claims.CLAIMS.values() for point in claim(lab)]
    sides = {claim: {point.arm for point in points if point.claim == claim} for claim in claims.CLAIMS}
    three = {"after pre-training", "from scratch", "from scratch, equal compute"}
    assert sides == {
        "convergence": {"after pre-training", "from scratch"},
        "labels": three,
        "sizes": three,
        "length": three,
        "masks": {"blockwise", "random"},
        "targets": {"tokens", "pixels", "pixels, equal compute"},
    }
    steps = {(point.arm, point.x): point.steps for point in points if point.claim == "length"}
    for length in claims.LENGTHS:  # a step of pre-training costs two of fine-tuning here
        more = 2 * (lab.tokenizer.steps + length)
        assert steps["from scratch, equal compute", length] == steps["from scratch", length] + more
        assert steps["after pre-training", length] == steps["from scratch", length]
    assert len({point.x for point in points if point.claim == "sizes"}) == 4


def test_every_claim_about_pairs_composes_and_has_its_sides(monkeypatch, scenes, tmp_path):
    """benchmarks/vl_claims.py: each run starts from what its arm has had, and is given what it is about."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("vl_claims")
    made: dict[str, RunConfig] = {}

    def train(words: list[str]) -> RunConfig:
        config = compose.compose(words).config
        config.steps = config.steps or 10
        Path(config.run).mkdir(parents=True, exist_ok=True)
        evaluation = {"overall": 50.0, "txt_r1": 20.0, "img_r1": 30.0}
        (Path(config.run) / "metrics.jsonl").write_text(json.dumps({"evaluation": evaluation}) + "\n")
        made[Path(config.run).name] = config
        return config

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "flops_of_step", lambda run: 1)
    monkeypatch.setattr(module, "SHARES", (0.3, 1.0))
    lab = module.Lab(0, tmp_path, scenes)
    points = [point for claim in module.CLAIMS.values() for point in claim(lab)]
    sides = {claim: {p.arm for p in points if p.claim == claim} for claim in {p.claim for p in points}}
    assert sides["pairs_vqa"] == sides["pairs_recall"] == set(module.ARMS)
    assert sides["experts_vqa"] == sides["experts_recall"] == set(module.EXPERTS)
    assert len(sides["staged"]) == 3 and {p.value for p in points} == {50.0, 25.0}
    starts = {name: Path(made[f"vl-200-{name}-1"].init).name for name in ("mim-text", "mim", "text", "neither")}
    assert starts == {"mim-text": "mlm-mim-text", "mim": "mim", "text": "mlm-text", "neither": "none"}
    assert {name for name, config in made.items() if config.model.experts == "shared"} == {
        f"{kind}-{arm}-shared-1" for arm in ("mim-text", "mim") for kind in ("vl-200", "vqa", "retrieval-200")
    } | {"mlm-mim-text-shared"}
    assert made["vl-1000-mim-text-1"].steps == 1000
    assert made["retrieval-1000-mim-text-1"].init == made["vl-1000-mim-text-1"].run


def test_a_share_of_pairs_is_that_share_of_the_pictures(monkeypatch, scenes, tmp_path):
    """With all their captions; what a smaller share has, a larger one has too."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    lab = importlib.import_module("vl_claims").Lab(0, tmp_path, scenes)
    pictures = []
    for share in (0.25, 0.5, 1.0):
        root = Path(lab._pairs(share)[1].removeprefix("data.root="))
        rows = [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()]
        pictures.append({row["image"] for row in rows})
        assert len(rows) == 2 * len(pictures[-1])
    assert pictures[0] < pictures[1] < pictures[2]
    assert [len(each) for each in pictures] == [round(share * len(pictures[2])) for share in (0.25, 0.5, 1.0)]


def test_a_share_of_labels_is_that_share_of_each_class(claims, scenes, tmp_path):
    folder = claims.Lab(3, tmp_path, scenes)._labelled(0.5)
    source = scenes / "imagefolder"
    for name in sorted(path.name for path in (source / "train").iterdir()):
        every, chosen = (list((place / "train" / name).iterdir()) for place in (source, folder))
        assert len(chosen) == max(1, round(0.5 * len(every)))
        assert all(path.resolve().is_file() for path in chosen)
    assert (folder / "val").resolve() == (source / "val").resolve()


def test_interval_and_paired_difference(claims):
    """The 95 % t interval of 1, 2, 3: 4.3027 x 1 / sqrt(3); differences are taken seed by seed."""
    report = importlib.import_module("claims_report")
    assert report.interval([1, 2, 3]) == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isnan(report.interval([1.0]))
    arms = {"blockwise": (10, 20, 30), "random": (9, 18, 27)}
    points = [
        report.Point("masks", arm, 0, seed, top1, 4) for arm, values in arms.items() for seed, top1 in enumerate(values)
    ]
    *_, row = report.table(points).splitlines()
    assert row == "|  | 20.00 +-24.84 | 18.00 +-22.36 | +2.00 +-2.48 |"


def test_report_writes_points_table_and_plot(claims, tmp_path):
    report = importlib.import_module("claims_report")
    points = [report.Point("labels", arm, x, 0, x, 4) for arm in ("a", "b") for x in (1.0, 100.0)]
    report.report(points, tmp_path)
    rows = json.loads((tmp_path / "claims.json").read_text())
    assert [report.Point(**row) for row in rows] == points
    assert (tmp_path / "labels.png").read_bytes()[:4] == b"\x89PNG"
    assert "| 100 | 100.00 | 100.00 | +0.00 |" in (tmp_path / "claims.md").read_text()


def test_the_matrix_composes(claims, scenes, tmp_path, monkeypatch):
    """Every cell of benchmarks/image_tasks.py is a command that is understood."""
    tasks = importlib.import_module("image_tasks")
    made = []

    def train(words: list[str]) -> None:
        config = compose.compose(words).config
        metrics = {column.metric: 5.0 for column in tasks.COLUMNS} | {"majority": 1.0}
        Path(config.run).mkdir(parents=True)
        (Path(config.run) / "evaluation.json").write_text(json.dumps(metrics))
        made.append((config.stage.name, config.task.name if config.task else None))

    monkeypatch.setattr(tasks, "train", train)
    found = tasks.one_seed(0, tmp_path / "runs", [f"data.root={scenes}"])
    assert [stage for stage, task in made if task is None] == ["tokenizer", "mim", "mlm", "vl"]
    assert len(made) == 4 + 3 * len(tasks.COLUMNS)
    assert set(found) == {"mim", "vl", "from scratch", "chance"}
    assert all(set(row) == {column.title for column in tasks.COLUMNS} for row in found.values())


@pytest.mark.parametrize("script", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_benchmark_can_be_imported(claims, script):
    assert importlib.import_module(script)


def test_survival_ends_where_a_run_hangs(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("survival")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.cli, "main", lambda words: time.sleep(300))
    monkeypatch.setattr(module, "LONGEST", 0.5)
    pair = module.Pair("whole", [])
    with pytest.raises(SystemExit, match=r"whole hangs, 0\.5 s were given to process 0 \(starting\), process 1 \("):
        pair.wait_for_success()
    assert [os.waitpid(child, 0)[1] for child in pair.children] == [signal.SIGKILL, signal.SIGKILL]


def test_vqa_inference_prints_its_ratios(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    words = "vqa_inference --model tiny --size 32 --pictures 3 --questions 2 --batch 4 --rounds 1 --device cpu"
    monkeypatch.setattr("sys.argv", words.split())
    importlib.import_module("vqa_inference").main()
    printed = capsys.readouterr().out
    assert printed.count("questions/s   x ") == 5 and printed.count("x 1.00") >= 2
    assert "patches a picture: square 4, native 3" in printed  # of 2x2, 1x2 and 2x2


def test_scoring_speed_compares_equal_scores(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr("sys.argv", ["vqa_scoring.py", "--questions", "300", "--naive", "300"])
    module = importlib.import_module("vqa_scoring")
    module.main()
    assert "for 300 questions" in capsys.readouterr().out
    monkeypatch.setattr(module, "naive_score", lambda prediction, humans: 0.5)
    with pytest.raises(SystemExit, match="differ"):
        module.main()
