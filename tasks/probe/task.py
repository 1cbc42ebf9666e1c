"""The probe recipe: a frozen tower, features that are computed once, and what is trained and counted on them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from vlbeit import dist
from vlbeit.config import OptimConfig, RunConfig, Settings, TextConfig, key, one_of, require
from vlbeit.data.collate import collate
from vlbeit.data.labelled import LabelledSample
from vlbeit.data.sources import check_classes, open_records, open_source
from vlbeit.data.text import Tokenizer, choose_tokenizer
from vlbeit.data.transforms import ClassificationEval
from vlbeit.engine.evaluate import evaluation_mode
from vlbeit.errors import DataError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.groups import beit_decays, param_groups
from vlbeit.models.heads import Heads
from vlbeit.models.spec import encoder_spec
from vlbeit.task import Task
from vlbeit.types import DataSpec, Evaluator, Meta, Predictor, Records

from .cache import FeatureFolder
from .evaluator import ProbeEvaluator, Rivals
from .extraction import Extraction, deviations
from .neighbours import nearest, vote
from .objective import ProbeObjective, probe_heads
from .predictor import ProbePredictor
from .records import FeatureRecords, feature_sample
from .zero_shot import ContrastPair, OpenClipPair, Pair, class_names, class_vectors

log = logging.getLogger(__name__)


@dataclass
class ProbeSettings(Settings):
    """Defaults: the linear probe of BEiT v2 and the k-NN of DINO."""

    layers: list[int] = key([], "blocks that are probed, 1 is the first; empty: all")
    dtype: str = key("float16", "float16 | float32: how features are kept on disk")
    standardize: bool = key(False, "bring every feature to mean 0 and deviation 1 over the training split first")
    crop_pct: float | None = key(None, "share of the picture that is seen; null: 224/256 below 384 pixels, else 1")
    k: int = key(20, "neighbours that vote; 0: no k-NN")
    knn_layer: int = key(0, "block whose features are compared; 0: the last one that is probed")
    temperature: float = key(0.07, "of the neighbours' votes, exp(cosine / temperature)")
    zero_shot: str = key("auto", "classify by the names of the classes: auto, where the tower can | true | false")
    templates: list[str] = key(["a photo of a {}."], "texts around a name; the vectors of several are averaged")
    names: str = key("", "file of names of the classes, one a line or JSON; empty: the classes, _ as spaces")

    def __post_init__(self) -> None:
        require(all(layer > 0 for layer in self.layers), f"task.layers={self.layers}: blocks are counted from 1")
        require(len(set(self.layers)) == len(self.layers), f"task.layers={self.layers} names a block twice")
        one_of("task.dtype", self.dtype, ("float16", "float32"))
        require(
            self.crop_pct is None or 0 < self.crop_pct <= 1,
            f"task.crop_pct={self.crop_pct} must lie in (0, 1], or null",
        )
        require(self.k >= 0, f"task.k={self.k} must not be negative")
        require(self.knn_layer >= 0, f"task.knn_layer={self.knn_layer}: blocks are counted from 1, 0 is the last")
        require(self.temperature > 0, f"task.temperature={self.temperature} must be positive")
        one_of("task.zero_shot", self.zero_shot, ("auto", "true", "false"))
        require(bool(self.templates), "task.templates=[] leaves no text: give one such as 'a photo of a {}.'")
        for template in self.templates:
            require("{}" in template, f"task.templates: {template!r} has no {{}} where the name of a class goes")


class Probe(Task):
    """Linear probe of every layer and k-NN on a frozen tower; by the names of the classes where it knows texts."""

    Config = ProbeSettings
    kind = "labelled"
    metric = "linear"
    stages = ("mim", "vl")  # of vl the texts too, for zero-shot

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.settings: ProbeSettings = config.task
        depth = config.model.depth
        layers, knn_layer = self.settings.layers, self.settings.knn_layer
        for name, value, block in (("layers", layers, max(layers, default=0)), ("knn_layer", knn_layer, knn_layer)):
            require(block <= depth, f"task.{name}={value}: the tower has model.depth={depth} blocks")
        require(
            not layers or knn_layer in (0, *layers), f"task.knn_layer={knn_layer} is not among task.layers={layers}"
        )
        self._folders: dict[str, FeatureFolder] = {}  # by split, once prepared
        self._records: dict[str, Records] = {}
        self._device = torch.device("cpu")
        self._class_vectors: torch.Tensor | None = None
        self._votes: dict[str, int] | None = None
        self._classes: list[str] = []  # of the run's meta

    def meta(self, train: Records, inherited: Meta) -> Meta:
        """`classes`, and `tokenizer` where texts are read."""
        meta: Meta = {"classes": list(open_source(self.config.data).classes())}
        named = self.config.text.tokenizer != TextConfig.tokenizer
        if self._reads_text and (named or "tokenizer" in inherited):
            tokenizer = choose_tokenizer(self.config.text, list, inherited.get("tokenizer"))
            meta["tokenizer"] = tokenizer.to_json()
        return meta

    def objective(self, meta: Meta) -> ProbeObjective:
        """The tower, with its texts where it has any, and a classifier for every probed layer."""
        self._classes, pair = meta["classes"], self._pair(meta)
        if pair is None:
            spec = encoder_spec(self.config, final_norm=False, meta=meta)
        else:
            words = Tokenizer.from_json(meta["tokenizer"], self.config.text.max_length).vocab_size
            spec = encoder_spec(self.config, experts=("image", "text"), vocab_size=words, meta=meta)
        encoder = MoMEEncoder(spec)
        blocks = [layer - 1 for layer in sorted(self.settings.layers)] or list(range(spec.depth))
        specs = probe_heads(encoder, blocks, len(meta["classes"]))
        if isinstance(pair, ContrastPair):
            specs["contrast"] = {"kind": "contrast", "dim": spec.embed_dim}
        heads = Heads(specs)
        if isinstance(pair, ContrastPair):
            pair.blank(heads["contrast"])
        return ProbeObjective(encoder, heads, pair)

    def start(self, objective: ProbeObjective) -> None:  # type: ignore[override]
        """The temperature of an open_clip model."""
        if isinstance(objective.pair, OpenClipPair):
            objective.pair_scale.fill_(objective.pair.trained_scale())

    def prepare(  # type: ignore[override]
        self, objective: ProbeObjective, splits: Mapping[str, Records], accelerator: Accelerator
    ) -> None:
        """Features of the splits and vectors of the class names; the training split is opened for k-NN if need be.

        Raises UsageError where `task.zero_shot=true` cannot be had.
        """
        check_classes(self.config.data, open_source(self.config.data).classes(), self._classes)
        self._device = accelerator.device
        self._records = dict(splits)
        if "train" not in splits:
            self._open_training_split()
        objective.to(accelerator.device)
        with evaluation_mode(objective), accelerator.autocast():
            self._name_classes(objective)
            settings, config = self.settings, self.config
            view = {"size": list(config.data.size), "normalize": config.data.normalize, "crop_pct": settings.crop_pct}
            extraction = Extraction(objective, self._image(), view, config.data, settings.dtype, accelerator)
            wanted = [split for split in self._records if split != "train" or "train" in splits or settings.k]
            self._folders.update({split: extraction(split, self._records[split]) for split in wanted})
        if settings.standardize and "train" in splits:
            mean_F, deviation_F = deviations(self._folders["train"])
            objective.standardize(mean_F.to(self._device), deviation_F.to(self._device))

    def data(self, records: Records, meta: Meta, *, train: bool) -> DataSpec:
        """Samples with `features` and `label`. Raises DataError where the data has other classes than the run."""
        check_classes(self.config.data, open_source(self.config.data).classes(), meta["classes"])
        features = FeatureRecords(records, self._folders, "train" if train else "val")
        return DataSpec(features, feature_sample, collate, DataSpec(records, LabelledSample(self._image()), collate))

    def evaluators(self, records: Records, meta: Meta) -> Mapping[str, Evaluator]:
        """One evaluator for all numbers."""
        labels = self._training_labels() if "train" in self._records else []
        commonest = Counter(labels).most_common(1)[0][0] if labels else None
        neighbours = self._neighbours if self.settings.k and "train" in self._records else None
        return {"probe": ProbeEvaluator(Rivals(neighbours, self._class_vectors, commonest))}

    def param_groups(self, objective: ProbeObjective, optim: OptimConfig) -> list[dict[str, Any]]:  # type: ignore[override]
        """The classifiers, at `optim.head_lr_scale` times `optim.lr`; biases do not decay."""
        return param_groups(objective, optim, beit_decays, scaled_head=objective.probed)

    def predictor(self, objective: ProbeObjective, meta: Meta) -> Predictor:  # type: ignore[override]
        """Image in, classes with their probabilities out, by the layer that was best when the weights were kept."""
        return ProbePredictor(objective, self._image(), meta["classes"], self.settings.templates)

    @property
    def _reads_text(self) -> bool:
        return self.config.tower == "vl" and self.settings.zero_shot != "false"

    def _pair(self, meta: Meta) -> Pair | None:
        if not self._reads_text or "tokenizer" not in meta:
            return None
        fresh = self.config.init == "none"  # towers of a run were trained on, with a contrastive head of their own
        if fresh and OpenClipPair.fits(self.config.model):
            return OpenClipPair(self.config.model)
        return ContrastPair(Tokenizer.from_json(meta["tokenizer"], self.config.text.max_length))

    def _image(self) -> ClassificationEval:
        mean, std = self.config.normalization
        return ClassificationEval(self.config.data.size, mean, std, crop_pct=self.settings.crop_pct)

    def _open_training_split(self) -> None:
        """What k-NN compares with, and what is commonest; without it these are left out, and it is said."""
        data = self.config.data
        try:
            self._records["train"] = open_records(data, self.kind, data.train_split)
        except DataError as error:
            log.warning("no k-NN and no majority: %s", error)

    def _name_classes(self, objective: ProbeObjective) -> None:
        """Vectors of the class names, or a line that says why there are none."""
        settings, pair = self.settings, objective.pair
        if settings.zero_shot == "false":
            return
        if pair is None or pair.width(objective) is None:
            reason = self._why_no_texts(pair)
            require(settings.zero_shot == "auto", f"task.zero_shot=true: {reason}")
            if dist.is_main():
                print(f"no zero_shot: {reason}", flush=True)
            return
        names = class_names(self._classes, settings.names)
        self._class_vectors = class_vectors(lambda texts: pair.embed_text(objective, texts), names, settings.templates)

    def _why_no_texts(self, pair: Pair | None) -> str:
        if self.config.tower != "vl":
            return f"stage={self.config.tower} reads no texts; stage=vl does, from a run with a contrastive head"
        if pair is None:
            return "what the run starts from names no tokenizer; text.tokenizer= does"
        return (
            "what the run started from has no contrastive head; a run of stage=vl has one, and so has init=none with "
            "model.image_tower and model.text_tower both the same open_clip:NAME@TAG"
        )

    def _training_labels(self) -> list[int]:
        """Of the training pictures; where their features are known, of those that could be read."""
        labels = list(self._records["train"].column("label"))
        folder = self._folders.get("train")
        return labels if folder is None else [labels[row] for row in folder.readable()]

    def _neighbours(self) -> dict[str, int]:
        """Sample id -> the class that k-NN votes for; found once, each process for its share of the pictures."""
        if self._votes is None:
            train, val = self._folders["train"], self._folders["val"]
            layers = [name for name, _ in val.columns if name.startswith("layer_")]
            layer = f"layer_{self.settings.knn_layer}" if self.settings.knn_layer else layers[-1]
            own = slice(dist.rank(), None, dist.world_size())
            query_QD = torch.cat([torch.from_numpy(block) for block in val.blocks(layer)])[own].to(self._device)
            blocks = (torch.from_numpy(block) for block in train.readable_blocks(layer))
            cosines_QK, row_QK = nearest(query_QD, blocks, self.settings.k)
            label = torch.as_tensor(self._training_labels(), device=self._device)
            votes_Q = vote(cosines_QK, label[row_QK], len(self._classes), self.settings.temperature)
            ids = list(self._records["val"].column("id"))[own]
            parts = dist.gather_objects(dict(zip(ids, votes_Q.tolist(), strict=True)))
            self._votes = {sample_id: guess for part in parts for sample_id, guess in part.items()}
        return self._votes
