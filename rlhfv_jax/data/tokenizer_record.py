"""A tokenizer as part of a checkpoint's JSON record: which kind it is, and all the bytes it is made of."""

import base64
from collections.abc import Mapping
from typing import Any

from rlhfv_jax.data.hf_tokenizer import HfTokenizer
from rlhfv_jax.data.tokenizer import KINDS, MuffinTokenizer, Tokenizer
from rlhfv_jax.errors import UserError


def to_record(tokenizer: Tokenizer) -> dict[str, str]:
    """The keys that `from_record` reads."""
    return {"tokenizer": base64.b64encode(tokenizer.model_bytes).decode(), "tokenizer_kind": tokenizer.kind}


def from_record(meta: Mapping[str, Any]) -> Any:
    """The tokenizer of a checkpoint's record (a `Tokenizer`); records without a kind are Muffin's.

    Raises UserError where there is none, or one of an unknown kind.
    """
    if not meta.get("tokenizer"):
        raise UserError("The checkpoint has no tokenizer; convert it again with --tokenizer=FILE.model.")
    content, kind = base64.b64decode(meta["tokenizer"]), meta.get("tokenizer_kind", "muffin")
    if kind in KINDS:
        return MuffinTokenizer(content, kind=kind)
    if kind == "transformers":
        return HfTokenizer(content)
    raise UserError(f"The checkpoint's tokenizer is of the unknown kind {kind!r}; it needs a newer version.")
