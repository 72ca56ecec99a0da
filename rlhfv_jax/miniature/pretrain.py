"""How the miniature's base model comes about: vision warm-up, supervised fine-tuning, a clean-VQA tuning stage.

Each stage is a run like any other (`experiment.fit`): a folder with metrics and checkpoints, continued if it was
stopped and left alone if it is done.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhfv_jax import checkpoint, experiment, losses, prepare, settings, steps
from rlhfv_jax.data.chat import WORDS as TEMPLATE
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.miniature import corpus, world
from rlhfv_jax.models import vlm
from rlhfv_jax.models.beit3 import Beit3
from rlhfv_jax.models.layers import Linear


@dataclass(frozen=True)
class Pretraining:
    """What the stages before alignment share: `model`, `mesh`, `tokenizer`, `seed`, and steps between checkpoints."""

    model: vlm.Vlm
    mesh: Mesh
    tokenizer: MuffinTokenizer
    seed: int
    save_every: int

    def warm_up_tower(self, folder: Path, o: settings.Optim) -> Any:
        """Trains the tower and a linear probe to name what each cell shows; returns the tower's parameters.

        Query k starts as the position of patch k, so query outputs and cells correspond from the first step.
        """
        config = self.model.config.tower
        tower = Beit3(config, self.model.dtype)
        probe = Linear([config.width], [world.NUM_CELL_LABELS], use_bias=True)

        @jax.jit
        def init() -> Any:
            tower_key, probe_key = jax.random.split(jax.random.key(self.seed))
            image = jnp.zeros((1, config.image_size, config.image_size, 3))
            params = {"tower": tower.init(tower_key, image)["params"]}
            first_patch = 3  # two unused rows and the class token come before it
            params["tower"]["query"] = params["tower"]["positions"]["A"][first_patch : first_patch + config.queries]
            params["probe"] = probe.init(probe_key, jnp.zeros((1, config.width)))["params"]
            return params

        def loss_fn(params: Any, batch: corpus.VisionBatch) -> tuple[jax.Array, losses.Metrics]:
            outputs = tower.apply({"params": params["tower"]}, vlm.normalize(batch.image, self.model.config))
            logits: Any = probe.apply({"params": params["probe"]}, outputs)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch.labels[..., None], axis=-1)
            filled = batch.labels > 0
            right = (jnp.argmax(logits, axis=-1) == batch.labels) & filled
            return -picked.mean(), {"loss": -picked.mean(), "accuracy": right.sum() / jnp.maximum(filled.sum(), 1)}

        source = corpus.VisionSource(self.seed, o.steps * o.batch_size)
        return self._stage(folder, o, jax.eval_shape(init), init, loss_fn, source)["tower"]

    def fine_tune(
        self, folder: Path, o: settings.Optim, init: Callable[[], Any], source: corpus.TextSource, augment: str = "none"
    ) -> Any:
        """Supervised fine-tuning on a text source, from `init()`; the base model's stage and the clean-VQA stage."""
        abstract = vlm.abstract_params(self.model.config)
        return self._stage(folder, o, abstract, init, steps.sft_loss(self.model), source, augment)

    def fresh_with_tower(self, tower: Any) -> Any:
        """Random parameters with a trained tower in place of the random one."""
        params = jax.jit(lambda key: vlm.init(self.model, key))(jax.random.key(self.seed))
        return params | {"tower": tower}

    def _stage(
        self,
        folder: Path,
        o: settings.Optim,
        abstract: Any,  # shapes of the parameters
        init: Callable[[], Any],
        loss_fn: steps.LossFn,
        source: Any,
        augment: str = "none",
    ) -> Any:
        """Runs or continues one stage in `folder` and returns its final parameters."""
        folder.mkdir(parents=True, exist_ok=True)
        updater = experiment.make_updater(o, abstract, o.steps)
        start = checkpoint.find(folder) if checkpoint.exists(folder) else None
        state = experiment.initial_state(updater, abstract, init, start, self.mesh)
        return experiment.fit(
            updater,
            loss_fn,
            state,
            source,
            self.mesh,
            folder,
            prepare.checkpoint_meta(self.model, self.tokenizer, TEMPLATE.name),
            total_steps=o.steps,
            batch_size=o.batch_size,
            seed=self.seed,
            augment=augment,
            log_every=20,
            save_every=self.save_every,
        ).params
