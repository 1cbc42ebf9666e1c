import json
import random
import subprocess
import sys

import pytest
from open_clip.tokenizer import SimpleTokenizer

from vlbeit.config import TextConfig
from vlbeit.data.text import Tokenizer, choose_tokenizer, load_tokenizer, train_wordpiece
from vlbeit.errors import DataError, UsageError

_rng = random.Random(0)
_WORDS = ["".join(_rng.choices(["ba", "re", "ti", "qu", "ing", "er", "sh", "x", "é"], k=3)) for _ in range(300)]
TEXTS = [" ".join(_rng.choices(_WORDS, k=6)).capitalize() + "." for _ in range(200)]


@pytest.fixture(scope="module")
def wordpiece():
    return train_wordpiece(lambda: TEXTS, 200, 12)


@pytest.fixture(scope="module")
def clip():
    return choose_tokenizer(TextConfig(tokenizer="clip", max_length=12), lambda: [])


def test_a_text_is_framed_cut_and_decoded(wordpiece):
    ids = wordpiece(" ".join(TEXTS[:2]))
    assert len(ids) == 12 and ids[0] == wordpiece.cls_id and ids[-1] == wordpiece.sep_id
    assert max(ids) < wordpiece.vocab_size <= 200
    assert wordpiece("") == [wordpiece.cls_id, wordpiece.sep_id]
    word = _WORDS[0].replace("é", "e")  # the normaliser takes accents off
    assert wordpiece.decode(wordpiece(word.upper())) == word
    assert [wordpiece.pad_id, wordpiece.cls_id, wordpiece.sep_id, wordpiece.mask_id] == [0, 2, 3, 4]


def test_special_tokens_in_a_text_are_text(wordpiece, clip):
    for tokenizer in (wordpiece, clip):
        assert tokenizer.mask_id not in tokenizer("[MASK] x [SEP]")
    assert wordpiece("x [SEP] x").count(wordpiece.sep_id) == 1


def test_words_of_wordpiece(wordpiece):
    ids = wordpiece("%s, x" % _WORDS[1])  # noqa: UP031
    words = wordpiece.words(ids)
    assert words[0] is None and words[-1] is None
    tokens = [wordpiece._tokens[token] for token in ids]
    starts = [token for token, word, before in zip(tokens[1:-1], words[1:-1], words, strict=False) if word != before]
    assert not any(token.startswith("##") for token in starts)
    assert sum(word == 0 for word in words) == len(tokens) - len(starts) + 1 - 2  # the other words are single tokens


def test_the_same_text_gives_the_same_vocabulary_in_any_process():
    code = (
        "import json, sys; from vlbeit.data.text import train_wordpiece; texts = json.load(sys.stdin);"
        "print(json.dumps(train_wordpiece(lambda: texts, 200, 12).to_json(), sort_keys=True))"
    )
    command, options = [sys.executable, "-c", code], {"input": json.dumps(TEXTS), "capture_output": True, "text": True}
    outputs = [subprocess.run(command, **options).stdout for _ in range(2)]
    assert outputs[0] == outputs[1] and len(json.loads(outputs[0])["definition"]["model"]["vocab"]) == 200


def test_round_trip_through_json(wordpiece, clip):
    for tokenizer in (wordpiece, clip):
        copy = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())), 7)
        assert copy("two birds, and a dog") == [*tokenizer("two birds, and a dog")[:6], copy.sep_id]
        for name in ("cls_id", "sep_id", "mask_id", "pad_id", "vocab_size"):
            assert getattr(copy, name) == getattr(tokenizer, name)
        assert copy.to_json() == tokenizer.to_json()
    with pytest.raises(DataError, match="kind 'nonsense'"):
        Tokenizer.from_json({"kind": "nonsense"}, 7)


def test_clip_is_open_clips_vocabulary_and_one_more_token(clip):
    official = SimpleTokenizer()
    text = "Two dogs & a cat's whiskerlessness"
    expected = official(text)[0].tolist()
    expected = expected[: expected.index(official.eot_token_id) + 1]
    ids = choose_tokenizer(TextConfig(tokenizer="clip", max_length=77, positions=77), lambda: [])(text)
    assert ids == expected
    assert (clip.mask_id, clip.vocab_size) == (49408, 49409)
    assert clip.decode(ids) == "two dogs & a cat 's whiskerlessness"


def test_words_of_clip_end_at_their_mark(clip):
    ids = clip("a whiskerlessness cat")
    words = clip.words(ids)
    pieces = len(clip("whiskerlessness")) - 2
    assert pieces > 1
    assert words == [None, 0, *[1] * pieces, 2, None]


def test_order_of_choice(wordpiece, tmp_path):
    config = TextConfig(tokenizer="clip", max_length=12)
    assert choose_tokenizer(config, lambda: [], wordpiece.to_json()).to_json() == wordpiece.to_json()
    assert choose_tokenizer(config, lambda: []).to_json() == {"kind": "clip"}
    trained = choose_tokenizer(TextConfig(vocab_size=200), lambda: TEXTS)
    assert trained.to_json() == wordpiece.to_json() and trained.max_length == 40


def test_a_local_folder(wordpiece, tmp_path):
    from transformers import PreTrainedTokenizerFast

    names = {name: f"[{name[:-6].upper()}]" for name in ("cls_token", "sep_token", "mask_token", "pad_token")}
    PreTrainedTokenizerFast(tokenizer_object=wordpiece._backend, **names).save_pretrained(tmp_path / "own")
    loaded = load_tokenizer(str(tmp_path / "own"), 12)
    assert loaded(TEXTS[3]) == wordpiece(TEXTS[3]) and loaded.words(loaded(TEXTS[3])) == wordpiece.words(
        loaded(TEXTS[3])
    )
    assert loaded.mask_id == wordpiece.mask_id


def test_a_byte_level_tokenizer_without_mask(tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<s>", "</s>", "Ġ", "d", "o", "g", "Ġd", "og", "Ġdog", "Ġthe"]
    merges = [("Ġ", "d"), ("o", "g"), ("Ġd", "og")]
    backend = Backend(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=merges))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), 12)
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.vocab_size) == (0, 1, 10, 11)
    ids = tokenizer("dog dogdog")
    assert tokenizer.words(ids)[:2] == [None, 0] and set(tokenizer.words(ids)) == {None, 0, 1}
    assert tokenizer.decode([*ids, tokenizer.mask_id]).strip() == "dog dogdog"


def test_mistakes(monkeypatch):
    def offline(name, **options):
        raise OSError("We couldn't connect\nand more lines")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", offline)
    with pytest.raises(
        UsageError, match=r"text\.tokenizer=some/name cannot be loaded: We couldn't connect; text\.token"
    ):
        load_tokenizer("some/name", 12)
    with pytest.raises(
        UsageError, match=r"text\.tokenizer=\./nowhere is not a folder; text\.tokenizer takes wordpiece"
    ):
        load_tokenizer("./nowhere", 12)
    with pytest.raises(UsageError, match=r"text\.vocab_size=10 is less than"):
        train_wordpiece(lambda: TEXTS, 10, 12)
    with pytest.raises(DataError, match="no text to train"):
        train_wordpiece(lambda: [" ", ""], 100, 12)
