"""Ids are those of the slow LlamaTokenizer of transformers 4.28.1; offsets cover the text."""

import json
import random
import re
from itertools import pairwise

import pytest

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
