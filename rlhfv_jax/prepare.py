"""From settings to the objects of a run: tokenizer, model, pairs, parameters, reference log-probs."""

import dataclasses
import functools
import hashlib
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhfv_jax import (
    adapters,
    checkpoint,
    featurecache,
    lora,
    processes,
    provenance,
    refcache,
    settings,
    sharding,
    trees,
)
from rlhfv_jax.data import buckets, encoding, images, pipeline, sources, supervised, tokenizer_record
from rlhfv_jax.data.chat import find_template
from rlhfv_jax.data.features import FeatureFile, image_digest
from rlhfv_jax.data.records import AnsweredRecord
from rlhfv_jax.data.segments import Diff
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import vlm
from rlhfv_jax.settings import Settings

RANDOM = "random"  # config.init_from: no checkpoint


@dataclass(frozen=True)
class Rows:
    """A data file, read and encoded: `records` as selected from it, `encoded` without the rows left out."""

    path: str
    records: Sequence[sources.PreferenceRecord] | Sequence[AnsweredRecord]
    encoded: Sequence[encoding.EncodedPair] | Sequence[encoding.EncodedExample]
    stats: encoding.EncodingStats

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the file."""
        rows = {"path": self.path, "rows": len(self.records), "digest": sources.digest(self.records)}
        return rows | dataclasses.asdict(self.stats)

    def bounds(self, count: int) -> list[int]:
        """At most `count` static lengths for these rows, ascending."""
        return buckets.choose([row.longest for row in self.encoded], count)


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
    """The tokenizer file of the settings, or the one stored with `init_from`; both must agree where both are given.

    Raises UserError where they do not.
    """
    given = None
    if s.tokenizer:
        given = MuffinTokenizer(MuffinTokenizer.from_file(s.tokenizer).model_bytes, kind=s.model.tokenizer)
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


def build_model(s: Settings, tokenizer: MuffinTokenizer) -> vlm.Vlm:
    """The model of the settings; its sizes must be those of `init_from`, whose vocabulary it has.

    The vocabulary of random weights is the tokenizer's.

    Raises UserError naming the sizes that differ.
    """
    if s.init_from == RANDOM:
        config = settings.with_vocabulary(s.model, tokenizer.vocab_size, tokenizer.image_token)
    else:
        stored = settings.model_of(checkpoint.read_meta(s.init_from))
        rows = stored.llm.vocab_size if isinstance(stored, vlm.VlmConfig) else 0
        config = settings.with_vocabulary(s.model, rows, tokenizer.image_token)
        if lines := settings.differences(dataclasses.asdict(config), dataclasses.asdict(stored), "model."):
            raise UserError(f"This run's model differs from that of {s.init_from}: {'; '.join(lines)}.")
    return vlm.Vlm(config, jnp.dtype(s.dtype), s.remat, s.attention)


def load_rows(path: str, s: Settings, tokenizer: MuffinTokenizer, selected: bool = False) -> Rows:
    """Reads and encodes a file of what the task trains on; `selected` applies data.origins and data.count.

    Pairs for DDPO; for supervised fine-tuning answered questions, or the chosen answers of pairs.
    """
    origins = [origin.strip() for origin in s.data.origins.split(",") if origin.strip()] if selected else []
    count = s.data.count if selected else 0
    template, queries, data, ddpo = find_template(s.data.template), s.model.image_tokens, s.data, s.ddpo
    if data.records == "questions":
        questions = supervised.read(path, origins, count)
        examples, stats = encoding.encode_examples(
            questions,
            tokenizer,
            template,
            queries,
            instructions=data.instructions,
            label_mask=ddpo.label_mask,
            max_length=data.max_length,
            too_long=data.too_long,
        )
        return Rows(path, questions, examples, stats)
    records = sources.read(path, origins, count)
    pairs, stats = encoding.encode_pairs(
        records,
        tokenizer,
        template,
        queries,
        gamma=ddpo.gamma,
        diff=Diff(ddpo.hunks, ddpo.min_match, ddpo.unit, ddpo.diff_over, ddpo.autojunk),
        label_mask=ddpo.label_mask,
        spans=data.spans,
        max_length=data.max_length,
        too_long=data.too_long,
    )
    if s.task == "ddpo":
        return Rows(path, records, pairs, stats)
    chosen = encoding.chosen_examples(pairs)
    return Rows(path, records, chosen, dataclasses.replace(stats, longest_row=max(row.longest for row in chosen)))


def make_source(
    rows: Rows,
    s: Settings,
    tokenizer: MuffinTokenizer,
    ref_logps: Any = None,
    mesh: Mesh | None = None,
    features: FeatureFile | None = None,
) -> Any:
    """Padded rows, a PairSource or an ExampleSource; every row has the longest static length unless asked otherwise.

    With data.layout=packed a PackedSource, a buffer for every share of the mesh (by default one) and part of a batch.
    With `features` these stand in the place of images.
    """
    length, size = buckets.rounded(rows.stats.longest_row), s.model.tower.image_size
    flip_any, encoded = s.data.flip == "any", typing.cast(Any, rows.encoded)
    fit = images.fit(fit_name(s), s.model.mean)
    source: Any
    if s.data.layout == "packed":
        source = pipeline.PackedSource(
            encoded,
            size,
            tokenizer.pad_id,
            length,
            ref_logps,
            flip_any,
            fit,
            image_token=tokenizer.image_token,
            queries=s.model.image_tokens,
            batch_size=s.optim.batch_size,
            groups=1 if mesh is None else sharding.ways(mesh) * s.gradient_accumulation,
        )
    elif s.task == "ddpo":
        source = pipeline.PairSource(encoded, size, tokenizer.pad_id, length, ref_logps, flip_any, fit)
    else:
        source = pipeline.ExampleSource(encoded, size, tokenizer.pad_id, length, flip_any, fit)
    source.features = features
    return source


def fit_name(s: Settings) -> str:
    """How pictures become squares: as the model's family has it, unless config.data.fit says otherwise."""
    return s.data.fit or s.model.fit


def checkpoint_meta(model: vlm.Vlm, tokenizer: MuffinTokenizer, template: str) -> dict[str, Any]:
    """The JSON record of a checkpoint: with it, the checkpoint needs nothing else to be used."""
    return {
        "model": dataclasses.asdict(model.config),
        "template": template,
        **tokenizer_record.to_record(tokenizer),
    }


def init_params(s: Settings, model: vlm.Vlm, mesh: Mesh) -> Any:
    """Parameters of `init_from` or, with "random", of the seed; laid out on the mesh (call within `jax.set_mesh`)."""
    abstract = vlm.abstract_params(model.config)
    if s.init_from == RANDOM:
        init = functools.partial(vlm.init, model)
        return jax.jit(init, out_shardings=sharding.shardings(abstract, mesh))(jax.random.key(s.seed))
    # Weights that train are float32, whatever is stored; a base that does not is kept as it is computed with.
    dtype = jnp.dtype(s.dtype) if s.lora.rank else jnp.float32
    return adapters.restore_params(s.init_from, abstract, mesh, dtype)


def with_adapters(s: Settings, base: Any) -> Any:
    """The base with the settings' fresh adapters beside it, or as it is where lora.rank is 0; for jit or eval_shape."""
    return lora.attach(base, lora.init(base, s.lora, jax.random.key(s.seed))) if s.lora.rank else base


def hold_out(rows: Rows, share: float) -> tuple[Rows, Rows]:
    """Rows to train on and rows to evaluate on: about `share` of them, chosen by a hash of their ids.

    So a row stays on its side whatever the order, the seed, and the rows that come or go beside it. Number and lengths
    of rows are each part's own; what else encoding found (`EncodingStats`) is said of the whole file in both.

    Raises UserError where either part would be empty.
    """

    def held(identity: str) -> bool:
        return int(hashlib.sha256(identity.encode()).hexdigest()[:15], 16) < share * 16**15

    def part(side: bool) -> Rows:
        records: Any = [record for record in rows.records if held(record.id) == side]
        encoded: Any = [row for row in rows.encoded if held(row.record.id) == side]
        longest = max((row.longest for row in encoded), default=0)
        stats = dataclasses.replace(rows.stats, pairs=len(encoded), longest_row=longest)
        return Rows(rows.path, records, encoded, stats)

    parts = part(False), part(True)
    if not (parts[0].encoded and parts[1].encoded):
        raise UserError(
            f"config.eval_share={share} of the {len(rows.encoded)} rows of {rows.path} leaves "
            f"{len(parts[0].encoded)} to train and {len(parts[1].encoded)} to evaluate on."
        )
    return parts


def reference_model(s: Settings, model: vlm.Vlm) -> vlm.Vlm:
    """The model as the reference pass computes it: the same parameters, in data.reference_dtype.

    Raises UserError for float16 on a CPU.
    """
    if s.data.reference_dtype == "float16" and jax.default_backend() == "cpu":
        raise UserError(
            "config.data.reference_dtype=float16 does not run on CPUs, which have no such products; use float32."
        )
    return model.clone(dtype=jnp.dtype(s.data.reference_dtype or s.dtype))


def comparable(s: Settings) -> bool:
    """Whether the policy's first forward pass has to agree with its reference: same pixels, same dtype, same model."""
    has_reference = s.task == "ddpo" and not s.ddpo.reference_free and s.data.reference == "compute"
    same_images = s.data.augment == s.data.reference_augment == "none"
    return has_reference and same_images and s.data.reference_dtype in ("", s.dtype)


def reference_facts(s: Settings, model: vlm.Vlm, tokenizer: MuffinTokenizer, params_digest: str) -> dict[str, Any]:
    """Everything that reference log-probs depend on besides the pairs' own rows."""
    drawn = f", {s.data.reference_augment}, flip {s.data.flip}, seed {s.seed}"
    image_transform = f"{fit_name(s)} bicubic {s.model.tower.image_size}"
    return {
        "params": params_digest,
        "tokenizer": tokenizer.digest,
        "template": dataclasses.asdict(find_template(s.data.template)),
        "source": s.data.reference,
        "label_mask": s.ddpo.label_mask,
        "image_transform": f"{image_transform}{'' if s.data.reference_augment == 'none' else drawn}",
        "dtype": s.data.reference_dtype or s.dtype,
        "model": dataclasses.asdict(model.config),
    }


def image_features(
    row_sets: Sequence[Rows], s: Settings, model: vlm.Vlm, params: Any, folder: Path, mesh: Mesh
) -> FeatureFile | None:
    """The tower's outputs for the images of all rows, loaded where a file of them exists, else computed and saved; None
    where data.image_features has them computed at every step. `params` are the model's; its tower has to be frozen.

    Raises UserError where adapters would change them.
    """
    if s.data.image_features == "compute":
        return None
    if adapted := [path for path, _ in trees.paths(params["tower"]) if path.endswith(lora.NAMES)]:
        raise UserError(f"config.data.image_features=cached, but config.lora.targets adapts tower/{adapted[0]}.")
    records = [record for rows in row_sets for record in rows.records]
    facts = {
        "tower": trees.digest(params["tower"]),
        "sizes": dataclasses.asdict(s.model.tower),
        "family": s.model.family,
        "image_transform": f"{fit_name(s)} bicubic {s.model.tower.image_size}",
        "dtype": s.dtype,
    }
    data = hashlib.sha256("".join(sorted({image_digest(record.image) for record in records})).encode()).hexdigest()
    path = folder / f"{provenance.key(facts | {'data': data})[:16]}.arrow"
    if not processes.from_first(f"features {path.name}", path.exists):
        encode = jax.jit(functools.partial(vlm.tower_outputs, model, {"tower": params["tower"]}))
        fit = images.fit(fit_name(s), s.model.mean)
        featurecache.compute(path, facts, records, encode, s.model.tower.image_size, s.optim.batch_size, mesh, fit)
        processes.barrier(f"written {path.name}")
    return featurecache.load(path, facts, records)


def compute_reference(
    pairs: Rows,
    s: Settings,
    tokenizer: MuffinTokenizer,
    mesh: Mesh,
    forward: Callable[[Any, Any], jax.Array],
    params: Any,
    features: FeatureFile | None = None,
) -> np.ndarray:
    """float32[pairs, 2, T-1]: `forward(params, batch)` over all pairs, their images as the reference sees them."""
    source = make_source(pairs, s, tokenizer, mesh=mesh, features=features)
    augment = images.AUGMENTATIONS[s.data.reference_augment]
    return refcache.compute(forward, params, source, s.optim.batch_size, mesh, augment, s.seed)


def reference_log_probs(
    pairs: Rows,
    s: Settings,
    tokenizer: MuffinTokenizer,
    facts: dict[str, Any],
    folder: Path,
    mesh: Mesh,
    forward: Callable[[Any, Any], jax.Array],
    params: Any,
    features: FeatureFile | None = None,
) -> np.ndarray:
    """float32[pairs, 2, T-1]: those in the data where data.reference says so; else loaded where a cache of exactly
    these facts exists, else computed and saved.

    A cache given as config.reference_cache is for the pairs of config.data.path, held-out ones too, and has to fit.

    `params` may be None where only a cached result is acceptable (a resumed run no longer has its initial parameters).

    Raises UserError for a cache that is gone, missing or of something else.
    """
    encoded: Any = pairs.encoded
    length = buckets.rounded(pairs.stats.longest_row)
    if s.data.reference == "stored":
        return refcache.stored(encoded, length)
    path = folder / f"{provenance.key(facts | {'data': sources.digest(pairs.records)})[:16]}.parquet"
    if s.reference_cache and pairs.path == s.data.path:
        path = Path(s.reference_cache)
        if not path.exists():
            raise UserError(f"There is no reference cache at {path}; `python -m rlhfv_jax.reference` writes one.")
    # Process 0 decides: another might see the file that process 0 writes below.
    if processes.from_first(f"reference {path.name}", path.exists):
        return refcache.load(path, facts, encoded, length)
    if params is None:
        raise UserError(f"The reference cache {path} of this run is gone; start a new run in another --workdir.")
    logps = compute_reference(pairs, s, tokenizer, mesh, forward, params, features)
    if processes.is_first():
        refcache.save(path, facts, encoded, logps)
    return logps
