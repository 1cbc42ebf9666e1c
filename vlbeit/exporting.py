"""`vlbeit export`: a run as an ONNX graph, kept only where onnxruntime and torch agree on it.

The file's metadata says what a user of the graph needs: `vlbeit` (version) and `run` as text, everything else as JSON:
`image_size` (height, width), `normalization` (mean, std) and what the task adds, such as `answers` or `classes`.
"""

from __future__ import annotations

import json
import os
import shlex
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vlbeit import __version__, chain, compose
from vlbeit.errors import DataError, UsageError, UserError
from vlbeit.inference import Trained
from vlbeit.launch import say
from vlbeit.models.checkpoint import read_head, spec_of
from vlbeit.models.image_tower import ImageTower
from vlbeit.task import Task
from vlbeit.types import Batch, Exportable

TOLERANCE = 1e-4  # the largest difference between an output of onnxruntime and the same one of torch
PACKAGES = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")


class Written(NamedTuple):
    """What `export` wrote, and what it found out about it."""

    files: list[Path]  # the graph, and its weights beside it where they pass the 2 GB of one file
    signature: list[tuple[str, str, str, str]]  # in or out, name, type, shape
    checked: str  # the sizes, in words
    difference: float  # the largest one between onnxruntime and torch
    metadata: list[str]  # its names
    usage: str  # a command that runs the graph


class _Graph(nn.Module):
    """`call` with its inputs by position, as the nodes of a graph have them; `owner` has the weights."""

    def __init__(self, owner: nn.Module, call: Callable[[Batch], Tensor], names: list[str]) -> None:
        super().__init__()
        self.owner, self.call, self.names = owner, call, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(dict(zip(self.names, inputs, strict=True)))


def export(run: str | Path, out: str | Path, *, overwrite: bool = False) -> Written:
    """Write the ONNX graph of a run: image features of a stage, for a task what it offers (logits).

    It is compared with torch at two sizes of every dynamic axis before it gets its name.

    Raises UsageError for a run without anything to export, missing packages and an `out` that cannot be, DataError for
    a run that cannot be read, or where torch cannot export it or onnxruntime finds other numbers; nothing is left then.
    """
    out = Path(out)
    _check_packages()
    _check_out(out, overwrite)
    owner, offer = _offered(run)
    graph = _Graph(owner.float().eval(), offer.call, list(offer.axes)).requires_grad_(False)
    facts = {name: json.dumps(fact, ensure_ascii=False) for name, fact in offer.facts.items()}
    metadata = {"vlbeit": __version__, "run": str(run), **facts}
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=out.parent) as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        file = Path(folder) / out.name
        with _in_one_line(run, "torch cannot export it"):
            _save(graph, offer, metadata, file)
        with _in_one_line(run, "onnxruntime cannot run the graph"):
            difference, signature = _compared(graph, offer, file)
        if not difference < TOLERANCE:  # NaN too
            raise DataError(
                f"{run}: onnxruntime and torch differ by {difference:.2g}, more than {TOLERANCE:g}, at "
                f"{_in_words(offer)}: {out} is not written; has the run numbers that are not finite, or too large?"
            )
        written = [out.parent / part.name for part in sorted(Path(folder).iterdir(), reverse=True)]
        for part in written:  # the weights, where they have a file of their own, before the graph that names it
            os.replace(Path(folder) / part.name, part)
    return Written(written[::-1], signature, _in_words(offer), difference, list(metadata), _usage(out, offer))


def _check_packages() -> None:
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(f"vlbeit export needs {', '.join(missing)}: pip install 'vlbeit[onnx]'")


def _check_out(out: Path, overwrite: bool) -> None:
    """UsageError where the file cannot be written, or would replace another: before the run is read."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder: name a file, such as {out / 'model.onnx'}")
    if not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}; make it, or name another file")
    there = [path for path in (out, out.with_name(f"{out.name}.data")) if path.exists()]
    if there and not overwrite:
        raise UsageError(f"{there[0]} is there already: name another file, or add --overwrite")


def _offered(run: str | Path) -> tuple[nn.Module, Exportable]:
    """The module with the weights of a run, and what of it is made a graph of."""
    head = read_head(run)
    recipe = chain.recipe_of(compose.from_values(head["config"], f"{run}: its config")) if head["config"] else None
    if isinstance(recipe, Task):
        trained = Trained(run)
        offer = recipe.exported(trained.objective, trained.meta)
        facts = _image_facts(trained.config.data.size, trained.config.normalization)
        return trained.objective, offer._replace(facts=facts | offer.facts)
    spec = spec_of(head["description"], run)
    if spec is None or spec.image_size is None or (recipe is not None and recipe.kind == "text"):
        what = "a run of a tokenizer" if spec is None else "a run of text alone"
        raise UsageError(
            f"{run} is {what}, which cannot be exported: a run of mim or vl gives image features, one of a task such "
            f"as classification or vqa its logits"
        )
    if recipe is None and "answer" in head["description"].get("heads", {}):
        say(f"note: {run} carries no config, so its image features are exported: a run fine-tuned from it has answers")
    tower = ImageTower.from_run(run)
    return tower, _tower_offer(tower)


def _image_facts(size: Sequence[int], normalization: tuple[Sequence[float], Sequence[float]]) -> dict[str, Any]:
    mean, std = normalization
    return {"image_size": list(size), "normalization": {"mean": list(mean), "std": list(std)}}


def _tower_offer(tower: ImageTower) -> Exportable:
    """Class logits where the tower has classes, else CLS and patches [B, 1+N, D] after the final norm."""
    shape = tower.default_cfg["input_size"]
    forward = tower.forward if tower.num_classes else tower.forward_features
    return Exportable(
        call=lambda batch: forward(batch["image"]),
        example=lambda sizes: {"image": torch.randn(sizes["batch"], *shape)},
        axes={"image": {0: "batch"}},
        sizes={"batch": (1, 3)},
        output="logits" if tower.num_classes else "features",
        facts=_image_facts(shape[1:], (tower.mean, tower.std)),
    )


def _save(graph: _Graph, offer: Exportable, metadata: dict[str, str], file: Path) -> None:
    """Trace the graph at sizes between those that it is checked at, and write it with its metadata."""
    example = offer.example({name: (small + large) // 2 for name, (small, large) in offer.sizes.items()})
    inputs = tuple(example[name] for name in graph.names)
    dims = {
        name: torch.export.Dim(name, max=large if name in offer.limited else None)
        for name, (_, large) in offer.sizes.items()
    }
    shapes = (tuple({axis: dims[size] for axis, size in offer.axes[name].items()} for name in graph.names),)
    # traced here, and not by torch.onnx: that falls back to other ways, which may fix a size without a word
    with torch.no_grad():
        traced = torch.export.export(graph, inputs, dynamic_shapes=shapes, strict=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name")  # said where two inputs share one, as ours do
        program = torch.onnx.export(
            traced,
            input_names=graph.names,
            output_names=[offer.output],
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    _clean(program.model)
    program.model.metadata_props.update(metadata)
    program.save(str(file))


def _clean(model: Any) -> None:
    """In place: no stack traces, which have this machine's paths; every layer's table of positions but once."""
    from onnx_ir.passes import common

    common.ClearMetadataAndDocStringPass()(model)
    common.DeduplicateInitializersPass(size_limit=1_000_000)(model)
    common.CommonSubexpressionEliminationPass()(model)


def _compared(graph: _Graph, offer: Exportable, file: Path) -> tuple[float, list[tuple[str, str, str, str]]]:
    """Largest difference to torch over the small and the large sizes, and the signature as onnxruntime reads it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    differences = []
    for which in (0, 1):
        batch = offer.example({name: sizes[which] for name, sizes in offer.sizes.items()})
        found = session.run(None, {name: batch[name].numpy() for name in graph.names})[0]
        with torch.no_grad():
            wanted = graph(*(batch[name] for name in graph.names)).numpy()
        if found.shape != wanted.shape:
            raise ValueError(f"its output has the shape {list(found.shape)}, that of torch {list(wanted.shape)}")
        differences.append(np.abs(found - wanted).max())
    nodes = [("in", node) for node in session.get_inputs()] + [("out", node) for node in session.get_outputs()]
    signature = [(way, n.name, n.type, f"[{', '.join(map(str, n.shape))}]") for way, n in nodes]
    return float(np.max(differences)), signature


@contextmanager
def _in_one_line(run: str | Path, what: str) -> Iterator[None]:
    """Whatever the exporter or onnxruntime raises, and there is much that they may, becomes one line."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{run}: {what}: {reason}; nothing is written") from error


def _in_words(offer: Exportable) -> str:
    return ", ".join(f"{name} {small} and {large}" for name, (small, large) in offer.sizes.items())


def _usage(out: Path, offer: Exportable) -> str:
    """A command that runs the graph on inputs of ones."""
    small = offer.example({name: sizes[0] for name, sizes in offer.sizes.items()})
    ones = (f'"{k}": numpy.ones({tuple(x.shape)}, "{str(x.dtype).removeprefix("torch.")}")' for k, x in small.items())
    session = f"onnxruntime.InferenceSession({json.dumps(str(out), ensure_ascii=False)})"
    code = f"import numpy, onnxruntime; print({session}.run(None, {{{', '.join(ones)}}})[0].shape)"
    return f"python -c {shlex.quote(code)}"
