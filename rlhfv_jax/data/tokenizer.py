"""Muffin's tokenizer: sentencepiece, with the splitting rule of the tokenizer it was trained with.

Text is split at the special tokens. Around the four added ones ([PAD] and the three image tokens) all white space on
both sides is dropped; around <unk>, <s> and </s> none is. Every remaining piece is encoded on its own, so each gets
sentencepiece's leading-space marker. Ids of the added tokens follow the sentencepiece vocabulary (32000.. for LLaMA).

The released evaluation used the fast tokenizer, which drops no white space: `MuffinTokenizer(..., fast_ids=True)`.
LLaVA 1.5 drops none either, and what follows <unk>, <s> or </s> gets no marker (transformers' legacy=False).
"""

import hashlib
import re
from pathlib import Path
from typing import Protocol

import sentencepiece

from rlhfv_jax.errors import UserError

KINDS = ("muffin", "muffin_fast", "llava")
PAD, IMAGE_PATCH, IMAGE_START, IMAGE_END = ADDED = ("[PAD]", "<im_patch>", "<im_start>", "<im_end>")
CONTROL = ("<unk>", "<s>", "</s>")
_SPLIT = re.compile("|".join(re.escape(token) for token in ADDED + CONTROL))

Span = tuple[int, int]


class Tokenizer(Protocol):
    """What every program asks of a tokenizer; `tokenizer_record` stores one with a checkpoint and finds it again.

    `vocab_size` counts the added tokens; `image_token` is the id of <im_patch>; `digest` and `kind` tell tokenizers
    apart, and `kind` and `model_bytes` make one again.
    """

    kind: str
    model_bytes: bytes
    digest: str
    vocab_size: int
    bos_id: int
    pad_id: int
    image_token: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS."""
        ...

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Token ids, and the characters [start, end) that each covers."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        ...

    def piece(self, token: int) -> str:
        """How one token is written."""
        ...


class MuffinTokenizer:
    """Text to ids with character offsets, and back.

    Attributes: `vocab_size` (added tokens included), `bos_id`, `pad_id`, `image_token` (the id of <im_patch>),
    `digest` (sha256 of the model file), `model_bytes`, `kind`: one of KINDS. `fast_ids` is short for "muffin_fast": it
    keeps the white space around image tokens, which gives other ids for nearly every prompt with an image.
    """

    def __init__(self, model_bytes: bytes, fast_ids: bool = False, kind: str = "muffin"):
        self.model_bytes = model_bytes
        self.kind = "muffin_fast" if fast_ids else kind
        self._strips = ADDED if self.kind == "muffin" else ()
        self._joins = CONTROL if self.kind == "llava" else ()
        self.digest = hashlib.sha256(model_bytes).hexdigest()
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        base = self._model.vocab_size()
        self._ids = {token: base + i for i, token in enumerate(ADDED)}
        self._ids |= {token: self._model.piece_to_id(token) for token in CONTROL}
        self.vocab_size = base + len(ADDED)
        self.bos_id = self._ids["<s>"]
        self.pad_id = self._ids[PAD]
        self.image_token = self._ids[IMAGE_PATCH]

    @classmethod
    def from_file(cls, path: str | Path) -> "MuffinTokenizer":
        """Reads a sentencepiece .model file; raises UserError where it is none."""
        try:
            tokenizer = cls(Path(path).read_bytes())
            if tokenizer.vocab_size == len(ADDED):  # sentencepiece takes an empty file for an empty model
                raise RuntimeError("no pieces")
            return tokenizer
        except OSError as error:
            raise UserError(f"Cannot read the tokenizer {path}: {error.strerror or error}.") from error
        except RuntimeError as error:
            raise UserError(f"The tokenizer {path} is not a sentencepiece model.") from error

    def encode(self, text: str) -> list[int]:
        """Ids of the text, beginning-of-sequence first, no end token."""
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids as `encode`, and for each the half-open span of characters it stands for; (0, 0) for the first."""
        ids, spans = [self.bos_id], [(0, 0)]
        start, left = 0, ""
        for match in [*_SPLIT.finditer(text), None]:
            stop, right = (match.start(), match.group()) if match else (len(text), "")
            piece, offset = text[start:stop], start
            if left in self._strips:
                offset += len(piece) - len(piece.lstrip())
                piece = piece.lstrip()
            if right in self._strips:
                piece = piece.rstrip()
            for token, (a, b) in self._encode_piece(piece, marked=left not in self._joins):
                ids.append(token)
                spans.append((offset + a, offset + b))
            if match:
                ids.append(self._ids[right])
                spans.append(match.span())
                start, left = match.end(), right
        return ids, spans

    def _encode_piece(self, text: str, marked: bool = True) -> list[tuple[int, Span]]:
        """Ids with character spans of text without special tokens; `marked`: the first one with a space marker."""
        if not text:
            return []
        if not marked:  # a line break joins nothing, so that what is behind it is as in the middle of a text
            behind = [(token, (a - 1, b - 1)) for token, (a, b) in self._encode_piece(f"\n{text}") if b > 1]
            return [(token, (max(a, 0), b)) for token, (a, b) in behind]
        pieces = self._model.encode(text, return_type="proto").pieces
        chars = _byte_to_char(text)
        tokens: list[tuple[int, Span]] = []
        end = len(text)
        # Tokens without characters of their own (a lone space marker, the first bytes of a character) share the span
        # of the token after them.
        for piece in reversed(pieces):
            a, b = chars[piece.begin], chars[piece.end]
            end = b if b > a else end
            tokens.append((piece.id, (a, end)))
        return tokens[::-1]

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; special tokens are written by name."""
        names = {i: token for token, i in self._ids.items()}
        parts: list[str] = []
        run: list[int] = []
        for token in [*ids, None]:
            if token is not None and token not in names:
                run.append(token)
                continue
            if run:
                parts.append(self._model.decode(run))
                run = []
            if token is not None and token != self.bos_id:
                parts.append(names[token])
        return "".join(parts)

    def piece(self, token: int) -> str:
        """One token as it stands in the vocabulary, for display."""
        names = {i: name for name, i in self._ids.items()}
        return names.get(token) or self._model.id_to_piece(token)


def _byte_to_char(text: str) -> list[int]:
    """Character index of every UTF-8 byte offset, the end included; sentencepiece counts in bytes."""
    if text.isascii():
        return list(range(len(text) + 1))
    table = []
    for index, char in enumerate(text):
        table += [index] * len(char.encode())
    return [*table, len(text)]


def find_reserved(text: str) -> str | None:
    """The first special token spelled out in the text, or None; data must not contain one."""
    match = _SPLIT.search(text)
    return match.group() if match else None
