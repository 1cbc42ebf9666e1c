"""Names in the package and by entry point, read without importing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vlbeit import registry
from vlbeit.errors import UsageError

PLUGIN = Path(__file__).parent / "plugin"
Distribution = Callable[..., None]


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Distribution:
    """Installs a distribution: `distribution("name", {"vlbeit.tasks": {"x": "module:Class"}}, {"module.py": text})`."""

    def install(name: str, entries: dict[str, dict[str, str]], files: dict[str, str]) -> None:
        site = tmp_path / name
        info = site / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in each.items()) for group, each in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(lines))
        for file, source in files.items():
            (site / file).parent.mkdir(exist_ok=True)
            (site / file).write_text(source)
        monkeypatch.syspath_prepend(site)

    return install


def test_lists_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"mim", "mlm", "vl"} <= registry.names("stage").keys()
    assert {"vqa", "classification"} <= registry.names("task").keys()
    assert {"scenes", "imagefolder", "vqa_v2", "pairs", "text"} <= registry.names("data").keys()
    assert "base" not in registry.names("data")  # a module that registers nothing
    assert "scenes" in registry.names("prepare")
    for group in ("stage", "task", "data", "prepare"):
        assert all(summary and "\n" not in summary for summary in registry.names(group).values())


def test_get_imports_the_class() -> None:
    assert registry.get("data", "imagefolder").__name__ == "ImageFolder"
    assert callable(registry.get("prepare", "scenes"))


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(
        UsageError, match=r"unknown data source 'imagefoldr': did you mean imagefolder\? there is .*vqa_v2"
    ):
        registry.get("data", "imagefoldr")
    with pytest.raises(UsageError, match="unknown stage 'zzz': there is"):
        registry.get("stage", "zzz")


def test_plugin_is_listed_without_running_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUGIN)
    for name in [name for name in sys.modules if name.startswith("vlbeit_plugin")]:
        monkeypatch.delitem(sys.modules, name)
    assert registry.names("stage")["copy"] == "Say how bright each patch is: the smallest stage there is."
    assert registry.names("task")["brightness"] == "Tell dark pictures from bright ones."
    assert registry.names("data")["dots"] == "Squares of one grey, half of them dark and half of them bright."
    assert not [name for name in sys.modules if name.startswith("vlbeit_plugin")]
    assert registry.get("data", "dots").kinds == ("images", "labelled")


def test_docstring_of_the_module_stands_in(distribution: Distribution) -> None:
    files = {"plain_pkg/inner.py": '"""In words.\n\nMore."""\n'}
    distribution("plain", {"vlbeit.tasks": {"plain": "plain_pkg.inner:Task"}}, files)
    assert registry.names("task")["plain"] == "In words."


@pytest.mark.parametrize(
    ("value", "files", "reason"),
    [
        ("gone_module:X", {}, "gone_module is not installed"),
        ("broken_a.gone:X", {"broken_a/__init__.py": ""}, "broken_a has no module gone"),
        ("broken_b:X", {"broken_b.py": "class X(:"}, "invalid syntax"),
        ("broken_c:X", {"broken_c.py": "import not_there_at_all\nclass X: pass"}, "imports not_there_at_all"),
    ],
)
def test_broken_plugin_breaks_only_itself(
    distribution: Distribution, value: str, files: dict[str, str], reason: str
) -> None:
    distribution("broken", {"vlbeit.tasks": {"bad": value}}, files)
    listed = registry.names("task")
    assert listed["bad"].startswith("broken: ") and reason in listed["bad"]
    assert not listed["vqa"].startswith("broken")
    with pytest.raises(UsageError, match=r"task=bad: .*plug-in broken 1.0 does not load") as caught:
        registry.get("task", "bad")
    assert "\n" not in str(caught.value)
    assert registry.get("task", "classification").__name__ == "Classification"


def test_plugin_that_raises_on_import(distribution: Distribution) -> None:
    files = {"boom_module.py": "raise RuntimeError('no licence')"}
    distribution("raising", {"vlbeit.stages": {"boom": "boom_module:X"}}, files)
    registry.names("stage")  # reading the file runs nothing
    with pytest.raises(UsageError, match=r"stage=boom: .* RuntimeError: no licence"):
        registry.get("stage", "boom")


def test_a_name_taken_twice(distribution: Distribution) -> None:
    entries = {"vlbeit.stages": {"mim": "late_module:X", "own": "late_module:X"}}
    distribution("late", entries, {"late_module.py": 'class X: "A."'})
    listed = registry.names("stage")
    assert listed["mim"].startswith(
        "broken: registered twice: by vlbeit.stages.mim and by late_module:X of the plug-in late"
    )
    assert listed["own"] == "A."
    with pytest.raises(UsageError, match=r"stage=mim: registered twice: .*; uninstall one of them"):
        registry.get("stage", "mim")
    assert registry.get("stage", "own").__name__ == "X"


def test_two_plugins_with_one_name(distribution: Distribution) -> None:
    for name in ("first", "second"):
        distribution(name, {"vlbeit.data": {"same": f"{name}_module:X"}}, {f"{name}_module.py": "class X: pass"})
    with pytest.raises(UsageError, match="data=same: registered twice"):
        registry.get("data", "same")


def test_a_distribution_found_twice_is_one(distribution: Distribution, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUGIN)
    monkeypatch.syspath_prepend(f"{PLUGIN}/.")
    assert not registry.names("data")["dots"].startswith("broken")


def test_unknown_group_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="registry group 'models'"):
        registry.names("models")


def test_of_very_many_names_those_that_resemble():
    said = registry.nearest("vlmo_bse", ["vlmo_base", "vlmo_large", *(f"x{number}" for number in range(60))])
    assert said.startswith("did you mean vlmo_base") and "vlmo_large" in said and said.endswith("60 more")
