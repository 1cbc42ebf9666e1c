"""The wheel as a user gets it: installed alone into a new folder, run from elsewhere, without the checkout in sight.

    python .ci/wheel_test.py dist/vlbeit-*.whl

The dependencies come from the environment of the Python that runs this.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOUNTS = {"vlbeit": "vlbeit", "tasks": "vlbeit/tasks", "data_prep": "vlbeit/data_prep", "configs": "vlbeit/configs"}

LOCATIONS = """
import sys, vlbeit, vlbeit.tasks, vlbeit.data_prep.scenes, vlbeit.configs
for module in (vlbeit, vlbeit.tasks, vlbeit.data_prep.scenes, vlbeit.configs):
    assert module.__file__.startswith(sys.argv[1]), f"{module.__name__} comes from {module.__file__}"
from importlib.metadata import version
assert version("vlbeit") == vlbeit.__version__, (version("vlbeit"), vlbeit.__version__)
"""

CONFIGS = """
from vlbeit import compose, registry
for group in ("stage", "task"):
    for name in registry.names(group):
        compose.compose([f"{group}={name}", "recipe=none"])
for data in registry.names("data"):
    compose.compose(["stage=mim", f"data={data}"])
for model in compose.PRESETS:
    compose.compose(["stage=mim", f"model={model}"])
for recipe in compose.recipes():
    compose.compose([f"recipe={recipe}"])
print(f"{len(compose.recipes())} recipes")
"""


def main(wheel: str) -> None:
    """Install, compare the files, list, compose, train two steps."""
    with tempfile.TemporaryDirectory() as folder:
        site, work = Path(folder, "site").resolve(), Path(folder, "work")
        work.mkdir()
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), wheel]
        subprocess.run(pip, check=True)
        missing = sorted(shipped() - {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()})
        assert not missing, f"not in the wheel: {missing}"
        python(site, work, "-c", LOCATIONS, str(site))
        listed = python(site, work, "-m", "vlbeit", "tasks")
        for name in ("mim", "vl", "vqa", "classification", "scenes", "imagefolder"):
            assert f"\n{name} " in listed, f"{name} is not listed:\n{listed}"
        print(python(site, work, "-c", CONFIGS), end="")
        python(site, work, "-m", "vlbeit", "prepare", "scenes", "--images", "40")
        words = ["steps=2", "global_batch_size=4", "micro_batch_size=4", "data.workers=0", "engine.log_every=1"]
        python(site, work, "-m", "vlbeit", "train", "stage=mim", "stage.target=pixels", *words)
        python(site, work, "-m", "vlbeit", "train", "stage=vl", "task=vqa", "init=none", *words)
        for run in ("mim", "vl-vqa"):
            assert (work / "runs" / run / "checkpoint" / "model.safetensors").is_file(), run
    print(f"{Path(wheel).name}: works")


def shipped() -> set[str]:
    """Every file of the checkout that the wheel must hold, as a path in the installed package."""
    return {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in MOUNTS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml") or path.name == "py.typed"
    }


def python(site: Path, work: Path, *arguments: str) -> str:
    """Run Python in `work` with nothing but `site` on the path beside the environment; its output."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    run = subprocess.run([sys.executable, "-P", *arguments], cwd=work, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"{' '.join(arguments)} gave {run.returncode}:\n{run.stdout}\n{run.stderr}"
    return run.stdout


if __name__ == "__main__":
    main(sys.argv[1])
