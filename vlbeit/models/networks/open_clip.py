"""Image and text networks of open_clip: a model by name, or from a folder with open_clip_config.json.

Legend: B batch, T text tokens, C width of the network, E width of what images and texts are compared in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from vlbeit.errors import UsageError

_VOCABULARY = 49408
# open_clip builds both sides of a model: the one that is not wanted is made as small as can be.
_SMALL_IMAGES = {"image_size": 8, "patch_size": 8, "width": 64, "layers": 1}
_SMALL_TEXTS = {"vocab_size": 1, "context_length": 1, "width": 64, "heads": 1, "layers": 1}


class ImageNetwork(nn.Module):
    """The last feature map of the image side, after its final norm where that sees all patches."""

    def __init__(self, name: str, facts: dict[str, Any], size: tuple[int, int], weights: str = "none") -> None:
        super().__init__()
        vision = facts["config"]["vision_cfg"]
        if not isinstance(vision.get("layers"), list):  # a ResNet without its head takes any size
            vision = {**vision, "image_size": size}
        if weights == "none":
            self.network = _random(facts["config"], {**vision, "timm_model_pretrained": False}, _SMALL_TEXTS).visual
            if hasattr(self.network, "set_input_size"):
                self.network.set_input_size(size)
        else:
            self.network = _pretrained(name, weights, force_image_size=vision.get("image_size")).visual
        if hasattr(self.network, "attnpool"):
            self.network.attnpool = nn.Identity()  # the head of a ResNet

    @staticmethod
    def describe(name: str, weights: str) -> dict[str, Any]:
        """`config` of the model, `mean` and `std` of the pictures that it was trained on."""
        return _describe(name, weights)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """[B, 3, height, width] -> [B, C, rows, columns]."""
        norm = getattr(self.network, "attn_pool", None) is None  # else the norm belongs to what is pooled
        out = self.network.forward_intermediates(
            image_BCHW, indices=1, normalize_intermediates=norm, intermediates_only=True
        )
        return out["image_intermediates"][-1]

    def embed(self, image_BCHW: Tensor) -> Tensor:
        """[B, 3, height, width] -> unit vectors [B, E] beside those of texts. UsageError for a ResNet: no head left."""
        if hasattr(self.network, "attnpool"):
            raise UsageError("a ResNet of open_clip has lost the head that its texts are compared with; take a ViT")
        pooled = self.network(image_BCHW)
        return F.normalize(pooled[0] if isinstance(pooled, tuple) else pooled, dim=-1)

    def resize(self, size: tuple[int, int]) -> None:
        """Follow another picture size."""
        network: Any = self.network
        if hasattr(network, "set_input_size"):
            network.set_input_size(size)
        elif hasattr(network, "positional_embedding"):
            grid = [side // patch for side, patch in zip(size, network.patch_size, strict=True)]
            table = network.positional_embedding.detach()[None]
            table = resample_abs_pos_embed(table, grid, list(network.grid_size), num_prefix_tokens=1)
            network.positional_embedding, network.grid_size = nn.Parameter(table[0]), tuple(grid)


class TextNetwork(nn.Module):
    """Every token of the text side. Each sees those before it alone, so that padding changes nothing."""

    def __init__(self, name: str, facts: dict[str, Any], vocab_size: int, weights: str = "none") -> None:
        super().__init__()
        if weights == "none":
            self.network = _random(facts["config"], _SMALL_IMAGES, facts["config"]["text_cfg"]).text
        else:
            self.network = _pretrained(name, weights).text
        old = self.network.token_embedding
        if vocab_size > old.num_embeddings:  # our [MASK]
            new = nn.Embedding(vocab_size, old.embedding_dim)
            nn.init.normal_(new.weight, std=0.02)
            with torch.no_grad():
                new.weight[: old.num_embeddings] = old.weight
            self.network.token_embedding = new

    @staticmethod
    def describe(name: str, weights: str) -> dict[str, Any]:
        """`config` of the model, `longest` text that it takes. UsageError unless it reads as CLIP does."""
        config = _describe(name, weights)["config"]
        text = config["text_cfg"]
        if "hf_model_name" in text:
            raise UsageError(f"its text side is model.text_tower=transformers:{text['hf_model_name']}")
        if text.get("vocab_size", _VOCABULARY) != _VOCABULARY or text.get("no_causal_mask"):
            raise UsageError(f"its text side is not that of CLIP (causal, vocabulary of {_VOCABULARY})")
        return {"config": config, "longest": text.get("context_length", 77)}

    def forward(self, ids_BT: Tensor, keep_BT: Tensor | None = None) -> Tensor:
        """[B, T] -> [B, T, C]."""
        network, length = self.network, ids_BT.shape[1]
        x_BTC = network.token_embedding(ids_BT) + network.positional_embedding[:length]
        return network.ln_final(network.transformer(x_BTC, attn_mask=network.attn_mask[:length, :length]))

    def embed(self, texts: list[str], facts: dict[str, Any]) -> Tensor:
        """Texts through the model's own transform -> unit vectors [texts, E]."""
        options = facts["config"]["text_cfg"].get("tokenizer_kwargs", {})
        ids_BT = SimpleTokenizer(context_length=facts["longest"], **options)(texts)
        pooled = self.network(ids_BT.to(self.network.token_embedding.weight.device))
        return F.normalize(pooled[0] if isinstance(pooled, tuple) else pooled, dim=-1)


def logit_scale(name: str, weights: str) -> float:
    """The factor of the products of image and text vectors, 1 / temperature, that a model was trained with."""
    return float(_pretrained(name, weights).logit_scale.detach().exp())


def _random(config: dict[str, Any], vision: dict[str, Any], text: dict[str, Any]) -> Any:
    """A model with random weights."""
    return open_clip.CustomTextCLIP(config["embed_dim"], vision, text, quick_gelu=config.get("quick_gelu", False))


def _pretrained(name: str, weights: str, **options: Any) -> Any:
    """A model with the weights of its folder, of a tag or of a file."""
    if _file(name).is_file():
        name, weights = f"local-dir:{_file(name).parent}", ""
    elif not weights:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise UsageError(f"say which weights: {name}@TAG with one of {', '.join(tags)}, or {name}@FILE")
    return open_clip.create_model(name, weights, force_custom_text=True, require_pretrained=True, **options)


def _describe(name: str, weights: str) -> dict[str, Any]:
    """`config`, `mean` and `std`."""
    if _file(name).is_file():
        values = json.loads(_file(name).read_text(encoding="utf-8"))
        config, pictures = values["model_cfg"], values.get("preprocess_cfg", {})
    else:
        config, pictures = open_clip.get_model_config(name), open_clip.get_pretrained_cfg(name, weights)
    if config is None:
        raise UsageError(f"open_clip has no model {name}, and there is no {_file(name)}")
    return {
        "config": config,
        "mean": list(pictures.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        "std": list(pictures.get("std") or open_clip.OPENAI_DATASET_STD),
    }


def _file(name: str) -> Path:
    return Path(name).expanduser() / "open_clip_config.json"
