"""Published checkpoints by name: where they lie, what they are, what they reach. Pure data: no torch, no network.

Nothing here is guessed. An address stands in the place that the comment above it names; sizes in bytes and hashes are
None where nobody states them, and are recorded at the first fetch (`vlbeit.models.fetch`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple


class Published(NamedTuple):
    """One published checkpoint."""

    name: str
    what: str  # one line
    task: str  # mim | classification | segmentation | text | vl | vqa | nlvr2 | retrieval | tokenizer
    addresses: tuple[str, ...]  # tried in this order: https://... of a file, or org/repo[@revision] on the hub
    licence: str  # as its publisher states it; of the first address
    page: str  # where a person finds it
    hints: Mapping[str, Any]  # what the tensors do not tell; the fields of `convert.layout.Hints`, sizes in pixels
    metrics: Mapping[str, float] = {}  # percent, as published
    source: str = ""  # of the metrics
    size: int | None = None  # bytes of the file
    sha256: str | None = None  # of the file, hexadecimal; its first digits where only they are published


_UNILM = "https://github.com/microsoft/unilm/tree/master/"
_BEIT = "https://github.com/addf400/files/releases/download/v1.0/"
_BEIT2 = "https://github.com/addf400/files/releases/download/BEiT-v2/"
_VLMO = "https://github.com/wenhui0924/vlmo_ckpts/releases/download/vlmo/"
# The first home of every file. It has refused the public since June 2023 (unilm issues 1117, 1199), so it stands here
# only where no release address is documented: its refusal then leads to the page, and to a file placed by hand.
CLOSED_HOST = "conversationhub.blob.core.windows.net"
_AZURE = f"https://{CLOSED_HOST}/beit-share-public/"
_HEADS = {"base": 12, "base_plus": 16, "large": 16}
_WEIGHTS = {"base": "87M", "large": "305M"}
_WEIGHTS_SEGMENTATION = {"base": "163M", "large": "441M"}
# beit/ and beit2/semantic_segmentation/configs: `out_indices` of the backbone, counted from 0. transformers reads the
# same numbers in the config.json of its copies otherwise, two blocks below.
_TAPS = {"base": (3, 5, 7, 11), "large": (7, 11, 15, 23)}
# what a model was trained on, in this order; nothing said is with labels
_PLAIN_22K = "unlabelled ImageNet-22k"
_BOTH_22K = "unlabelled ImageNet-22k, ImageNet-22k"
_PLAIN_1K_300 = "unlabelled ImageNet-1k for 300 epochs"
_PLAIN_1K = "unlabelled ImageNet-1k"
_BOTH_21K = "unlabelled ImageNet-1k, ImageNet-21k"

# microsoft/unilm beit/README.md (names, tables), beit/get_started_for_image_classification.md at 4eaa6ca4 (evaluation
# logs, release addresses), beit/semantic_segmentation/README.md. Columns: name, trained on, metrics.
_BEIT_FILES: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("beit_base_patch16_224_pt22k", _PLAIN_22K, {}),
    ("beit_large_patch16_224_pt22k", _PLAIN_22K, {}),
    ("beit_base_patch16_224_pt22k_ft22k", _BOTH_22K, {}),
    ("beit_large_patch16_224_pt22k_ft22k", _BOTH_22K, {}),
    ("beit_base_patch16_224_pt22k_ft1k", f"{_PLAIN_22K}, ImageNet-1k", {"top1": 83.7, "top5": 96.6}),
    ("beit_base_patch16_224_pt22k_ft22kto1k", f"{_BOTH_22K}, ImageNet-1k", {"top1": 85.2, "top5": 97.6}),
    ("beit_base_patch16_384_pt22k_ft22kto1k", f"{_BOTH_22K}, ImageNet-1k", {"top1": 86.82, "top5": 98.124}),
    ("beit_large_patch16_224_pt22k_ft1k", f"{_PLAIN_22K}, ImageNet-1k", {"top1": 86.0, "top5": 97.6}),
    ("beit_large_patch16_224_pt22k_ft22kto1k", f"{_BOTH_22K}, ImageNet-1k", {"top1": 87.396, "top5": 98.282}),
    ("beit_large_patch16_384_pt22k_ft22kto1k", f"{_BOTH_22K}, ImageNet-1k", {"top1": 88.408, "top5": 98.602}),
    ("beit_large_patch16_512_pt22k_ft22kto1k", f"{_BOTH_22K}, ImageNet-1k", {"top1": 88.6, "top5": 98.658}),
    (
        "beit_base_patch16_640_pt22k_ft22ktoade20k",
        f"{_BOTH_22K}, ADE20K",
        {"miou": 53.61, "macc": 64.82, "aacc": 84.62, "miou_multi_scale": 54.26},
    ),
    ("beit_large_patch16_640_pt22k_ft22ktoade20k", f"{_BOTH_22K}, ADE20K", {"miou": 56.7, "miou_multi_scale": 57.0}),
)
# Their release addresses were not found written down; the table of 4eaa6ca4 names the others.
_AZURE_ONLY = {
    "beit_base_patch16_224_pt22k_ft1k",
    "beit_large_patch16_224_pt22k_ft1k",
    "beit_large_patch16_640_pt22k_ft22ktoade20k",
}

# microsoft/unilm beit2/README.md, PRETRAINING.md, get_started_for_image_classification.md and
# semantic_segmentation/README.md at 4eaa6ca4: every release address is written there.
_BEIT2_FILES: tuple[tuple[str, str, dict[str, float]], ...] = (
    ("beitv2_base_patch16_224_pt1k_300e", _PLAIN_1K_300, {}),
    ("beitv2_base_patch16_224_pt1k", _PLAIN_1K, {}),
    ("beitv2_large_patch16_224_pt1k_300e", _PLAIN_1K_300, {}),
    ("beitv2_large_patch16_224_pt1k", _PLAIN_1K, {}),
    ("beitv2_base_patch16_224_pt1k_ft21k", f"{_PLAIN_1K}, ImageNet-21k", {}),
    ("beitv2_large_patch16_224_pt1k_ft21k", f"{_PLAIN_1K}, ImageNet-21k", {}),
    ("beitv2_base_patch16_224_pt1k_300e_ft1k", f"{_PLAIN_1K_300}, ImageNet-1k", {"top1": 85.0}),
    ("beitv2_base_patch16_224_pt1k_ft1k", f"{_PLAIN_1K}, ImageNet-1k", {"top1": 85.5, "top5": 97.5}),
    ("beitv2_base_patch16_224_pt1k_ft21kto1k", f"{_BOTH_21K}, ImageNet-1k", {"top1": 86.458, "top5": 97.978}),
    ("beitv2_large_patch16_224_pt1k_300e_ft1k", f"{_PLAIN_1K_300}, ImageNet-1k", {"top1": 86.6}),
    ("beitv2_large_patch16_224_pt1k_ft1k", f"{_PLAIN_1K}, ImageNet-1k", {"top1": 87.3, "top5": 98.2}),
    ("beitv2_large_patch16_224_pt1k_ft21kto1k", f"{_BOTH_21K}, ImageNet-1k", {"top1": 88.37, "top5": 98.578}),
    ("beitv2_base_patch16_224_pt1k_ftade20k", f"{_PLAIN_1K}, ADE20K", {"miou": 53.1}),
    ("beitv2_base_patch16_224_pt1k_ft21ktoade20k", f"{_BOTH_21K}, ADE20K", {"miou": 53.5}),
    ("beitv2_large_patch16_224_pt1k_ftade20k", f"{_PLAIN_1K}, ADE20K", {"miou": 56.7}),
    (
        "beitv2_large_patch16_224_pt1k_ft21ktoade20k",
        f"{_BOTH_21K}, ADE20K",
        {"miou": 57.54, "macc": 68.78, "aacc": 86.22},
    ),
)

# microsoft/unilm beit2/TOKENIZER.md. The last part of a file's name is the beginning of its hash.
_VQKD_FILES = (
    ("vqkd_encoder_base_decoder_1x768x12_clip", "d93179da", "CLIP ViT-B/16, 1 decoder layer"),
    ("vqkd_encoder_base_decoder_3x768x12_clip", "d5036aa7", "CLIP ViT-B/16, 3 decoder layers: the one of BEiT v2"),
    ("vqkd_encoder_base_decoder_1x768x12_dino", "663c55d7", "DINO ViT-B/16, 1 decoder layer"),
)

# microsoft/unilm vlmo/README.md of December 2022. Columns: step and task, what, metrics of base, base_plus, large.
_VLMO_SIZES = ("base", "base_plus", "large")
_VLMO_STEPS: tuple[tuple[str, str, str, tuple[dict[str, float], ...]], ...] = (
    ("224_stage2", "text", "BEiT, then text alone", ({}, {}, {})),
    ("224", "vl", "COCO, VG, SBU and GCC", ({}, {}, {})),
    ("480_vqa", "vqa", "VQA v2", tuple({"test_dev": value} for value in (76.6, 78.5, 79.9))),
    ("384_nlvr2", "nlvr2", "NLVR2", tuple({"test_p": value} for value in (83.3, 85.1, 86.9))),
    (
        "384_coco", "retrieval", "COCO retrieval",
        ({"text_r1": 74.8, "image_r1": 57.2}, {"text_r1": 76.3, "image_r1": 58.6}, {"text_r1": 78.2, "image_r1": 60.6}),
    ),
    (
        "384_f30k", "retrieval", "Flickr30K retrieval",
        ({"text_r1": 92.3, "image_r1": 79.3}, {"text_r1": 93.2, "image_r1": 81.8}, {"text_r1": 95.3, "image_r1": 84.5}),
    ),
)  # fmt: skip
_VLMO_RELEASED = {  # the addresses that the README had after it moved, as others cite them
    "vlmo_base_patch16_224",
    "vlmo_large_patch16_224",  # unilm issue 1643 says that it does not answer
}

# Sums that others measured and wrote down: of the ADE20K file against its release address, twelve digits of the other
# one in a record of feature extractions; the latter agree with the name that the file first had (unilm issue 850).
_SHA256 = {
    "beit_base_patch16_640_pt22k_ft22ktoade20k": "95bba2fea9f5f6e09293463d128d0f9958642c32605f8161f234cd85923be11a",
    "beitv2_base_patch16_224_pt1k": "6d32a5f76264",
}

# Repositories of the hub with the weights of one of the files above under other names. `timm/`: the comments and
# `hf_hub_id` of timm 1.0.31, timm/models/beit.py; `microsoft/`: the conversion script of transformers, which made them.
_ON_THE_HUB = {
    "microsoft/beit-base-patch16-224-pt22k": "beit_base_patch16_224_pt22k",
    "microsoft/beit-base-patch16-224-pt22k-ft22k": "beit_base_patch16_224_pt22k_ft22k",
    "microsoft/beit-base-patch16-224": "beit_base_patch16_224_pt22k_ft22kto1k",
    "microsoft/beit-base-patch16-384": "beit_base_patch16_384_pt22k_ft22kto1k",
    "microsoft/beit-large-patch16-224-pt22k": "beit_large_patch16_224_pt22k",
    "microsoft/beit-large-patch16-224-pt22k-ft22k": "beit_large_patch16_224_pt22k_ft22k",
    "microsoft/beit-large-patch16-224": "beit_large_patch16_224_pt22k_ft22kto1k",
    "microsoft/beit-large-patch16-384": "beit_large_patch16_384_pt22k_ft22kto1k",
    "microsoft/beit-large-patch16-512": "beit_large_patch16_512_pt22k_ft22kto1k",
    "microsoft/beit-base-finetuned-ade-640-640": "beit_base_patch16_640_pt22k_ft22ktoade20k",
    "microsoft/beit-large-finetuned-ade-640-640": "beit_large_patch16_640_pt22k_ft22ktoade20k",
    "timm/beit_base_patch16_224.in22k_ft_in22k": "beit_base_patch16_224_pt22k_ft22k",
    "timm/beit_base_patch16_224.in22k_ft_in22k_in1k": "beit_base_patch16_224_pt22k_ft22kto1k",
    "timm/beit_base_patch16_384.in22k_ft_in22k_in1k": "beit_base_patch16_384_pt22k_ft22kto1k",
    "timm/beit_large_patch16_224.in22k_ft_in22k": "beit_large_patch16_224_pt22k_ft22k",
    "timm/beit_large_patch16_224.in22k_ft_in22k_in1k": "beit_large_patch16_224_pt22k_ft22kto1k",
    "timm/beit_large_patch16_384.in22k_ft_in22k_in1k": "beit_large_patch16_384_pt22k_ft22kto1k",
    "timm/beit_large_patch16_512.in22k_ft_in22k_in1k": "beit_large_patch16_512_pt22k_ft22kto1k",
    "timm/beitv2_base_patch16_224.in1k_ft_in22k": "beitv2_base_patch16_224_pt1k_ft21k",
    "timm/beitv2_base_patch16_224.in1k_ft_in1k": "beitv2_base_patch16_224_pt1k_ft1k",
    "timm/beitv2_base_patch16_224.in1k_ft_in22k_in1k": "beitv2_base_patch16_224_pt1k_ft21kto1k",
    "timm/beitv2_large_patch16_224.in1k_ft_in22k": "beitv2_large_patch16_224_pt1k_ft21k",
    "timm/beitv2_large_patch16_224.in1k_ft_in1k": "beitv2_large_patch16_224_pt1k_ft1k",
    "timm/beitv2_large_patch16_224.in1k_ft_in22k_in1k": "beitv2_large_patch16_224_pt1k_ft21kto1k",
}


def _beit_files() -> Iterator[Published]:
    """BEiT and BEiT v2 as microsoft/unilm publishes them, mirrors on the hub last."""
    for folder, files in (("beit", _BEIT_FILES), ("beit2", _BEIT2_FILES)):
        for name, trained, metrics in files:
            home = _BEIT2 if folder == "beit2" else _AZURE + "beit/" if name in _AZURE_ONLY else _BEIT
            mirrors = (repository for repository, of in _ON_THE_HUB.items() if of == name)
            yield _of_beit(name, folder, trained, (f"{home}{name}.pth", *mirrors), metrics)
    # microsoft/unilm beit2/README.md, "Code for Analysis": absolute positions, no layer scale
    name = "beit_base_patch16_224_pt1k_800ep"
    what = "unlabelled ImageNet-1k, 800 epochs, absolute positions"
    published = _of_beit(name, "beit2", what, (f"{_AZURE}beit/{name}.pth",), {})
    yield published._replace(what=published.what.replace("BEiT v2", "BEiT"))


def _of_beit(name: str, folder: str, trained: str, addresses: tuple[str, ...], metrics: dict[str, float]) -> Published:
    size = name.split("_")[1]
    side = 512 if "ade20k" in name and folder == "beit2" else int(name.split("_")[3])
    task = "segmentation" if "ade20k" in name else "classification" if "_ft" in name else "mim"
    weights = _WEIGHTS_SEGMENTATION if task == "segmentation" else _WEIGHTS
    # beit/README.md: 0.5 for all pre-training data but ImageNet-1k; the ADE20K configs have the ImageNet statistics
    half = "pt22k" in name and task != "segmentation"
    return Published(
        name=name,
        what=f"BEiT{' v2' if folder == 'beit2' else ''} {size} ({weights[size]}), {side} px: {trained}",
        task=task,
        addresses=addresses,
        licence="MIT",
        page=_UNILM + folder,
        hints={
            "image_size": (side, side),
            "num_heads": _HEADS[size],
            "normalize": "half" if half else "imagenet",
            **({"taps": _TAPS[size]} if task == "segmentation" else {}),
        },
        metrics=metrics,
        source=f"microsoft/unilm {folder}/ README and evaluation logs" if metrics else "",
        sha256=_SHA256.get(name),
    )


def _vlmo_files() -> Iterator[Published]:
    weights = dict(zip(_VLMO_SIZES, ("175M", "167M", "562M"), strict=True))
    for step, task, trained, metrics in _VLMO_STEPS:
        for size, reached in zip(_VLMO_SIZES, metrics, strict=True):
            name, side = f"vlmo_{size}_patch16_{step}", int(step.split("_")[0])
            home = _VLMO if name in _VLMO_RELEASED else _AZURE + "vlmo/"
            hints: dict[str, Any] = {"image_size": (side, side), "num_heads": _HEADS[size], "normalize": "half"}
            if size != "base_plus":  # absolute positions
                hints["text_positions"] = 196
            yield Published(
                name=name,
                what=f"VLMo {size} ({weights[size]}), {side} px: {trained}",
                task=task,
                addresses=(f"{home}{name}.pt",),
                licence="MIT",
                page=_UNILM + "vlmo",
                hints=hints,
                metrics=reached,
                source="microsoft/unilm vlmo/README.md" if reached else "",
            )


def _tokenizers() -> Iterator[Published]:
    """Image tokenizers: VQ-KD of BEiT v2; the discrete VAE of DALL-E, whose encoder the hub has too."""
    for name, sha256, teacher in _VQKD_FILES:
        yield Published(
            name=name,
            what=f"VQ-KD tokenizer, 8192 codes, 224 px: taught by {teacher}",
            task="tokenizer",
            addresses=(f"{_BEIT2}{name}-{sha256}.pth",),
            licence="MIT",
            page=_UNILM + "beit2",
            hints={"image_size": (224, 224), "num_heads": 12},
            sha256=sha256,
        )
    for part in ("encoder", "decoder"):  # addresses: microsoft/unilm beit/README.md; licence: openai/DALL-E LICENSE
        yield Published(
            name=f"dalle_{part}",
            what=f"DALL-E discrete VAE, 8192 codes: the {part}",
            task="tokenizer",
            addresses=(f"https://cdn.openai.com/dall-e/{part}.pkl",),
            licence="Modified MIT",
            page="https://github.com/openai/DALL-E",
            hints={},
        )
    name = "facebook/flava-image-codebook"  # the documentation of transformers' FlavaImageCodebook
    what = "DALL-E discrete VAE, 8192 codes: the encoder, as transformers has it"
    yield Published(name, what, "tokenizer", (name,), "BSD-3-Clause", f"https://huggingface.co/{name}", {})


def _repositories(files: Mapping[str, Published]) -> Iterator[Published]:
    """The same weights as the hub names them."""
    for repository, name in _ON_THE_HUB.items():
        layout = "timm" if repository.startswith("timm/") else "transformers"
        yield files[name]._replace(
            name=repository,
            what=f"{files[name].what} ({layout})",
            addresses=(repository,),
            licence="Apache-2.0",
            page=f"https://huggingface.co/{repository}",
            size=None,
            sha256=None,
        )


def _named(published: Iterable[Published]) -> dict[str, Published]:
    return {each.name: each for each in published}


_FILES = _named((*_beit_files(), *_vlmo_files(), *_tokenizers()))
KNOWN: Mapping[str, Published] = {**_FILES, **_named(_repositories(_FILES))}
