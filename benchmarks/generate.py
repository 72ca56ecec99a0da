"""Tokens per second of greedy decoding at several batch sizes: Hugging Face `generate` beside ours; one run.

    python benchmarks/generate.py --out=generate.json

The same weights, converted; equal token ids are checked before any timing. Whole calls are timed, prompt included: all
rows get `--new` tokens, nothing ends early. `products` runs the matrix products of as many steps and nothing else, with
JAX: what remains of a step when everything but its weights is free.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import protocol
import torch
import torch_muffin
from absl import app, flags
from pairs import SMALL

from rlhfv_jax.decoding import processors, sample
from rlhfv_jax.decoding.forward import Inputs, Network, cache_bytes
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.models import vlm
from rlhfv_jax.models.llama import LlamaConfig

MODELS = {
    "narrow": LlamaConfig(512, width=64, layers=5, heads=8, kv_heads=4, ffn=172, norm_eps=1e-5),
    "wide": LlamaConfig(4096, width=512, layers=8, heads=8, kv_heads=8, ffn=1376),
}
_MODEL = flags.DEFINE_enum("model", "wide", list(MODELS), "Which random LLaMA.")
_BATCH = flags.DEFINE_list("batch", "1,8,32", "Batch sizes.")
_PROMPT = flags.DEFINE_integer("prompt", 64, "Tokens of a prompt.")
_NEW = flags.DEFINE_integer("new", 64, "Tokens of an answer.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Rounds, each of them A B B A.")
_OUT = flags.DEFINE_string("out", "", "A JSON file to write.")


def hugging_face(config: vlm.MuffinConfig, params: Any) -> Callable[[np.ndarray], np.ndarray]:
    peer = torch_muffin.TorchMuffin(config, recompute=False)
    peer.load(params)
    model = peer.lm.eval()

    def generate(tokens: np.ndarray) -> np.ndarray:
        ids = torch.tensor(tokens).long()
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=_NEW.value,
                min_new_tokens=_NEW.value,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            )
        return out[:, tokens.shape[1] :].numpy()

    return generate


def ours(config: vlm.MuffinConfig, params: Any) -> Callable[[np.ndarray], np.ndarray]:
    network = Network(config)
    settings = GenerationSettings(max_new_tokens=_NEW.value)
    program = sample.programs(network, sample.mode(settings))
    params = jax.jit(network.unstack)(params)
    controls = processors.controls(settings, network.llm.padded_vocab, [-1], processors.no_stop_strings())
    limit = jnp.int32(_NEW.value)

    def generate(tokens: np.ndarray) -> np.ndarray:
        rows, width = tokens.shape
        inputs = Inputs(tokens, np.full(rows, width, np.int32), None, None)
        seeds = np.zeros(rows, np.uint32)
        state = program.start(params, inputs, seeds, controls, limit, slots=_NEW.value)
        return np.asarray(program.advance(params, state, controls, limit, width=width).tokens)

    return generate


def products(config: LlamaConfig, params: Any) -> Callable[[np.ndarray], Any]:
    """Every weight of the blocks and the head, times one row per answer, `--new` times."""
    layers, head = params["llm"]["layers"], params["llm"]["head"]["kernel"]
    kernels = [kernel.reshape(config.layers, *_flat(name, kernel.shape[1:])) for name, kernel in _kernels(layers)]
    weights = [kernel[i] for kernel in kernels for i in range(config.layers)] + [head]

    @partial(jax.jit, static_argnames="steps")
    def run(weights: list[jax.Array], x: jax.Array, steps: int) -> jax.Array:
        def step(_: Any, x: jax.Array) -> jax.Array:
            for weight in weights:  # each needs the one before, so that none is left out
                y = jnp.tile(x, (1, -(-weight.shape[0] // x.shape[1])))[:, : weight.shape[0]] @ weight
                x = jax.lax.dynamic_update_slice(x, 1e-3 * y[:, :1], (0, 0))
            return x

        return jax.lax.fori_loop(0, steps, step, x)

    def call(tokens: np.ndarray) -> Any:
        return jax.block_until_ready(run(weights, jnp.ones((len(tokens), config.width)), _NEW.value))

    return call


def _kernels(layers: Any) -> list[tuple[str, jax.Array]]:
    attention, mlp = layers["attention"], layers["mlp"]
    return [(name, part[name]["kernel"]) for part in (attention, mlp) for name in part]


def _flat(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0] * shape[1], shape[2]) if name == "o" else (shape[0], int(np.prod(shape[1:])))


def main(_: list[str]) -> None:
    llm = MODELS[_MODEL.value]
    config = vlm.MuffinConfig(SMALL.tower, llm, image_token=llm.vocab_size - 1)
    params = jax.jit(lambda key: vlm.init(vlm.Muffin(config), key))(jax.random.key(0))
    makers = {"hugging_face": hugging_face(config, params), "ours": ours(config, params)}
    rows = []
    for batch in map(int, _BATCH.value):
        tokens = np.random.default_rng(0).integers(3, llm.vocab_size - 100, (batch, _PROMPT.value)).astype(np.int32)
        expected, found = makers["hugging_face"](tokens), makers["ours"](tokens)
        same = float((expected == found).mean())
        assert same == 1, f"batch {batch}: {same:.1%} of the ids are equal; a tie in float32, or a fault"
        calls = {name: partial(generate, tokens) for name, generate in makers.items()}
        calls["products"] = partial(products(llm, params), tokens)
        medians = {n: protocol.quartiles(s) for n, s in protocol.abba(calls, _REPEATS.value, warmup=1).items()}
        theirs, mine = medians["hugging_face"]["median"], medians["ours"]["median"]
        produced = batch * _NEW.value
        rows.append(
            {
                "batch": batch,
                "hugging_face tokens/s": produced / theirs,
                "ours tokens/s": produced / mine,
                "ratio": theirs / mine,
                "products, of ours": medians["products"]["median"] / mine,
                "cache MiB": cache_bytes(llm, batch, _PROMPT.value + _NEW.value) / 2**20,
            }
        )
    title = f"greedy decoding, {_MODEL.value}, prompt {_PROMPT.value}, {_NEW.value} new tokens"
    protocol.report(title, rows, _OUT.value)


if __name__ == "__main__":
    app.run(main)
