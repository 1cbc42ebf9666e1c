"""A mix: several sources as one stream, each with a weight."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar

from vlbeit import registry
from vlbeit.config import DataConfig
from vlbeit.data.mix import Entry, MixedRecords, Part, parsed
from vlbeit.data.prepared import kinds_with
from vlbeit.data.records import take
from vlbeit.data.shard_files import is_remote
from vlbeit.data.sources.base import DataSource, say
from vlbeit.errors import DataError, MissingSplitError, UsageError

_SHORT = {"coco": "coco_captions", "vg": "visual_genome"}
_LAYOUT = "data.mix=[coco,vg,sbu*2] names prepared folders below data.root, paths, addresses or SOURCE:ROOT"


class Mix(DataSource):
    """Several sources as one stream, each with a weight: data.mix=[coco,vg,sbu*2,cc3m*0.5]."""

    kinds: ClassVar[tuple[str, ...]] = ("pairs", "images", "text")

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        if not config.mix:
            raise UsageError(f"data=mix needs its members: {_LAYOUT}")
        entries = [parsed(entry) for entry in config.mix]
        self.members = list(zip(_names(entries), entries, strict=True))

    def check(self) -> None:
        """Raise `DataError` or `UsageError` for a member that is not there or no source."""
        for _, entry in self.members:
            source = self._source(entry)
            try:
                source.check()
            except DataError as error:
                raise DataError(f"data.mix: {entry.what}: {error}") from error

    def given(self, kind: str) -> set[str]:
        """Members may be of texts or of pictures alone."""
        return kinds_with(kind)

    def records(self, kind: str, split: str) -> MixedRecords:
        """Of training every member with its weight; of another split those that have it, once each."""
        found: list[Part] = []
        lacking = []
        training = split == self.config.train_split
        for name, entry in self.members:
            source = self._source(entry)
            if kind not in source.kinds:
                raise UsageError(f"data.mix: {entry.what} gives {', '.join(source.kinds)}, not {kind}")
            try:
                records = source.records(kind, split)
            except MissingSplitError:
                if training:
                    raise
                lacking.append(name)
                continue
            if not len(records):
                raise DataError(f"data.mix: the split {split!r} of {entry.what} has no {kind} records")
            found.append(Part(name, records, entry.weight if training else 1.0))
        if not found:
            raise MissingSplitError(
                f"data.mix: no member has a split {split!r}; set data.val_split=, or add a member that has one"
            )
        if lacking:
            say(f"data.mix: {', '.join(lacking)} {'have' if len(lacking) > 1 else 'has'} no split {split!r}: left out")
        found = self._limited(found)
        mixed = MixedRecords(found, self.config.open_shards, self.config.shuffle_buffer)
        if training:
            parts = ", ".join(f"{name} {len(records):,} * {weight:g}" for name, records, weight in found)
            say(f"data.mix: {parts}: {len(mixed.order):,} samples an epoch")
        return mixed

    def _limited(self, parts: list[Part]) -> list[Part]:
        """Of every member its share of `data.limit`: the first rows of a mix are all of one."""
        limit, total = self.config.limit, sum(len(part.records) for part in parts)
        if limit is None or limit >= total:
            return parts
        return [part._replace(records=take(part.records, max(1, limit * len(part.records) // total))) for part in parts]

    def _source(self, entry: Entry) -> DataSource:
        """The source of an entry, of those that there are or a stream over shards."""
        name, root = self._place(entry.what)
        source = registry.get("data", name)
        images = self.config.images if source.takes_images else ""
        return source(replace(self.config, name=name, root=root, mix=[], limit=None, images=images))

    def _place(self, what: str) -> tuple[str, str]:
        """Name of the source, and where its data lie."""
        known = registry.names("data")
        source, colon, root = what.partition(":")
        if colon and source in known and not is_remote(what):
            return source, root
        if is_remote(what) or "/" in what or what.startswith((".", "~")):
            return "shards", what
        name = _SHORT.get(what, what)
        folder = self.root / name
        if not folder.exists() and (self.root / what).exists():
            folder = self.root / what
        if not folder.exists():
            prepared = registry.names("prepare")
            how = f"`vlbeit prepare {name} --out {folder}` makes it" if name in prepared else _near(what, self.root)
            kind = DataError if name in prepared else UsageError
            raise kind(f"data.mix: {what}: {folder} does not exist; {how}")
        return (name if name in known and name not in ("mix", "shards") else "shards"), str(folder)


def _near(what: str, root: Path) -> str:
    """The name that was meant, and the folders that there are."""
    there = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    near = get_close_matches(what, [*_SHORT, *registry.names("prepare"), *there], 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{meant}{root} has {', '.join(there) or 'no folders'}; {_LAYOUT}"


def _names(entries: Sequence[Entry]) -> list[str]:
    """A name for every member; one that is there already gets a number."""
    names: list[str] = []
    for entry in entries:
        name = Path(entry.name).stem if os.sep in entry.what else entry.name
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


SOURCE = Mix
