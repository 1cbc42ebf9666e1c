"""What became of every tensor when weights were taken over. Imports no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from vlbeit.errors import DataError

COMPUTED = ("*relative_position_index", "*position_ids", "text_embeddings.position_embeddings.weight")
"""In files and never read: index buffers, and the text positions of VLMo models whose positions are relative."""

SEGMENTATION = ("decode_head.*", "auxiliary_head.*", "backbone.fpn*", "fpn*")
"""Necks and heads of segmentation checkpoints: those of other decoders than UPerNet are left, the backbone is taken."""

EXPECTED = (*COMPUTED, *SEGMENTATION)
"""What any file may have in excess."""

_SHOWN = 6


@dataclass
class LoadReport:
    """Names of tensors by what happened to them; ours, but for `unexpected`, which are the file's.

    loaded: taken as they are. resized: fitted to another size of pictures, length of texts or list of answers.
    remapped: our name <- the names that it was made of, for those of the two above that bear another name there; the
    ones where that is all are `renamed`.
    missing: wanted and not there; they keep their initial values. unexpected: there, and without a place.
    layout: what a foreign file was taken for.
    """

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    remapped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    layout: str = ""

    @property
    def renamed(self) -> set[str]:
        """Those of `remapped` that are one tensor there, whole, which became no other."""
        uses = Counter(name for theirs in self.remapped.values() for name in theirs)
        resized = set(self.resized)
        return {
            ours
            for ours, theirs in self.remapped.items()
            if len(theirs) == 1 and uses[theirs[0]] == 1 and ours not in resized
        }

    @property
    def remade(self) -> dict[str, tuple[str, ...]]:
        """The others of `remapped`: joined, cut out of one, copied to several, put in another order."""
        renamed = self.renamed
        return {ours: theirs for ours, theirs in self.remapped.items() if ours not in renamed}

    def line(self) -> str:
        """One line for people: how many tensors were taken, and the parts of which more than the name changed."""
        parts = [f"{len(self.loaded) + len(self.resized)} tensors taken"]
        words = {"resized": self.resized, "remapped": self.remade, "new": self.missing, "not used": self.unexpected}
        for word, names in words.items():
            if names:
                parts.append(f"{len(names)} {word} ({_listed(_families(names))})")
        return ", ".join(parts)

    def lines(self) -> list[str]:
        """All of it for people: a line for every name but the renamed, numbers of layers put together."""
        out = [f"layout: {self.layout}"] if self.layout else []
        out.append(f"loaded: {len(self.loaded)} tensors")
        if self.renamed:
            out.append(f"renamed: {len(self.renamed)} tensors")
        pairs = [f"{ours} <- {' + '.join(theirs)}" for ours, theirs in self.remade.items()]
        for word, names in (
            ("resized", self.resized),
            ("remapped", pairs),
            ("missing", self.missing),
            ("unexpected", self.unexpected),
        ):
            out += [f"{word}: {line}" for line in collapsed(names)]
        return out

    def check(self, origin: str, expected: Iterable[str] = EXPECTED, allow: Iterable[str] = ()) -> None:
        """Raise DataError, naming `origin`, unless every missing and unexpected name is expected or allowed.

        Both are patterns with `*`; `allow` is the user's.
        """
        patterns = [*expected, *allow]
        missing, unexpected = (
            [name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns)]
            for names in (self.missing, self.unexpected)
        )
        wrong, remedies = [], []
        if missing:
            wrong.append(f"{len(missing)} of its tensors are missing ({_listed(missing)})")
            remedies.append(f"to begin with new ones there: vlbeit.load(..., allow=['{missing[0]}'])")
        if unexpected:
            wrong.append(f"{len(unexpected)} have no place ({_listed(unexpected)})")
            remedies.append(f"to do without what has no place: --allow '{unexpected[0]}', or allow=[...]")
        if wrong:
            raise DataError(f"{origin}: {', '.join(wrong)}; {'; '.join(remedies)}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def collapsed(names: Iterable[str]) -> list[str]:
    """Names that differ in numbers alone as one, with `*` for those, and how many they are."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return [found[0] if len(found) == 1 else f"{pattern} ({len(found)})" for pattern, found in groups.items()]


def _families(names: Iterable[str]) -> list[str]:
    """`encoder.blocks.3.experts.text.mlp.fc1.weight` -> `text experts`, and the like; each once, in order."""
    out: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        if "experts" in parts:
            out[f"{parts[parts.index('experts') + 1]} experts"] = None
        elif parts[0] == "heads":
            out[f"head {parts[1]}"] = None
        elif parts[0] == "encoder":
            out[parts[1]] = None
        else:
            out[parts[-1] if parts[-1] == "relative_position_index" else parts[0]] = None
    return list(out)
