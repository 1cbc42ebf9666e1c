"""The words of the code: what a batch, a span of tokens, the output of a step and an evaluator are.

Nothing here imports torch at run time, so that every layer may import it at no cost.

Legend of shape suffixes, used in the whole package: B batch, N patches, T text tokens, L all tokens,
D width, H heads, K head dim, V vocabulary, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

Record: TypeAlias = dict[str, Any]
"""One row of a data source, nothing decoded yet; its fields by kind are listed in `vlbeit.data.records`."""

Sample: TypeAlias = dict[str, Any]
"""What a transform makes of a record: tensors and plain values, always with `sample_id` (str)."""

Batch: TypeAlias = dict[str, Any]
"""Collated samples. Keys that the package itself uses (absent where a stage does not need them):

`sample_id` list[str] · `image` float [B, 3, height, width], normalised; of a pair of pictures `image_0` and `image_1` ·
`mask` bool [B, N], True = masked patch ·
`pixels` float [B, 3, height, width] in [0, 1], the tokenizer's view · `text_ids` int [B, T] ·
`text_keep` bool [B, T], True = real token ·
`text_segments` int [B, T], of packed sequences: the number of each token's text, 0 = padding ·
`mlm_ids` int [B, T] and `mlm_labels` int [B, T], -100 = not predicted ·
`picture` int [B], a number per picture, whatever its text · `label` int [B] · `target` float [B, V], soft scores ·
`segments` int [B, height, width], a class per pixel, 255 = not scored · `boxes` list of float [n, 4], left, top, right,
bottom in pixels of `image`, with `box_labels` list of int [n] and `box_masks` list of bool [n, height, width] ·
`bad` list[str], unreadable samples that were replaced. An objective that surveys the step adds keys of its own.
"""

Logs: TypeAlias = "dict[str, tuple[Tensor, Tensor]]"
"""Name -> sum and count, of what a batch tells."""

Meta: TypeAlias = dict[str, Any]
"""What a run learned from its training records and every later use needs: JSON values only.

Keys: `answers` list[str] · `classes` list[str] · `tokenizer` dict. Each is kept as `<key>.json` in `checkpoint/`.
"""


class Span(NamedTuple):
    """A run of tokens of one modality: positions start (included) to stop (excluded)."""

    modality: str
    start: int
    stop: int
    grid: tuple[int, int] | None = None  # rows and columns of patches, a CLS token in front
    type_id: int = 0


class Tokens(NamedTuple):
    """A sequence on its way through the encoder."""

    x_BLD: Tensor
    keep_BL: Tensor | None  # True = real token; None = nothing is padded
    spans: tuple[Span, ...]
    segments_BL: Tensor | None = None  # several texts in a row: the number of each token's; None = one


class StepOutput(NamedTuple):
    """What an objective makes of a batch."""

    losses: dict[str, Tensor]  # scalars, weighted and normalised; the total is their sum
    logs: Logs  # reduced over ranks by the engine; one of the name of a loss is that loss without its weight
    seen: tuple[Any, ...] = ()  # in a survey: what the objective wants to know of a micro-batch, tensors in it


class Exportable(NamedTuple):
    """What `vlbeit export` makes a graph of: tensors by name in, one tensor out.

    The graph is checked at the two sizes of every axis, which differ by 2 at least, and traced between them.
    """

    call: Callable[[Batch], Tensor]  # of tensors alone, such as a method of the objective
    example: Callable[[Mapping[str, int]], Batch]  # random inputs for a size of every axis
    axes: dict[str, dict[int, str]]  # input -> dimension -> name of its size: {"image": {0: "batch"}}
    sizes: dict[str, tuple[int, int]]  # name -> a small and a large size: {"batch": (1, 3)}
    output: str  # name of the tensor that comes out
    facts: dict[str, Any]  # for the file's metadata: JSON values
    limited: tuple[str, ...] = ()  # axes whose large size is the largest there may be


class Records(Protocol):
    """A table of records that is read row by row and never held whole."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...
    def column(self, name: str) -> Sequence[Any]:
        """All values of one field, images not decoded."""
        ...


class Layout(NamedTuple):
    """By what the records of a split are put together to batches; each has a value for every record, or is None."""

    grids: Sequence[tuple[int, int]] | None = None  # rows and columns of patches: a batch is of one grid
    lengths: Sequence[int] | None = None  # of texts: evaluation puts similar ones together
    pictures: Sequence[Any] | None = None  # what names a picture: evaluation reads its samples one after the other


class DataSpec(NamedTuple):
    """How the samples of one split are made.

    Where the layout has grids, the transform finds the one of its batch in the record, as `grid`.
    """

    records: Records
    transform: Callable[[Record], Sample]  # runs in workers, seeded by (seed, epoch, index)
    collate: Callable[[list[Sample]], Batch]
    shown: DataSpec | None = None  # as many samples for people to look at, where these are no pictures or texts
    layout: Layout = Layout()


class Evaluator(Protocol):
    """A metric over a split. `update` sees every batch once; `compute` gives named numbers.

    For `vlbeit evaluate` it may also have, of the last `compute`:

    - `details()`: JSON for a file of its own. Rows with `sample_id` (or `question_id`) and `score` in [0, 1], null
      where there is none, as a list or as the value of a name, are what `vlbeit compare` pairs.
    - `intervals()`: 95 % intervals of some of the numbers, in their unit, made by drawing among `over` ("pictures").
    - `report(controls)`: more JSON values for evaluation.json, and tables for the terminal, lists of rows that map a
      column to its value. `controls` are its fellows that saw other data (`vlbeit.task.Task.controls`), by name.
    """

    def update(self, objective: nn.Module, batch: Batch) -> None: ...
    def compute(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class AnswerFile(Protocol):
    """What a task with a leaderboard makes of a test: its method `submission(records, meta)` gives one."""

    def answer(self, objective: nn.Module, batch: Batch) -> Mapping[str, str]:
        """Sample id -> answer, of every sample of the batch."""
        ...

    def write(self, path: Path, answers: Mapping[str, str]) -> int:
        """Write the file of all answers by sample id, whole or not at all, and check it; return how many."""
        ...


class Predictor(Protocol):
    """One input in, a result in the user's words out.

    Rows are tuples, best first; a named tuple (`Detection(label, score, box)`) names the columns of the table and the
    keys of `--json`, a plain pair is `answer` and `probability`. A task whose result is a place in the picture also has
    `draw`, of the same arguments: the rows and a PIL image, the picture with the result on it, both of one pass of the
    model, for `vlbeit predict RUN PICTURE --out FILE`. Of a task on several pictures
    (`Task.pictures`) `image` is a list.
    """

    def __call__(self, image: Any, text: str | None = None, *, top: int = 5) -> Sequence[tuple[Any, ...]]: ...
