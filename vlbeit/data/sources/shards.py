"""Shards: WebDataset tars (img2dataset's too), Parquet files, prepared folders; local or at any fsspec address."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from vlbeit.config import DataConfig
from vlbeit.data.prepared import kinds_with, prepared_kinds, shard_paths
from vlbeit.data.shard_counts import counted
from vlbeit.data.shard_files import SUFFIXES, ShardFile, expanded, is_remote, listed
from vlbeit.data.shard_store import Reading, ShardStore
from vlbeit.data.shards import Counted, ShardRecords
from vlbeit.data.sources.base import DataSource, is_named, say
from vlbeit.errors import DataError, MissingSplitError

_SPLITS = ("train", "val", "valid", "validation", "dev", "test")


class Shards(DataSource):
    """Shards of pictures with texts, streamed: WebDataset tars or Parquet, local or at an address (s3://, hf://)."""

    kinds: ClassVar[tuple[str, ...]] = ("pairs", "images", "text")

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        place = config.root
        self.place = place if is_remote(place) else os.path.abspath(os.path.expanduser(place))

    def check(self) -> None:
        """Raise `DataError` where a local folder or file that was named is not there; addresses are asked later."""
        self.check_images()
        for name in expanded(self.place):
            if not is_remote(name) and not any(sign in name for sign in "*?[") and not Path(name).exists():
                raise DataError(f"data.root={self.config.root}: {name} does not exist; set data.root= to the shards")

    def given(self, kind: str) -> set[str]:
        """Shards may be of texts or of pictures alone."""
        return kinds_with(kind) if prepared_kinds(self.root) is None else super().given(kind)

    def records(self, kind: str, split: str) -> ShardRecords:
        """Raises `MissingSplitError` where the shards have names of other splits, or too few to hold some out."""
        prepared = None if is_remote(self.place) else shard_paths(Path(self.place), kind, split)
        root = self.place if prepared is not None else ""
        store = ShardStore(Reading(kind, self.config.cache, self.config.cache_gb, root))
        if prepared is not None:
            shards = [ShardFile(str(path), path.stat().st_size, str(path.stat().st_mtime_ns)) for path in prepared]
            counts = counted(shards, store)
        else:
            shards, counts = self._split(split, store)
        records = ShardRecords(shards, counts, store)
        self._tell(shards, records, split)
        return records.ordered(self.config.open_shards, self.config.shuffle_buffer)

    def _split(self, split: str, store: ShardStore) -> tuple[list[ShardFile], list[Counted]]:
        """The shards of a split by their names. Where none is named after another, the last ones are held out."""
        train, val = self.config.train_split, self.config.val_split
        known = list(dict.fromkeys((*_SPLITS, train, val, split)))
        found: dict[str, list[ShardFile]] = {}
        for shard in listed(self.place, known):
            found.setdefault(_split_of(shard, known), []).append(shard)
        if not found:
            raise DataError(
                f"data.root={self.config.root} has no shards: no file ends in {' or '.join(SUFFIXES)}; pictures with "
                "captions in JSON lines, CSV or a datasets folder are read by data=pairs"
            )
        if "" in found:  # those without a name, beside others that have one, are for training
            found[train] = found.get(train, []) + found.pop("")
        if list(found) == [train] and train != val:
            return self._held_out(found[train], split, store)
        if split not in found:
            raise MissingSplitError(
                f"data.root={self.config.root} has no shards of the split {split!r}, but of "
                f"{', '.join(sorted(found))}: set data.train_split=, data.val_split="
            )
        return found[split], counted(found[split], store)

    def _held_out(
        self, shards: Sequence[ShardFile], split: str, store: ShardStore
    ) -> tuple[list[ShardFile], list[Counted]]:
        """All but the last shards for training, those to be evaluated on."""
        train, val = self.config.train_split, self.config.val_split
        if split not in (train, val):
            raise MissingSplitError(f"data.root={self.config.root} has no shards of the split {split!r}")
        counts = counted(shards, store)
        first = len(shards) - self._last(counts)
        if first <= 0 and split == train:
            return list(shards), counts
        if first <= 0:
            raise MissingSplitError(
                f"data.root={self.config.root} has {len(shards)} shard{'s' * (len(shards) > 1)} and no split {val!r}: "
                f"too few to hold some out, whatever data.held_out; write smaller ones (vlbeit prepare webdataset "
                f"--shard-rows), or data.val_split={train} evaluates on what is trained on"
            )
        if split == train:
            return list(shards[:first]), counts[:first]
        held = sum(each.samples for each in counts[first:])
        what = f"{shards[-1].stem} is" if first == len(shards) - 1 else f"the last {len(shards) - first} shards are"
        say(f"{self.config.root} has no split {split!r}: {what} held out for it, {held:,} samples")
        return list(shards[first:]), counts[first:]

    def _last(self, counts: Sequence[Counted]) -> int:
        """How many shards at the end have `data.held_out`, a share or a number of samples; 0: the last one."""
        held_out = self.config.held_out
        wanted = held_out * sum(each.samples for each in counts) if held_out < 1 else held_out
        shards = samples = 0
        for each in reversed(counts):
            shards, samples = shards + 1, samples + each.samples
            if samples >= wanted:
                break
        return shards

    def _tell(self, shards: Sequence[ShardFile], records: ShardRecords, split: str) -> None:
        self._check_room(shards)
        near = records.near_samples()
        if split == self.config.train_split:
            files = f"{len(shards):,} shard{'s' * (len(shards) > 1)}"
            say(f"{self.config.root}: {len(records):,} samples of {split} in {files}")
            if near is not None and near < self.config.shuffle_buffer:
                say(
                    f"note: row groups are read whole, and those of {near:,} samples fit into memory: so many are "
                    f"shuffled together instead of data.shuffle_buffer={self.config.shuffle_buffer:,}"
                )

    def _check_room(self, shards: Sequence[ShardFile]) -> None:
        """A note where the copies of the shards that are read at a time do not fit into the cache."""
        largest = sorted((shard.size for shard in shards if shard.remote), reverse=True)[: self.config.open_shards + 1]
        room, needed = self.config.cache_gb, sum(largest) / 1e9
        if room is not None and needed > room:
            say(
                f"note: {len(largest)} shards are {needed:.3g} GB, data.cache_gb={room:g} holds fewer: they are "
                f"fetched again and again; raise it, or lower data.open_shards={self.config.open_shards}"
            )


def _split_of(shard: ShardFile, splits: Sequence[str]) -> str:
    """The split that the file, or else the folder that it lies in, is named after; "" for none."""
    by_name = (split for split in splits if is_named(shard.stem, split))
    return next(by_name, shard.folder if shard.folder in splits else "")


SOURCE = Shards
