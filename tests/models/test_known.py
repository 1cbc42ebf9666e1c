"""The table of published weights: its form, and what the rest of the code relies on."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from urllib.parse import urlsplit

import pytest

from vlbeit.config import DataConfig
from vlbeit.models.convert.layout import Hints
from vlbeit.models.known import KNOWN, Published
from vlbeit.models.pyramid import taps

TASKS = {"mim", "classification", "segmentation", "text", "vl", "vqa", "nlvr2", "retrieval", "tokenizer"}
METRICS = {"top1", "top5", "miou", "macc", "aacc", "miou_multi_scale", "test_dev", "test_p", "text_r1", "image_r1"}
HOSTS = {"github.com", "conversationhub.blob.core.windows.net", "cdn.openai.com"}


@pytest.mark.parametrize("published", KNOWN.values(), ids=KNOWN)
def test_every_entry_has_the_form(published: Published) -> None:
    assert published.task in TASKS and published.what and "\n" not in published.what and published.licence
    assert published.addresses and len(set(published.addresses)) == len(published.addresses)
    for address in published.addresses:
        link = urlsplit(address)
        repository = re.fullmatch(r"(microsoft|timm|facebook)/[\w.-]+", address)
        assert repository or (link.scheme == "https" and link.hostname in HOSTS and not link.query)
    assert published.size is None or published.size > 1_000_000
    assert published.sha256 is None or re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{12}|[0-9a-f]{64}", published.sha256)
    assert urlsplit(published.page).scheme == "https"
    assert published.metrics.keys() <= METRICS and all(0 < value < 100 for value in published.metrics.values())
    assert bool(published.metrics) == bool(published.source)


@pytest.mark.parametrize("published", KNOWN.values(), ids=KNOWN)
def test_hints_are_what_a_conversion_takes(published: Published) -> None:
    assert published.hints.keys() <= {field.name for field in fields(Hints)}
    hints = Hints(**published.hints)
    if published.task != "tokenizer":
        assert hints.image_size is not None and hints.num_heads in (12, 16)
        height, width = hints.image_size
        assert height == width and height % 16 == 0
        DataConfig(normalize=str(hints.normalize))  # a value that the settings know
        vlmo_table = published.name.startswith("vlmo") and "base_plus" not in published.name
        assert hints.text_positions == (196 if vlmo_table else None)


def test_published_decoders_take_the_blocks_of_the_published_configs() -> None:
    decoders = [published for published in KNOWN.values() if published.task == "segmentation"]
    assert len(decoders) == 2 + 4 + 2  # BEiT, BEiT v2, copies on the hub
    for published in decoders:
        assert published.hints["taps"] == tuple(taps(12 if "base" in published.name else 24))
        assert published.hints["normalize"] == "imagenet" and "miou" in published.metrics


def test_names_are_the_keys_and_files_are_kept_apart() -> None:
    assert [published.name for published in KNOWN.values()] == list(KNOWN)
    files = [each for published in KNOWN.values() for each in published.addresses if each.startswith("https://")]
    assert len(set(files)) == len(files)


def test_what_the_documentation_names_is_there() -> None:
    assert KNOWN["beit_base_patch16_224_pt22k_ft22kto1k"].metrics["top1"] == 85.2
    assert KNOWN["vlmo_base_patch16_480_vqa"].hints["image_size"] == (480, 480)
    assert KNOWN["beitv2_large_patch16_224_pt1k_ft21kto1k"].hints["normalize"] == "imagenet"
    assert KNOWN["timm/beit_base_patch16_224.in22k_ft_in22k_in1k"].metrics["top1"] == 85.2
    for size in ("base", "base_plus", "large"):
        for step in ("224_stage2", "224", "480_vqa", "384_nlvr2", "384_coco", "384_f30k"):
            assert f"vlmo_{size}_patch16_{step}" in KNOWN
    assert {"dalle_encoder", "dalle_decoder", "facebook/flava-image-codebook"} <= KNOWN.keys()
    tokenizer = KNOWN["vqkd_encoder_base_decoder_3x768x12_clip"]
    assert tokenizer.sha256 and tokenizer.addresses[0].endswith(f"-{tokenizer.sha256}.pth")


def test_a_mirror_is_a_known_name_of_its_own_with_the_same_numbers() -> None:
    for published in KNOWN.values():
        for address in published.addresses:
            if not address.startswith("https://"):
                mirror = KNOWN[address]
                assert mirror.addresses == (address,) and mirror.sha256 is None
                assert (mirror.hints, mirror.metrics, mirror.task) == (
                    published.hints,
                    published.metrics,
                    published.task,
                )


def test_timm_mirrors_are_models_of_timm_with_the_same_transform() -> None:
    from timm.models.beit import default_cfgs

    published = {name: each for name, each in KNOWN.items() if name.startswith("timm/")}
    configs = {
        f"timm/{name}.{tag}": config
        for name, default in default_cfgs.items()
        for tag, config in default.cfgs.items()
        if name.startswith(("beit_", "beitv2_"))
    }
    assert published.keys() == configs.keys()
    for name, config in configs.items():
        assert published[name].hints["image_size"] == config.input_size[1:]
        assert (published[name].hints["normalize"] == "half") == (config.mean == (0.5, 0.5, 0.5))


def test_reading_the_table_imports_nothing_heavy() -> None:
    code = (
        "import sys, vlbeit.models.fetch; print([name for name in ('torch', 'numpy', 'httpx2') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
