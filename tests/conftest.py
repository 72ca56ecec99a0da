"""Shared by all tests: eight simulated devices, where the fixtures lie, one small model compiled once a session."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# The threads of XLA's pool; else as many as cores, and at least one a device. A device may wait in a collective of a
# loop and in another beside it at once: with eight threads all of them waited for devices that had none left, and XLA
# ended the process.
os.environ["NPROC"] = "32"
if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1" and jax.__version_info__ < (0, 11):
    # `make test` leaves out XLA's costly passes. This one takes a third of what is left; later versions always have it.
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}".strip()

from rlhfv_jax import cli  # noqa: E402
from rlhfv_jax.data import sources  # noqa: E402
from rlhfv_jax.data.tokenizer import MuffinTokenizer  # noqa: E402
from rlhfv_jax.models import muffin, vlm  # noqa: E402
from rlhfv_jax.models.beit3 import Beit3Config  # noqa: E402
from rlhfv_jax.models.llama import LlamaConfig  # noqa: E402

LONGEST = ("test_train.py", "test_miniature_pipeline.py")  # begun first, so that no worker waits for one at the end
SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders the files of tests."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def shared(relative: str) -> Path:
    """A file or folder beside the project; skips the test where it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"../shared/{relative} is not here")
    return path


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return shared("fixtures")


@pytest.fixture(scope="session")
def tokenizer() -> MuffinTokenizer:
    """The 512-piece tokenizer of the stories260K model."""
    return MuffinTokenizer.from_file(shared("data/stories260K/tok512.model"))


@pytest.fixture(scope="session")
def coco_records() -> list[sources.PreferenceRecord]:
    """130 foil pairs on real photos: a person's caption, and the same made wrong; no model's answer is corrected."""
    return sources.read(shared("data/coco_pairs/pairs.jsonl"))


@pytest.fixture(scope="session")
def programs(pytestconfig, tmp_path_factory) -> Path:
    """Where training programs that tests start keep what they compile, from one test run to the next (the slow tests
    use what the default run compiled); `pytest --cache-clear` empties it."""
    kept = getattr(pytestconfig, "cache", None)
    return kept.mkdir("programs") if kept else tmp_path_factory.mktemp("programs")


def environment(programs: Path, as_for_users: bool = False) -> dict[str, str]:
    """Of a program that a test starts on CPUs and that keeps what it compiles in `programs`.

    `as_for_users`: with XLA's costly passes, even where other tests leave them out.
    """
    kept = {"JAX_COMPILATION_CACHE_DIR": str(programs), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    passes = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""} if as_for_users else {}
    return os.environ | kept | passes | {"JAX_PLATFORMS": "cpu"}


SMALL_RUN = {  # changes to ddpo.py:mini, by dotted key
    "mesh.fsdp": 1,
    "optim.batch_size": 4,
    "optim.steps": 4,
    "model.llm.width": 32,
    "model.llm.ffn": 32,
    "model.tower.width": 16,
    "model.tower.ffn": 16,
    "model.tower.image_size": 32,
    "model.tower.queries": 4,
}


@pytest.fixture
def small_run(tmp_path, coco_records):
    """Builds the configuration of a small run on 24 pairs of real photos; takes changes by dotted key."""
    sources.write_parquet(coco_records[:24], tmp_path / "pairs.parquet")

    def build(changes: dict) -> dict:
        small = SMALL_RUN | {
            "tokenizer": str(shared("data/stories260K/tok512.model")),
            "data.path": str(tmp_path / "pairs.parquet"),
        }
        config = cli._load(f"{cli.config_folder() / 'ddpo.py'}:mini")
        config.update_from_flattened_dict(small | changes)
        return config.to_dict()

    return build


@pytest.fixture(scope="session")
def tiny_config() -> muffin.MuffinConfig:
    """A model small enough to compile in seconds, divisible by eight devices; vocabulary of 100, image token 97."""
    return muffin.MuffinConfig(
        tower=Beit3Config(32, 16, width=16, layers=2, heads=2, ffn=32, queries=4, query_positions=8, init_std=None),
        llm=LlamaConfig(100, width=32, layers=2, heads=4, kv_heads=2, ffn=64, init_std=None),
        image_token=97,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny_config: muffin.MuffinConfig) -> dict:
    model = vlm.Vlm(tiny_config)
    return jax.jit(lambda key: vlm.init(model, key))(jax.random.key(0))
