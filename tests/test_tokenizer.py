"""Ids are those of the slow LlamaTokenizer of transformers 4.28.1; offsets cover the text."""

import json
import random
import re
from itertools import pairwise

import pytest

from rlhfv_jax.data import tokenizer_record
from rlhfv_jax.data.hf_tokenizer import HfTokenizer
from rlhfv_jax.data.tokenizer import ADDED, CONTROL, MuffinTokenizer, find_reserved
from rlhfv_jax.errors import UserError

CHARACTERS = [
    *"abcXYZ.,!?#019",
    *" \n\t\r\u00a0\u3000",
    *"éüß漢字仮名한국ابجд",
    *"😀🏽🇩🇪",
    *"e\u0301n\u0303",
    *"\u200b\u200dﬁ①½…—\u2028",
]


@pytest.fixture(scope="module")
def llama(fixtures) -> MuffinTokenizer:
    return MuffinTokenizer.from_file(fixtures / "tiny-muffin/tokenizer.model")


@pytest.fixture(scope="module")
def rows(fixtures) -> list[dict]:
    return json.loads((fixtures / "tokenization.json").read_text())["rows"]


def random_texts(number: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    texts = ["".join(rng.choices(CHARACTERS, k=rng.randint(1, 40))) for _ in range(number)]
    return [text if i % 3 else text + rng.choice(ADDED + CONTROL) + texts[0] for i, text in enumerate(texts)]


def test_ids_equal_the_slow_llama_tokenizer(llama, rows):
    assert len(rows) == 229
    assert [row["text"] for row in rows if llama.encode(row["text"]) != row["ids"]] == []


def test_decoding_equals_the_slow_llama_tokenizer_without_special_tokens(llama, rows):
    plain = [row for row in rows if not find_reserved(row["text"])]
    assert len(plain) > 170
    assert [row["text"] for row in plain if llama.decode(row["ids"]) != row["decoded"]] == []


def test_decoding_writes_image_tokens_by_name(llama, rows):
    """The reference puts spaces around added tokens, which the text never had; everything else is equal."""
    image = [row for row in rows if "<im_" in row["text"] and not any(token in row["text"] for token in CONTROL)]
    assert len(image) > 30

    def closed_up(text: str) -> str:
        return re.sub(r"\s*(<im_\w+>)\s*", r"\1", text)

    assert [r["text"] for r in image if llama.decode(r["ids"]) != closed_up(r["decoded"])] == []


def test_decoding_gives_back_any_plain_text(llama, tokenizer):
    texts = [text for text in random_texts(300) if not find_reserved(text)]
    assert [text for text in texts if llama.decode(llama.encode(text)) != text] == []
    # The small tokenizer's own normalisation drops extra spaces.
    assert [text for text in texts if tokenizer.decode(tokenizer.encode(text)).split() != text.split()] == []


def test_special_ids_follow_the_vocabulary(llama, tokenizer):
    names = ["<unk>", "<s>", "</s>", *ADDED]
    assert [llama.encode(name)[1] for name in names] == [0, 1, 2, 32000, 32001, 32002, 32003]
    assert (llama.bos_id, llama.pad_id, llama.image_token, llama.vocab_size) == (1, 32000, 32001, 32004)
    assert (tokenizer.pad_id, tokenizer.image_token, tokenizer.vocab_size) == (512, 513, 516)


def test_offsets_cover_every_visible_character_in_order(llama, tokenizer):
    for model in (llama, tokenizer):
        for text in random_texts(400, seed=1):
            ids, spans = model.encode_with_offsets(text)
            assert len(ids) == len(spans)
            assert all(0 <= start <= stop <= len(text) for start, stop in spans), text
            assert all(a <= c and b <= d for (a, b), (c, d) in pairwise(spans)), text
            covered = {i for start, stop in spans for i in range(start, stop)}
            missed = [char for i, char in enumerate(text) if i not in covered and not char.isspace()]
            assert missed == [], text


def test_an_offset_spells_its_token(llama):
    """Where a token is a whole piece of text, the characters at its span are that piece."""
    text = "Это кошка 🐱 and a naïve  dog,\n漢字 <im_start> red<im_end> bus"
    for token, (start, stop) in zip(*llama.encode_with_offsets(text), strict=True):
        piece = llama.piece(token)
        if token not in (llama.bos_id, llama.encode("<unk>")[1]) and not piece.startswith("<0x"):
            assert text[start:stop].strip() == piece.replace("▁", " ").strip()


def test_reserved_tokens_are_found():
    assert find_reserved("a <im_patch> b </s>") == "<im_patch>"
    assert find_reserved("1 < 2 and <s > or <image>") is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read the tokenizer .*none\.model: No such file"):
        MuffinTokenizer.from_file(tmp_path / "none.model")


@pytest.mark.parametrize("content", [b"", b'{"version": "1.0"}', b"\x00" * 100])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    path = tmp_path / "wrong.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"wrong\.model is not a sentencepiece model"):
        MuffinTokenizer.from_file(path)


# --- the released evaluation's ids, other families, and what a checkpoint stores --------------------------------------


def test_fast_ids_equal_the_fast_llama_tokenizer_wherever_no_control_token_is_spelled(llama, rows, fixtures):
    """5 of 229 texts spell <s>, </s> or <unk>, which the fast tokenizer treats as text or not by its own rules."""
    fast = MuffinTokenizer(llama.model_bytes, fast_ids=True)
    wrong = [row["text"] for row in rows if fast.encode(row["text"]) != (row["fast_ids"] or row["ids"])]
    assert len(wrong) == 5 and all(any(token in text for token in CONTROL) for text in wrong)
    golden = json.loads((fixtures / "conversation.json").read_text())
    prompts = golden["inference"]
    assert [p["prompt"] for p in prompts if fast.encode(p["prompt"]) != p["fast_input_ids"]] == []
    assert all(llama.encode(p["prompt"]) == p["input_ids"] for p in prompts)
    assert any(p["input_ids"] != p["fast_input_ids"] for p in prompts)


@pytest.fixture(scope="module")
def word_level(tmp_path_factory) -> str:
    """A small byte-level BPE tokenizer in the form in which other families ship theirs, without image tokens."""
    import tokenizers
    import transformers

    texts = ["A red bus passes two people.", "Der Bus ist rot, nicht blau.", "1 2 3 <4>"] * 5
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet)
    backend.train_from_iterator(texts, trainer)
    folder = tmp_path_factory.mktemp("family")
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>").save_pretrained(folder)
    return str(folder)


def test_another_familys_tokenizer_has_the_same_interface(word_level):
    """Ids as transformers gives them, BOS in front, image tokens and [PAD] added, every text back."""
    import transformers

    found = HfTokenizer.from_directory(word_level)
    theirs = transformers.AutoTokenizer.from_pretrained(word_level)
    text = "A red bus passes two blue people, 漢字 <4>\n"
    ids, spans = found.encode_with_offsets(text)
    assert ids == [theirs.bos_token_id, *theirs.encode(text, add_special_tokens=False)]
    assert spans[0] == (0, 0) and spans[1][0] == 0 and spans[-1][1] == len(text)
    assert found.decode(ids) == text
    assert found.vocab_size == len(theirs) + len(ADDED)
    image = found.encode("<im_start><im_patch><im_patch><im_end>")
    assert image.count(found.image_token) == 2 and len(image) == 5
    assert found.piece(found.pad_id) == "[PAD]"


def test_a_checkpoints_record_gives_back_the_tokenizer_it_was_saved_with(llama, word_level):
    text = "Look: <im_start><im_patch><im_end>\nWhat  is it?"
    fast = MuffinTokenizer(llama.model_bytes, fast_ids=True)
    assert fast.encode(text) != llama.encode(text)
    for tokenizer in (llama, fast, HfTokenizer.from_directory(word_level)):
        record = json.loads(json.dumps(tokenizer_record.to_record(tokenizer)))
        again = tokenizer_record.from_record(record)
        assert (again.kind, again.digest, again.encode(text)) == (
            tokenizer.kind,
            tokenizer.digest,
            tokenizer.encode(text),
        )
    old = {"tokenizer": tokenizer_record.to_record(llama)["tokenizer"]}  # before kinds were stored
    assert tokenizer_record.from_record(old).encode(text) == llama.encode(text)


def test_a_record_that_names_no_known_tokenizer_is_refused(llama, tmp_path):
    with pytest.raises(UserError, match="has no tokenizer"):
        tokenizer_record.from_record({})
    with pytest.raises(UserError, match="unknown kind 'byte'"):
        tokenizer_record.from_record(tokenizer_record.to_record(llama) | {"tokenizer_kind": "byte"})
    with pytest.raises(UserError, match="Cannot read the tokenizer in"):
        HfTokenizer.from_directory(tmp_path)
