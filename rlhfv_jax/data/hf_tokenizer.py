"""Tokenizers of other model families, as `transformers` has them, behind the interface of `data.tokenizer`."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhfv_jax.data.tokenizer import ADDED, IMAGE_PATCH, PAD, Span
from rlhfv_jax.errors import UserError


class HfTokenizer:
    """A fast tokenizer from its JSON; image tokens and [PAD] are added where it has none.

    `model_bytes` is a JSON object of `tokenizer` (tokenizer.json) and `bos_token` (its text, or null).
    """

    kind = "transformers"

    def __init__(self, model_bytes: bytes):
        self.model_bytes = model_bytes
        self.digest = hashlib.sha256(model_bytes).hexdigest()
        self._bos = json.loads(model_bytes)["bos_token"]
        self.vocab_size = len(self._tokenizer)
        self.pad_id = self._tokenizer.convert_tokens_to_ids(PAD)
        self.image_token = self._tokenizer.convert_tokens_to_ids(IMAGE_PATCH)
        self.bos_id = self._tokenizer.convert_tokens_to_ids(self._bos) if self._bos else self.pad_id

    @classmethod
    def from_directory(cls, folder: str | Path) -> "HfTokenizer":
        """Reads what `save_pretrained` wrote; raises UserError where that is no fast tokenizer."""
        import transformers

        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(f"Cannot read the tokenizer in {folder} ({reason}).") from error
        if not tokenizer.is_fast:
            raise UserError(f"The tokenizer in {folder} has no tokenizer.json, so it gives no character offsets.")
        tokenizer.add_tokens([token for token in ADDED if token not in tokenizer.get_vocab()], special_tokens=True)
        content = {"tokenizer": json.loads(tokenizer.backend_tokenizer.to_str()), "bos_token": tokenizer.bos_token}
        return cls(json.dumps(content, ensure_ascii=False, sort_keys=True).encode())

    @cached_property
    def _tokenizer(self) -> Any:
        import tokenizers
        import transformers

        backend = tokenizers.Tokenizer.from_str(json.dumps(json.loads(self.model_bytes)["tokenizer"]))
        return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)

    def encode(self, text: str) -> list[int]:
        """Ids of the text, beginning-of-sequence first where the family has such a token, no end token."""
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids as `encode`, and for each its half-open span of characters; (0, 0) for the first token's."""
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, spans = list(found["input_ids"]), [tuple(span) for span in found["offset_mapping"]]
        return ([self.bos_id, *ids], [(0, 0), *spans]) if self._bos else (ids, spans)

    def decode(self, ids: list[int]) -> str:
        """Text of the ids; special tokens are written by name, except the first."""
        ids = ids[1:] if self._bos and ids[:1] == [self.bos_id] else ids
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def piece(self, token: int) -> str:
        """One token as it stands in the vocabulary, for display."""
        return self._tokenizer.convert_ids_to_tokens(token)
