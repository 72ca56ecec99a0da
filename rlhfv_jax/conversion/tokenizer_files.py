"""The tokenizer beside the weights: found in a PyTorch directory, and written as one that other tools read."""

import json
from pathlib import Path
from typing import Any

from rlhfv_jax.data.hf_tokenizer import HfTokenizer
from rlhfv_jax.data.tokenizer import ADDED, CONTROL, MuffinTokenizer, Tokenizer
from rlhfv_jax.errors import UserError


def find(source: Path, given: str, fast_ids: bool, kind: str = "muffin", json_first: bool = False) -> Tokenizer:
    """The tokenizer `given` (a sentencepiece .model file, or a directory), else the one beside the weights.

    `kind`: how the model's family reads a sentencepiece model; `fast_ids` asks for another way. `json_first`: a
    tokenizer.json goes before it. Raises UserError where there is none, or `fast_ids` asks one that has no such choice.
    """
    folder = source if source.is_dir() else source.parent
    path = Path(given) if given else folder
    if path.is_file() or (given and not path.is_dir()):
        return MuffinTokenizer(MuffinTokenizer.from_file(path).model_bytes, fast_ids, kind)
    folder = path if given else folder
    if (folder / "tokenizer.model").is_file() and not (json_first and (folder / "tokenizer.json").is_file()):
        return find(source, str(folder / "tokenizer.model"), fast_ids, kind, json_first)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"There is no tokenizer in {folder}: give one as --tokenizer=FILE.model (or a directory).")
    if fast_ids:
        raise UserError(f"--fast_ids is a choice of Muffin's sentencepiece tokenizer; {folder} has a tokenizer.json.")
    return HfTokenizer.from_directory(folder)


def files(tokenizer: Tokenizer, added: bool) -> dict[str, bytes]:
    """File names and contents for a Hugging Face directory; `added`: with [PAD] and the image tokens."""
    if tokenizer.kind == "transformers":
        record = json.loads(tokenizer.model_bytes)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": record["bos_token"]}
        return {"tokenizer.json": _json(record["tokenizer"]), "tokenizer_config.json": _json(config)}
    unk, bos, eos = CONTROL
    special = {"bos_token": bos, "eos_token": eos, "unk_token": unk}
    config = special | {
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "padding_side": "right",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    contents = {"tokenizer.model": tokenizer.model_bytes, "tokenizer_config.json": _json(config)}
    if added:
        special["pad_token"] = ADDED[0]
        base = tokenizer.vocab_size - len(ADDED)
        contents["added_tokens.json"] = _json({token: base + i for i, token in enumerate(ADDED)})
    return contents | {"special_tokens_map.json": _json(special)}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
