"""Words of the command line to a config and back."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlbeit import compose as c
from vlbeit import registry
from vlbeit.cli import main
from vlbeit.config import RunConfig
from vlbeit.data.masking import RandomMask
from vlbeit.errors import DataError, UsageError
from vlbeit.models.presets import PRESETS

OWN = ("stage=mim", "data=imagefolder")


def config_of(*arguments: str) -> RunConfig:
    return c.compose(arguments).config


def error_of(*arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        c.compose(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_epochs_that_are_typed_win_over_the_steps_of_a_recipe() -> None:
    assert (config := config_of("stage=mim", "epochs=2")).steps is None and config.epochs == 2
    assert config_of("stage=mim", "epochs=2", "steps=3").steps == 3
    assert config_of("stage=mim").steps is not None


def test_settings_of_the_stage_and_types() -> None:
    config = config_of(
        *OWN, "stage.target=pixels", "optim.lr=3e-5", "steps=7", "compile=true", "data.image_size=[32,64]"
    )
    assert type(config.stage) is registry.get("stage", "mim").Config
    assert config.stage.name == "mim" and config.stage.target == "pixels"
    assert config.task is None and config.tower == config.title == "mim"
    assert (config.optim.lr, config.steps, config.compile, config.data.size) == (3e-5, 7, True, (32, 64))
    assert config.model == PRESETS["base"] or config.model.name == "base"
    assert config.data.name == "imagefolder" and config.data.root == "data/imagefolder"
    assert config.run == "runs/mim"


def test_task_takes_its_first_tower_and_says_so() -> None:
    composed = c.compose(["task=vqa", "data=vqa_v2"])
    towers = registry.get("task", "vqa").stages
    assert composed.config.tower == towers[0] and composed.config.run == f"runs/{towers[0]}-vqa"
    assert f"task=vqa takes stage={towers[0]}" in composed.notes
    assert type(composed.config.task) is registry.get("task", "vqa").Config
    assert composed.config.optim.head_lr_scale == 20  # of configs/task/vqa.yaml


def test_yaml_of_the_stage_is_left_out_beside_a_task() -> None:
    assert config_of(*OWN).optim.lr == 1.5e-3
    assert config_of(*OWN, "task=classification").optim.lr == 4e-3


def test_scenes_brings_tiny_and_its_recipe() -> None:
    composed = c.compose(["stage=mim"])
    assert composed.config.model.name == "tiny" and composed.config.data.root == "data/scenes"
    assert composed.notes[0].startswith("data=scenes brings model=tiny")
    if "scenes_mim" in c.recipes():
        assert composed.notes == ["data=scenes brings model=tiny and recipe=scenes_mim"]
    given = c.compose(["stage=mim", "model=base", "recipe=none"])
    assert given.notes == [] and given.config.model.name == "base" and given.config.optim.lr == 1.5e-3


@pytest.mark.parametrize("recipe", [name for name in c.recipes() if name.startswith("scenes_")])
def test_recipe_of_the_built_in_data_is_the_one_that_it_brings(recipe: str) -> None:
    name = recipe.removeprefix("scenes_")
    group = "task" if name in registry.names("task") else "stage"
    assert config_of(f"{group}={name}", f"recipe={recipe}") == config_of(f"{group}={name}")
    assert config_of(f"recipe={recipe}") == config_of(f"{group}={name}")


def test_a_recipe_brings_its_groups() -> None:
    composed = c.compose(["recipe=beit_large_in1k"])
    config = composed.config
    assert composed.notes == [
        "recipe=beit_large_in1k brings task=classification, data=imagefolder and model=large",
        "task=classification takes stage=mim",
    ]
    assert (config.title, config.data.name, config.data.root) == (
        "mim-classification",
        "imagefolder",
        "data/imagefolder",
    )
    assert config.model == replace(PRESETS["large"], drop_path=0.2)
    typed = ("stage=mim", "task=classification", "data=imagefolder", "model=large")
    assert (again := c.compose([*typed, "recipe=beit_large_in1k"])).config == config and again.notes == []
    assert config_of("stage=vl", "recipe=beit_large_in1k").title == "vl-classification"


def test_typed_words_win_over_the_groups_of_a_recipe() -> None:
    composed = c.compose(["recipe=beit_base_in1k", "model=large", "data=scenes", "optim.lr=1e-5"])
    config = composed.config
    assert config.model == replace(PRESETS["large"], drop_path=0.1)  # the size is typed, the number is the recipe's
    assert (config.data.name, config.data.root, config.optim.lr) == ("scenes", "data/scenes", 1e-5)
    assert composed.notes[0] == "recipe=beit_base_in1k brings task=classification"
    assert "data=scenes replaces data=imagefolder of recipe=beit_base_in1k" in composed.notes
    (note,) = [line for line in composed.notes if line.startswith("model=large replaces model=base")]
    assert "numbers (optim.*, model.drop_path) are for model=base; those of recipe=beit_large_in1k are for it" in note
    (note,) = [line for line in c.compose(["recipe=beit_base_in1k", "model=tiny"]).notes if "replaces" in line]
    assert note.endswith("are for model=base")  # there is no recipe for tiny to name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("task=vqa", "recipe=beit_base_in1k"), "recipe=beit_base_in1k is for task=classification, not task=vqa: for"),
        (("stage=vl", "recipe=scenes_mim"), "recipe=scenes_mim is for stage=mim, not stage=vl: for stage=vl there is"),
        (
            ("stage=mim", "task=vqa", "recipe=scenes_mim"),
            "is for stage=mim itself, not for task=vqa on it: for",
        ),
        (("recipe=beit_base_in1",), "unknown recipe 'beit_base_in1': did you mean beit_base_in1k"),
        (("stage=mlm", "recipe=beit_base_in1k"), "task=classification does not take stage=mlm"),
    ],
)
def test_a_recipe_for_something_else_is_refused(words: tuple[str, ...], said: str) -> None:
    assert said in error_of(*words)


def test_help_and_dry_run_show_what_a_recipe_brings(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row.key: row.default for row in c.describe_keys(["recipe=beitv2_base_in1k"])}
    shown = [rows[key] for key in ("task", "model", "data", "data.root", "data.normalize", "optim.layer_decay")]
    assert shown == ["classification", "base", "imagefolder", "data/imagefolder", "imagenet", "0.6"]
    assert main(["train", "recipe=beitv2_base_in1k", "data.root=data/imagenet", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "recipe=beitv2_base_in1k brings task=classification" in out and "root: data/imagenet" in out


@pytest.mark.parametrize("data", ["scenes", "imagefolder"])
@pytest.mark.parametrize("word", [f"{group}={name}" for group in ("stage", "task") for name in registry.names(group)])
def test_every_stage_and_task_composes(word: str, data: str) -> None:
    config = config_of(word, f"data={data}")
    assert config.title.endswith(word.partition("=")[2]) and config.data.name == data


@pytest.mark.parametrize(
    "root", ["/a/b=c", "/a (1)/x", "/a,b", "C:\\data\\", "it's", '"quoted', "~/x#y", "/ä/ö", "[draft] 2"]
)
def test_values_are_quoted_for_the_user(root: str) -> None:
    assert config_of(*OWN, f"data.root={root}").data.root == root


def test_texts_stay_as_typed() -> None:
    assert config_of(*OWN, "run=007").run == "007"
    assert config_of(*OWN, "data.root='a b'").data.root == "a b"
    assert config_of(*OWN, "optim.clip_grad=null").optim.clip_grad is None
    assert config_of(*OWN, "optim.betas=[0.9,0.95]").optim.betas == [0.9, 0.95]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("target=pixels", "unknown key 'target': did you mean stage.target?"),
        ("optm.lr=1", "unknown key 'optm.lr': did you mean optim.lr?"),
        ("lr=1", "did you mean optim.lr?"),
        ("batch_size=1", "did you mean global_batch_size?"),
        ("input_size=1", "did you mean data.image_size?"),
        ("drop_path=1", "did you mean model.drop_path?"),
        ("output_dir=1", "did you mean run?"),
        ("finetune=1", "did you mean init?"),
        ("update_freq=1", "did you mean micro_batch_size?"),
        ("sed=1", "did you mean seed?"),
        ("stage.levels=1", "`vlbeit train stage=mim --help` lists all keys"),
        ("optim.lr=abc", "optim.lr=abc is not a number"),
        ("optim.lr=1e-3,1e-4", "several values need --multirun"),
        ("steps=2.5", "steps=2.5 is not a whole number or null"),
        ("seed=null", "seed=null is not a whole number"),
        ("compile=maybe", "compile=maybe is not true or false"),
        ("optim.betas=0.9", "optim.betas=0.9 is not a list: write optim.betas=[0.9]"),
        ("precision=int8", "precision=int8 is not one of fp64, fp32, bf16, fp16"),
        ("optim=3", "optim is a section"),
        ("stage.name=vl", "write stage=vl"),
        ("model=huge", "unknown model 'huge': there is base, base_plus, large, tiny"),
        ("recipe=x", "unknown recipe 'x'"),
        ("mim", "'mim' is not key=value"),
        ("+optim.lr=1", "is not a key"),
        ("--lr", "--lr is not an option: settings are written key=value, here optim.lr=VALUE"),
        ("--batch-size=4", "here global_batch_size=4"),
        ("--dryrun", "did you mean --dry-run?"),
        ("stage=vl", "stage= is given more than once"),
        ("stage.mask_ratio=3", "stage.mask_ratio=3"),
    ],
)
def test_mistakes_are_named(word: str, said: str) -> None:
    assert said in error_of(*OWN, word)


@pytest.mark.parametrize("value", ["null", "{a:b}"])
def test_a_list_is_proposed_of_plain_values_alone(value: str) -> None:
    said = error_of(*OWN, f"optim.betas={value}")
    assert "is not a list" in said and "write" not in said


def test_random_masking_has_no_blocks() -> None:
    said = error_of(*OWN, "stage.masking=random", "stage.min_block=0.3")
    assert "stage.masking=random masks single patches, no stage.min_block=0.3" in said


@pytest.mark.parametrize("exact", ["true", "false"])
def test_random_masking_is_exact_whatever_is_said(exact: str) -> None:
    config = config_of(*OWN, "stage.target=pixels", "stage.masking=random", f"stage.exact_count={exact}")
    recipe = registry.get("stage", "mim")(config)
    mask = recipe.data([], recipe.meta([], {}), train=True).transform.mask
    assert type(mask) is RandomMask
    assert [mask(np.random.default_rng(seed)).sum() for seed in range(20)] == [75] * 20


def test_names_are_checked() -> None:
    assert "unknown stage 'mimm': did you mean mim?" in error_of("stage=mimm")
    assert "unknown data source 'scnes': did you mean scenes?" in error_of("stage=mim", "data=scnes")
    assert "nothing to train: give stage= (" in error_of("data=scenes")
    assert "task=vqa does not take stage=mlm: it takes " in error_of("task=vqa", "stage=mlm")
    assert "unknown stage 'vll': did you mean vl?" in error_of("task=vqa", "stage=vll")
    assert "beside task=classification, stage=mim only names the tower" in error_of(
        "stage=mim", "task=classification", "stage.target=pixels"
    )


def test_multirun_makes_a_run_of_every_combination() -> None:
    runs = c.compose_many([*OWN, "optim.lr=1e-3,1e-4", "stage.target=pixels,dvae", "data.root=/a b"])
    assert [run.config.run for run in runs] == [
        "runs/mim-lr0.001-targetpixels",
        "runs/mim-lr0.001-targetdvae",
        "runs/mim-lr0.0001-targetpixels",
        "runs/mim-lr0.0001-targetdvae",
    ]
    assert [run.config.optim.lr for run in runs] == [1e-3, 1e-3, 1e-4, 1e-4]
    with pytest.raises(UsageError, match="run= names one folder for several runs"):
        c.compose_many([*OWN, "seed=1,2", "run=x"])


def test_config_file_there_and_back(tmp_path: Path) -> None:
    for words in (("stage=mim", "stage.target=pixels", "optim.lr=1e-5"), ("task=vqa", "data=vqa_v2", "run=007")):
        config = config_of(*words)
        path = tmp_path / "config.yaml"
        path.write_text(c.to_yaml(config))
        assert c.from_yaml(path) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stage: {name: mim}\noptm: {lr: 1}\n", "optm"),
        ("stage: [", "config.yaml"),
        ("- 1\n", "does not hold a config"),
        ("optim: {lr: 1}\n", "does not name a stage"),
    ],
)
def test_damaged_config_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        c.from_yaml(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_missing_config_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"config.yaml cannot be read: {__import__('os').strerror(errno.ENOENT)}"):
        c.from_yaml(tmp_path / "config.yaml")


def test_differing_keys() -> None:
    stored, same = (
        config_of(*OWN),
        config_of(*OWN, "steps=9", "data.workers=0", "run=x", "device=cpu", "overwrite=true"),
    )
    assert c.differing_keys(stored, same) == []
    assert c.differing_keys(stored, config_of(*OWN, "optim.lr=1", "stage.target=pixels")) == [
        ("stage.target", "dvae", "pixels"),
        ("optim.lr", 1.5e-3, 1.0),
    ]
    keys = [key for key, _, _ in c.differing_keys(stored, config_of("stage=vl", "data=imagefolder"))]
    assert {"stage.name", "stage.target"} <= set(keys)


def test_override_of_a_finished_run() -> None:
    config = config_of("task=vqa", "data=vqa_v2")
    changed = c.override(config, ["data=scenes", "data.val_split=test", "micro_batch_size=4"])
    assert (changed.data.name, changed.data.root, changed.data.val_split) == ("scenes", "data/scenes", "test")
    assert changed.data.image_size == config.data.image_size and changed.micro_batch_size == 4
    assert config.data.name == "vqa_v2"  # the given one is left alone
    for word, said in (
        ("model=tiny", "cannot be changed"),
        ("optim.l=3", "optim.lr"),
        ("stage.target=x", "only names"),
    ):
        with pytest.raises(UsageError, match=said):
            c.override(config, [word])


def test_describe_keys_has_every_key_and_its_meaning() -> None:
    rows = c.describe_keys(["stage=mim"])
    assert [row.key for row in rows[:5]] == ["stage", "task", "model", "data", "recipe"]
    assert {"stage.target", "optim.lr", "data.root", "run", "micro_batch_size"} <= {row.key for row in rows}
    assert not [row.key for row in rows if not row.meaning]
    assert not [row.key for row in rows if row.key.endswith(".name") and row.key != "optim.name"]
    assert {row.key: row.default for row in rows}["stage.target"] == "dvae"
    assert len(c.describe_keys()) > 40
