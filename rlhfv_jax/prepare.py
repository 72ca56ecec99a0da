"""From settings to the objects of a run: tokenizer, model, pairs, parameters, reference log-probs."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhfv_jax import adapters, checkpoint, lora, refcache, settings, sharding
from rlhfv_jax.data import pipeline, sources, tokenizer_record
from rlhfv_jax.data.chat import TEMPLATES
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import vlm
from rlhfv_jax.settings import Settings

RANDOM = "random"  # config.init_from: no checkpoint


@dataclass(frozen=True)
class Pairs:
    """A data file, read and encoded: `records` as in the file, `encoded` without the pairs left out."""

    path: str
    records: Sequence[sources.PreferenceRecord]
    encoded: Sequence[pipeline.EncodedPair]
    stats: pipeline.EncodingStats

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the file."""
        rows = {"path": self.path, "rows": len(self.records), "digest": sources.digest(self.records)}
        return rows | dataclasses.asdict(self.stats)


def check_inputs(s: Settings) -> None:
    """Raises UserError that says what is missing and how to get it."""
    if not s.data.path:
        raise UserError(
            "No data: give preference pairs as --config.data.path=FILE.parquet (the schema of the published RLHF-V "
            "dataset, HaoyeZhang/RLHF-V-Dataset on the Hugging Face hub) or FILE.jsonl."
        )
    if not s.init_from:
        raise UserError(
            "No checkpoint: give the model to start from as --config.init_from=RUN (a training run's directory, or one "
            "of its checkpoints/STEP). To try the code on a small model with random weights, use --config=ddpo.py:mini."
        )
    if s.init_from == RANDOM and not s.tokenizer:
        raise UserError("No tokenizer: give a sentencepiece model as --config.tokenizer=FILE.model.")


def load_tokenizer(s: Settings) -> MuffinTokenizer:
    """The tokenizer file of the settings, or the one stored with `init_from`; both must agree where both are given."""
    given = MuffinTokenizer.from_file(s.tokenizer) if s.tokenizer else None
    if s.init_from == RANDOM:
        assert given is not None, "check_inputs asks for a tokenizer"
        return given
    stored = tokenizer_record.from_record(checkpoint.read_meta(s.init_from))
    if given is not None and given.digest != stored.digest:
        raise UserError(
            f"The tokenizer {s.tokenizer} (sha256 {given.digest[:12]}) is not the one that {s.init_from} was trained "
            f"with ({stored.digest[:12]}); leave config.tokenizer empty to use that one."
        )
    return stored


def build_model(s: Settings, tokenizer: MuffinTokenizer) -> vlm.Muffin:
    """The model of the settings; its sizes must be those of `init_from`."""
    config = settings.with_vocabulary(s.model, tokenizer.vocab_size, tokenizer.image_token)
    if s.init_from != RANDOM:
        stored = checkpoint.read_meta(s.init_from)["model"]
        if lines := settings.differences(dataclasses.asdict(config), stored, "model."):
            raise UserError(f"This run's model differs from that of {s.init_from}: {'; '.join(lines)}.")
    return vlm.Muffin(config, jnp.dtype(s.dtype), s.remat)


def load_pairs(path: str, s: Settings, tokenizer: MuffinTokenizer) -> Pairs:
    """Reads and encodes a file of preference pairs."""
    records = sources.read(path)
    encoded, stats = pipeline.encode_pairs(
        records,
        tokenizer,
        TEMPLATES[s.data.template],
        s.model.tower.queries,
        gamma=s.ddpo.gamma,
        spans=s.data.spans,
        max_length=s.data.max_length,
        too_long=s.data.too_long,
    )
    return Pairs(path, records, encoded, stats)


def make_source(pairs: Pairs, s: Settings, tokenizer: MuffinTokenizer, ref_logps: Any = None) -> pipeline.PairSource:
    """Padded pairs; every row of the file has the same static length."""
    length = pipeline.bucket(pairs.stats.longest_row)
    return pipeline.PairSource(pairs.encoded, s.model.tower.image_size, tokenizer.pad_id, length, ref_logps)


def checkpoint_meta(model: vlm.Muffin, tokenizer: MuffinTokenizer, template: str) -> dict[str, Any]:
    """The JSON record of a checkpoint: with it, the checkpoint needs nothing else to be used."""
    return {
        "model": dataclasses.asdict(model.config),
        "template": template,
        **tokenizer_record.to_record(tokenizer),
    }


def abstract_params(model: vlm.Muffin) -> Any:
    """Shapes and dtypes of the parameters, without making any."""
    return jax.eval_shape(functools.partial(vlm.init, model), jax.random.key(0))


def init_params(s: Settings, model: vlm.Muffin, mesh: Mesh) -> Any:
    """Parameters of `init_from` or, with "random", of the seed; laid out on the mesh (call within `jax.set_mesh`)."""
    abstract = abstract_params(model)
    if s.init_from == RANDOM:
        init = functools.partial(vlm.init, model)
        return jax.jit(init, out_shardings=sharding.shardings(abstract, mesh))(jax.random.key(s.seed))
    # Weights that train are float32, whatever is stored; a base that does not is kept as it is computed with.
    dtype = jnp.dtype(s.dtype) if s.lora.rank else jnp.float32
    return adapters.restore_params(s.init_from, abstract, mesh, dtype)


def with_adapters(s: Settings, base: Any) -> Any:
    """The base with the settings' fresh adapters beside it, or as it is where lora.rank is 0; for jit or eval_shape."""
    return lora.attach(base, lora.init(base, s.lora, jax.random.key(s.seed))) if s.lora.rank else base


def hold_out(pairs: Pairs, share: float) -> tuple[Pairs, Pairs]:
    """Pairs to train on and pairs to evaluate on: about `share` of them, chosen by a hash of their ids.

    So a pair stays on its side whatever the order, the seed, and the pairs that come or go beside it.
    """

    def held(identity: str) -> bool:
        return int(hashlib.sha256(identity.encode()).hexdigest()[:15], 16) < share * 16**15

    def part(side: bool) -> Pairs:
        records = [record for record in pairs.records if held(record.id) == side]
        return dataclasses.replace(
            pairs, records=records, encoded=[pair for pair in pairs.encoded if held(pair.record.id) == side]
        )

    parts = part(False), part(True)
    if not (parts[0].encoded and parts[1].encoded):
        raise UserError(
            f"config.eval_share={share} of the {len(pairs.encoded)} pairs of {pairs.path} leaves "
            f"{len(parts[0].encoded)} to train and {len(parts[1].encoded)} to evaluate on."
        )
    return parts


def reference_facts(s: Settings, model: vlm.Muffin, tokenizer: MuffinTokenizer, params_digest: str) -> dict[str, Any]:
    """Everything that reference log-probs depend on besides the pairs' own rows."""
    return {
        "params": params_digest,
        "tokenizer": tokenizer.digest,
        "template": dataclasses.asdict(TEMPLATES[s.data.template]),
        "image_transform": f"bicubic {s.model.tower.image_size}",
        "dtype": s.dtype,
        "model": dataclasses.asdict(model.config),
    }


def reference_log_probs(
    pairs: Pairs,
    s: Settings,
    tokenizer: MuffinTokenizer,
    facts: dict[str, Any],
    folder: Path,
    mesh: Mesh,
    forward: Callable[[Any, Any], jax.Array],
    params: Any,
) -> np.ndarray:
    """float32[pairs, 2, T-1]: loaded where a cache of exactly these facts exists, else computed and saved.

    A cache given as config.reference_cache is for the pairs of config.data.path, and has to fit.

    `params` may be None where only a cached result is acceptable (a resumed run no longer has its initial parameters).
    """
    path = folder / f"{refcache.key(facts | {'data': sources.digest(pairs.records)})[:16]}.parquet"
    if s.reference_cache and pairs.path == s.data.path:
        path = Path(s.reference_cache)
        if not path.exists():
            raise UserError(f"There is no reference cache at {path}; `python -m rlhfv_jax.reference` writes one.")
    length = pipeline.bucket(pairs.stats.longest_row)
    if path.exists():
        return refcache.load(path, facts, pairs.encoded, length)
    if params is None:
        raise UserError(f"The reference cache {path} of this run is gone; start a new run in another --workdir.")
    logps = refcache.compute(forward, params, make_source(pairs, s, tokenizer), s.optim.batch_size, mesh)
    refcache.save(path, facts, pairs.encoded, logps)
    return logps
