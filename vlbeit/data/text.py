"""Tokenizers: WordPiece trained on the given text, any of transformers, or open_clip's own vocabulary."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from vlbeit import dist, hub
from vlbeit.config import TextConfig
from vlbeit.data.records import StreamedTexts
from vlbeit.errors import DataError, UsageError

log = logging.getLogger(__name__)

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MOST_TEXTS = 1_000_000  # of a stream that a tokenizer is trained on
_LOOKED_THROUGH = 2000  # texts, for words that the vocabulary does not know
_FEW_UNKNOWN = 0.02
_MOST_CHARACTERS = 1000  # as BERT: rarer characters make their word [UNK]


class Tokenizer(ABC):
    """Text to token ids and back. `to_json` and `from_json` need no network.

    Padding is known by length (`text_keep`), so that `pad_id` may be the id of a real token.
    """

    cls_id: int
    sep_id: int
    mask_id: int
    pad_id: int
    vocab_size: int
    max_length: int
    unknown_id: int | None = None  # of what the vocabulary does not know; None where there is nothing such

    def __call__(self, text: str) -> list[int]:
        """[CLS] tokens [SEP], cut to `max_length`."""
        return [self.cls_id, *self._encode(text)[: self.max_length - 2], self.sep_id]

    def lengths(self, texts: Iterable[str]) -> list[int]:
        """Tokens of each text, [CLS] and [SEP] included, before anything is cut."""
        return [count + 2 for count in self._counts(texts)]

    def unknown_share(self, texts: Iterable[str]) -> float:
        """Share of the tokens that stand for what the vocabulary does not know."""
        if self.unknown_id is None:
            return 0.0
        counts = Counter[bool]()
        for ids in self.encoded(texts):
            counts.update(token == self.unknown_id for token in ids)
        return counts[True] / max(1, counts.total())

    def encoded(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Token ids of each text, without [CLS] and [SEP], nothing cut."""
        return (self._encode(text) for text in texts)

    def words(self, ids: Sequence[int]) -> list[int | None]:
        """Number of the word that each token belongs to; None for special tokens."""
        numbers: list[int | None] = []
        word, previous = -1, None
        for token in ids:
            if self._is_special(token):
                numbers.append(None)
                previous = None
                continue
            if previous is None or self._starts_word(previous, token):
                word += 1
            numbers.append(word)
            previous = token
        return numbers

    def decode(self, ids: Sequence[int]) -> str:
        """The text without special tokens."""
        return self._decode([token for token in ids if not self._is_special(token)])

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything but `max_length`."""

    @staticmethod
    def from_json(value: dict[str, Any], max_length: int) -> Tokenizer:
        """The tokenizer that `to_json` described."""
        kinds = {"subword": SubwordTokenizer, "clip": ClipTokenizer}
        if value.get("kind") not in kinds:
            raise DataError(f"a tokenizer of kind {value.get('kind')!r} is none of {', '.join(kinds)}")
        return kinds[value["kind"]]({name: part for name, part in value.items() if name != "kind"}, max_length)

    @abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    def _counts(self, texts: Iterable[str]) -> Iterator[int]:
        return (len(self._encode(text)) for text in texts)

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    @abstractmethod
    def _starts_word(self, previous: int, token: int) -> bool: ...

    def _is_special(self, token: int) -> bool:
        return token in (self.cls_id, self.sep_id, self.mask_id)


class SubwordTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library and the ids of its special tokens."""

    def __init__(self, value: dict[str, Any], max_length: int) -> None:
        """`value`: definition (of the library), cls_id, sep_id, mask_id, pad_id, vocab_size."""
        self._value = value
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(value["definition"]))
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # "[MASK]" in a user's text is text
        self.cls_id, self.sep_id = value["cls_id"], value["sep_id"]
        self.mask_id, self.pad_id = value["mask_id"], value["pad_id"]
        self.vocab_size, self.max_length = value["vocab_size"], max_length
        self.unknown_id = self._backend.token_to_id(value["definition"]["model"].get("unk_token") or "")
        self._tokens = {number: token for token, number in self._backend.get_vocab(with_added_tokens=True).items()}
        self._continues, self._starts = _word_marks(value["definition"]["model"], self._tokens.values())
        self._special = {self.cls_id, self.sep_id, self.mask_id, self.pad_id}

    def to_json(self) -> dict[str, Any]:
        return {"kind": "subword", **self._value}

    def _encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def encoded(self, texts: Iterable[str]) -> Iterator[list[int]]:
        for chunk in _chunks(texts):
            yield from (found.ids for found in self._backend.encode_batch_fast(chunk, add_special_tokens=False))

    def _counts(self, texts: Iterable[str]) -> Iterator[int]:
        for chunk in _chunks(texts):  # the library takes several at a time in less than half the time
            yield from (len(found) for found in self._backend.encode_batch_fast(chunk, add_special_tokens=False))

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids)

    def _starts_word(self, previous: int, token: int) -> bool:
        if self._continues:
            return not self._tokens.get(token, "").startswith(self._continues)
        return not self._starts or self._tokens.get(token, "").startswith(self._starts)

    def _is_special(self, token: int) -> bool:
        return token in self._special


def _word_marks(model: dict[str, Any], tokens: Iterable[str]) -> tuple[str, str]:
    """What a token that goes on with a word begins with ("##"), or else one that begins a word ("Ġ", "▁")."""
    if model["type"] == "WordPiece":
        return model["continuing_subword_prefix"], ""
    counts = Counter(token[:1] for token in tokens)
    mark = max("Ġ▁", key=lambda mark: counts[mark])
    return "", mark if counts[mark] else ""


class ClipTokenizer(Tokenizer):
    """open_clip's byte-pair vocabulary: start of text serves as [CLS], end of text as [SEP], one id more as [MASK]."""

    def __init__(self, value: dict[str, Any], max_length: int) -> None:
        assert not value, value  # the vocabulary lies in open_clip itself
        self._backend = _clip()
        self.cls_id, self.sep_id = self._backend.sot_token_id, self._backend.eot_token_id
        self.mask_id = self._backend.vocab_size
        self.pad_id = 0  # as open_clip pads
        self.vocab_size, self.max_length = self.mask_id + 1, max_length

    def to_json(self) -> dict[str, Any]:
        return {"kind": "clip"}

    def _encode(self, text: str) -> list[int]:
        return self._backend.encode(text)

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids).strip()

    def _starts_word(self, previous: int, token: int) -> bool:
        return self._backend.decoder[previous].endswith("</w>")


@cache
def _clip() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def choose_tokenizer(
    config: TextConfig, texts: Callable[[], Iterable[str]], inherited: dict[str, Any] | None = None
) -> Tokenizer:
    """The tokenizer of a run: `inherited` (the `to_json` of the run it starts from), else `text.tokenizer`.

    `texts()` gives the text anew at every call: to train WordPiece on, else to look some through for unknown words.
    """
    if inherited:
        known = Tokenizer.from_json(inherited, config.max_length)
        _tell_unknown(known, texts())
        return known
    if config.tokenizer == "clip":
        return ClipTokenizer({}, config.max_length)
    if config.tokenizer == "wordpiece":
        return train_wordpiece(lambda: _bounded(texts()), config.vocab_size, config.max_length)
    loaded = load_tokenizer(config.tokenizer, config.max_length)
    _tell_unknown(loaded, texts())
    return loaded


def _tell_unknown(tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """A note where a vocabulary that was made for other texts does not know many words of these."""
    some = texts.sample(_LOOKED_THROUGH) if isinstance(texts, StreamedTexts) else islice(texts, _LOOKED_THROUGH)
    share = tokenizer.unknown_share(some)
    if share > _FEW_UNKNOWN and dist.is_main():
        log.warning(
            "the vocabulary does not know %.0f %% of the tokens of the first %d training texts: they become [UNK]; "
            "start from a run with a larger vocabulary, or of these texts",
            100 * share,
            _LOOKED_THROUGH,
        )


def train_wordpiece(texts: Callable[[], Iterable[str]], vocab_size: int, max_length: int) -> Tokenizer:
    """A lower-case WordPiece tokenizer, a function of the text and `vocab_size` alone."""
    tokenizer = _wordpiece({token: number for number, token in enumerate(_SPECIAL)})
    characters = _characters(texts(), tokenizer.normalizer)
    # The trainer numbers "##x" in the order of a hash map. Named beforehand, every character keeps its place.
    fixed = [*_SPECIAL, *characters, *(f"##{character}" for character in characters)]
    if vocab_size < len(fixed):
        raise UsageError(
            f"text.vocab_size={vocab_size} is less than the {len(fixed)} that the characters need; raise it"
        )
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=fixed, show_progress=False)
    tokenizer.train_from_iterator(texts(), trainer)
    vocabulary = tokenizer.get_vocab()
    value = {
        "definition": json.loads(_wordpiece(vocabulary).to_str()),
        **{f"{token[1:-1].lower()}_id": vocabulary[token] for token in ("[CLS]", "[SEP]", "[MASK]", "[PAD]")},
        "vocab_size": len(vocabulary),
    }
    return SubwordTokenizer(value, max_length)


def _bounded(texts: Iterable[str]) -> Iterable[str]:
    """All texts; of a long stream as many as a vocabulary needs."""
    if not isinstance(texts, StreamedTexts) or len(texts) <= _MOST_TEXTS:
        return texts
    log.info("the vocabulary is made of %s of the %s texts", f"{_MOST_TEXTS:,}", f"{len(texts):,}")
    return texts.sample(_MOST_TEXTS)


def _wordpiece(vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in _SPECIAL if token in vocabulary])
    return tokenizer


def _characters(texts: Iterable[str], normalizer: Any) -> list[str]:
    """The most frequent characters of the normalised text, sorted."""
    counts: Counter[str] = Counter()
    for chunk in _chunks(texts):
        counts.update(normalizer.normalize_str(" ".join(chunk)))
    if not (counts := Counter({char: count for char, count in counts.items() if not char.isspace()})):
        raise DataError("there is no text to train a tokenizer on; set text.tokenizer= or give text")
    return sorted(sorted(counts, key=lambda char: (-counts[char], char))[:_MOST_CHARACTERS])


def _chunks(texts: Iterable[str], size: int = 1000) -> Iterator[list[str]]:
    iterator = iter(texts)
    while chunk := list(islice(iterator, size)):
        yield chunk


def load_tokenizer(name: str, max_length: int) -> Tokenizer:
    """The tokenizer of a run, or of a local folder or hub name through transformers; a missing [MASK] is appended.

    Raises `UsageError` where it is neither in the folder, nor in the local hub cache, nor to be had.
    """
    remedy = (
        "text.tokenizer takes wordpiece, clip, a folder with tokenizer.json, or a hub name (with network or cached)"
    )
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise UsageError(f"text.tokenizer={name} is not a folder; {remedy}")
    of_run = tokenizer_of_run(Path(name))
    if of_run is not None:
        return Tokenizer.from_json(of_run, max_length)
    from transformers import AutoTokenizer

    try:
        with hub.asked():
            loaded = AutoTokenizer.from_pretrained(str(Path(name).expanduser()))
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"text.tokenizer={name} cannot be loaded: {reason}; {remedy}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(f"text.tokenizer={name} has no fast version (tokenizer.json); {remedy}")
    first, last = _either(loaded.cls_token_id, loaded.bos_token_id), _either(loaded.sep_token_id, loaded.eos_token_id)
    if first is None or last is None:
        raise UsageError(f"text.tokenizer={name} has no token for the start or the end of a text; {remedy}")
    size, mask = len(loaded), loaded.mask_token_id
    value = {
        "definition": json.loads(backend.to_str()),
        "cls_id": first,
        "sep_id": last,
        "mask_id": size if mask is None else mask,
        "pad_id": _either(loaded.pad_token_id, last),
        "vocab_size": size + (mask is None),
    }
    return SubwordTokenizer(value, max_length)


def tokenizer_of_run(folder: Path) -> dict[str, Any] | None:
    """What `to_json` left in a run or checkpoint folder; None where the folder is of another kind."""
    for file in (folder / "checkpoint" / "tokenizer.json", folder / "tokenizer.json"):
        if file.is_file():
            value = json.loads(file.read_text(encoding="utf-8"))
            return value if isinstance(value, dict) and "kind" in value else None
    return None


def _either(first: int | None, second: int | None) -> int | None:
    return second if first is None else first
