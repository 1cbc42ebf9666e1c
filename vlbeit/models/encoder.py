"""The mixture-of-modality-experts encoder: image only it is BEiT, image and text together it is VLMo.

Legend: B batch, N patches, T text tokens, L all tokens, D width, H heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlbeit.models.resizing import resize_embedding
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.towers import TowerPatches, TowerWords
from vlbeit.nn import packed
from vlbeit.nn.block import Block, Route, route
from vlbeit.nn.embed import PatchEmbed, TextEmbed
from vlbeit.nn.relpos import RelativePositionBias, within
from vlbeit.types import Span, Tokens


class MoMEEncoder(nn.Module):
    """Shared attention, one feed-forward expert per modality (VLMo, arXiv 2111.02358; BEiT, arXiv 2106.08254).

    The image pass of an encoder with text and fused experts is that of the encoder with the image expert alone.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        dim, has_text = spec.embed_dim, spec.vocab_size is not None
        if spec.image_size is not None:
            self.patch_embed: PatchEmbed | TowerPatches
            if spec.image_tower == "own":
                self.patch_embed = PatchEmbed(spec.patch_size, dim)
            else:
                self.patch_embed = TowerPatches(spec)
                spec = spec.with_tower("image", self.patch_embed.facts)
            self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim)) if spec.mask_token else None
        absolute = spec.positions == "absolute"
        grid = spec.grid
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1] + 1, dim)) if absolute and grid else None
        self.text_embed: TextEmbed | TowerWords | None = None
        self.type_embed = None
        if spec.vocab_size is not None:
            if spec.text_tower == "own":
                positions = spec.text_positions if absolute else None
                self.text_embed = TextEmbed(spec.vocab_size, dim, positions, spec.drop_path)
            else:
                self.text_embed = TowerWords(spec)
                spec = spec.with_tower("text", self.text_embed.facts)
            self.type_embed = nn.Embedding(spec.token_types, dim)
        self.spec = spec
        tables = {"per_layer": spec.depth, "shared": 1, "absolute": 0}[spec.positions]
        length = spec.text_positions if has_text else None
        self.rel_pos = nn.ModuleList(RelativePositionBias(spec.num_heads, grid, length) for _ in range(tables))
        self.blocks = nn.ModuleList(self._block(i, rate) for i, rate in enumerate(spec.rates))
        self.norm = nn.LayerNorm(dim, eps=1e-6) if spec.final_norm else nn.Identity()
        self._initialise()

    def _block(self, index: int, drop_path: float) -> Block:
        spec = self.spec
        top = index >= spec.depth - spec.fused_layers
        experts = (*spec.experts, "fused") if top else spec.experts
        if spec.shared_expert:
            experts = ("image",)
        hidden = int(spec.embed_dim * spec.mlp_ratio)
        return Block(spec.embed_dim, spec.num_heads, hidden, experts, spec.layer_scale, drop_path)

    @torch.no_grad()
    def _initialise(self) -> None:
        """BEiT's pre-training initialisation: normal 0.02 cut at one deviation, residual outputs scaled by depth."""
        for name, module in self.named_modules():
            if ".tower." in name:
                continue  # a foreign network has its own
            if isinstance(module, nn.Linear | nn.Conv2d):
                _truncated(module.weight, self.spec.init_std)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for token in (getattr(self, "cls_token", None), self.mask_token, self.pos_embed):
            if token is not None:
                _truncated(token, self.spec.init_std)
        if self.type_embed is not None:
            # differs from VLMo (normal 0.02): zero keeps the image pass of a tower that gains text unchanged
            self.type_embed.weight.zero_()
        for index, block in enumerate(self.blocks):
            scale = math.sqrt(2.0 * (index + 1))
            block.attn.proj.weight.div_(scale)
            for expert in block.experts.values():
                expert.mlp.fc2.weight.div_(scale)

    def embed_image(self, image_BCHW: Tensor, mask_BN: Tensor | None = None, type_id: int = 1) -> Tokens:
        """Picture to CLS + patches; True in `mask_BN` [B, N] puts the mask token there.

        A picture may have fewer rows or columns than `spec.grid`: relative positions hold for it as they are, absolute
        ones are interpolated. Raises ValueError where it has more, or there is no mask token.
        """
        x_BND, grid = self.patch_embed(image_BCHW)
        if not within(grid, self.spec.grid):
            raise ValueError(f"image of {grid[0]}x{grid[1]} patches; this encoder's positions are for {self.spec.grid}")
        if mask_BN is not None:
            if self.mask_token is None:
                raise ValueError("this encoder has no mask token: only masked image modeling builds one")
            x_BND = torch.where(mask_BN[..., None], self.mask_token.to(x_BND.dtype), x_BND)
        x_BLD = torch.cat([self.cls_token.to(x_BND.dtype).expand(x_BND.shape[0], -1, -1), x_BND], dim=1)
        if self.pos_embed is not None:
            assert self.spec.grid is not None
            own = grid == self.spec.grid
            x_BLD = x_BLD + (self.pos_embed if own else resize_embedding(self.pos_embed, self.spec.grid, grid))
        if self.type_embed is not None:
            x_BLD = x_BLD + self.type_embed.weight[type_id]
        return Tokens(x_BLD, None, (Span("image", 0, x_BLD.shape[1], grid, type_id),))

    def embed_text(self, ids_BT: Tensor, keep_BT: Tensor | None = None, segments_BT: Tensor | None = None) -> Tokens:
        """Token ids [B, T] to text tokens; False in `keep_BT` marks padding.

        `segments_BT` [B, T]: several texts in a row, the number of each token's, 0 for padding. Each is then what it is
        alone. Raises ValueError without a text part, and for packed texts where another network reads them.
        """
        if self.text_embed is None or self.type_embed is None:
            raise ValueError("this encoder has no text part: it was built for images alone")
        keep_BT = None if keep_BT is None else keep_BT.bool()
        spans = (Span("text", 0, ids_BT.shape[1]),)
        if segments_BT is None:
            return Tokens(self.text_embed(ids_BT, keep_BT) + self.type_embed.weight[0], keep_BT, spans)
        if not isinstance(self.text_embed, TextEmbed):
            raise ValueError(f"{self.spec.text_tower} lets every word see all others: texts cannot be packed for it")
        x_BTD = self.text_embed(ids_BT, keep_BT, packed.places(segments_BT)) + self.type_embed.weight[0]
        return Tokens(x_BTD, keep_BT, spans, segments_BT)

    def forward(
        self, tokens: Tokens, *, start: int = 0, stop: int | None = None, fused: bool | None = None, norm: bool = True
    ) -> Tokens:
        """Run blocks start (included) to stop (excluded) and, with `norm`, the final norm.

        `fused=True` sends a single span through the fused experts where there are any (VLMo's second contrastive
        pair); None follows the rule of `vlbeit.nn.block.route`.
        """
        bias_of = self._biases(tokens)
        x_BLD = tokens.x_BLD
        for index in range(start, self.spec.depth if stop is None else stop):
            x_BLD = self._run(index, x_BLD, bias_of(index), self._path(tokens, index, fused))
        return tokens._replace(x_BLD=self.norm(x_BLD) if norm else x_BLD)

    def forward_intermediates(self, tokens: Tokens, indices: list[int], *, norm: bool = False) -> list[Tokens]:
        """Outputs of the blocks `indices` (0-based, as in timm), each through the final norm if `norm`."""
        bias_of = self._biases(tokens)
        x_BLD, taps = tokens.x_BLD, {}
        for index in range(max(indices) + 1):
            x_BLD = self._run(index, x_BLD, bias_of(index), self._path(tokens, index, None))
            if index in indices:
                taps[index] = tokens._replace(x_BLD=self.norm(x_BLD) if norm else x_BLD)
        return [taps[index] for index in indices]

    @torch.no_grad()
    def attention(self, tokens: Tokens, block: int) -> Tensor:
        """Attention probabilities [B, H, L, L] of one block, recomputed from the embedded tokens."""
        below = self(tokens, stop=block, norm=False).x_BLD
        chosen = self.blocks[block]
        return chosen.attn.probabilities(chosen.norm1(below), self.bias(tokens, block))

    def bias(self, tokens: Tokens, block: int) -> Tensor | None:
        """What is added to the attention scores of one block, broadcasting to [B, H, L, L]; None for nothing."""
        return self._biases(tokens)(block)

    def _path(self, tokens: Tokens, index: int, fused: bool | None) -> Route:
        if self.spec.shared_expert:
            return (("image", tokens.spans[0].start, tokens.spans[-1].stop),)
        names: Any = self.blocks[index].names
        return route(tokens.spans, names, fused)

    def _run(self, index: int, x_BLD: Tensor, bias: Tensor | None, path: Route) -> Tensor:
        if self.spec.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self.blocks[index], x_BLD, bias, path, use_reentrant=False)  # type: ignore[return-value]
        return self.blocks[index](x_BLD, bias, path)

    def _biases(self, tokens: Tokens) -> Any:
        """Block index -> what is added to its scores: positions, and -inf on the keys that are padding."""
        if tokens.segments_BL is not None:
            return self._packed_biases(tokens.segments_BL, tokens.spans)
        padding = None
        if tokens.keep_BL is not None:
            padding = torch.zeros(tokens.keep_BL.shape, dtype=torch.float32, device=tokens.x_BLD.device)
            padding = padding.masked_fill(~tokens.keep_BL, float("-inf"))[:, None, None, :]
        shared = self._bias(0, tokens.spans, padding) if self.spec.positions == "shared" else None

        def of(index: int) -> Tensor | None:
            return shared if shared is not None else self._bias(index, tokens.spans, padding)

        return of

    def _packed_biases(self, segments_BL: Tensor, spans: tuple[Span, ...]) -> Any:
        """As `_biases`, where several texts stand in a row; the masks say what is padding too."""
        if not self.rel_pos:
            apart = packed.separation(segments_BL)
            return lambda index: apart
        index_BLL = packed.packed_index(segments_BL, self.spec.text_positions)
        if self.spec.positions == "shared":
            shared = self.rel_pos[0](spans, index_BLL)
            return lambda index: shared
        return lambda index: self.rel_pos[index](spans, index_BLL)

    def _bias(self, index: int, spans: tuple[Span, ...], padding: Tensor | None) -> Tensor | None:
        if not self.rel_pos:
            return padding
        bias_HLL = self.rel_pos[index](spans)
        return bias_HLL[None] if padding is None else bias_HLL[None] + padding


def join(*parts: Tokens) -> Tokens:
    """One sequence of several; the order of arguments is the order of tokens. VLMo: text first.

    Raises ValueError for packed texts: a picture belongs to one of them.
    """
    if any(part.segments_BL is not None for part in parts):
        raise ValueError("packed texts cannot be joined with anything: embed each text of its own")
    spans, offset = [], 0
    for part in parts:
        spans += [span._replace(start=span.start + offset, stop=span.stop + offset) for span in part.spans]
        offset += part.x_BLD.shape[1]
    keep_BL = None
    if any(part.keep_BL is not None for part in parts):
        keep_BL = torch.cat(
            [
                torch.ones(part.x_BLD.shape[:2], dtype=torch.bool, device=part.x_BLD.device)
                if part.keep_BL is None
                else part.keep_BL
                for part in parts
            ],
            dim=1,
        )
    return Tokens(torch.cat([part.x_BLD for part in parts], dim=1), keep_BL, tuple(spans))


def split(tokens: Tokens) -> list[Tokens]:
    """The inverse of `join`: one `Tokens` per span."""
    out = []
    for span in tokens.spans:
        keep_BL = None if tokens.keep_BL is None else tokens.keep_BL[:, span.start : span.stop]
        own = span._replace(start=0, stop=span.stop - span.start)
        out.append(Tokens(tokens.x_BLD[:, span.start : span.stop], keep_BL, (own,)))
    return out


def _truncated(weight: Tensor, std: float) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-std, b=std)
