"""Serves a checkpoint as an OpenAI-compatible chat-completions interface: texts and images, streaming, batches.

    RLHFV_TOKEN=secret python -m rlhfv_jax.serve --checkpoint=runs/rlhfv --port=8000

    curl http://127.0.0.1:8000/v1/chat/completions -H 'Authorization: Bearer secret' \\
        -H 'Content-Type: application/json' -d '{"model": "rlhfv", "messages": [{"role": "user", "content": "Hello"}]}'

It prints its address when it answers. SIGTERM or Ctrl-C lets it finish what is under way, for --grace seconds, and exit
with status 0. docs/serve.md has the interface and its limits. Needs pip install 'rlhfv_jax[serve]'.
"""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from rlhfv_jax import cli, listening
from rlhfv_jax.data.chat import TEMPLATES
from rlhfv_jax.errors import UserError
from rlhfv_jax.serving.limits import Limits

if TYPE_CHECKING:
    from rlhfv_jax.serving.service import Service
    from rlhfv_jax.serving.worker import Worker

TOKEN = "RLHFV_TOKEN"
LOCAL = ("127.0.0.1", "::1", "localhost")

_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "A run, or a converted checkpoint.")
_MODEL = flags.DEFINE_string("model", "", "The model's name in the interface; default: the checkpoint's folder.")
_STYLE = flags.DEFINE_enum("prompt_style", None, sorted(TEMPLATES), "The template; default: the checkpoint's own.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of parameters and computation.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Answers decoded together, at most.")
_WINDOW = flags.DEFINE_float("window_ms", 20.0, "Milliseconds that a request waits for others to share a batch with.")
_FSDP = flags.DEFINE_integer("fsdp", 1, "Devices that share one copy of the parameters; rows go over the others.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "The address to listen on; any but this machine's own needs a token.")
_PORT = flags.DEFINE_integer("port", 8000, "The port to listen on; 0 for any free one.")
_TOKEN = flags.DEFINE_string("token", "", f"Clients must bring it. {TOKEN} in the environment keeps it from `ps`.")
_CONTEXT = flags.DEFINE_integer("context", Limits.context, "Tokens of prompt and answer together.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", Limits.max_new_tokens, "The most tokens of an answer.")
_IMAGE_BYTES = flags.DEFINE_integer("max_image_bytes", Limits.image_bytes, "Of an image as it comes.")
_IMAGE_PIXELS = flags.DEFINE_integer("max_image_pixels", Limits.image_pixels, "Of an image, width times height.")
_TEXT = flags.DEFINE_integer("max_text", Limits.text_chars, "Characters of a conversation.")
_REQUESTS = flags.DEFINE_integer("max_requests", Limits.requests, "Requests under way at once; more get status 429.")
_GRACE = flags.DEFINE_integer("grace", 25, "Seconds that requests under way have left when the server is stopped.")
_OPTIONS = (
    *(_CHECKPOINT, _MODEL, _STYLE, _DTYPE, _BATCH_SIZE, _WINDOW, _FSDP, _HOST, _PORT, _TOKEN, _CONTEXT),
    *(_MAX_NEW_TOKENS, _IMAGE_BYTES, _IMAGE_PIXELS, _TEXT, _REQUESTS, _GRACE),
)


def main() -> None:
    """Runs the program on `sys.argv` and exits."""
    cli.run(_main, __doc__ or "", _OPTIONS)


def _main() -> None:
    token = _TOKEN.value or os.environ.get(TOKEN, "")
    limits = _limits(token)
    from rlhfv_jax import checkpoint  # what is wrong with a command line needs no JAX

    folder = checkpoint.find(_CHECKPOINT.value)
    server = _library()
    with listening.bound(
        _HOST.value, _PORT.value
    ) as listener:  # first: a port that is taken should not cost the loading
        service, worker = _load(folder, limits, token)
        ready = f"{service.model}: {listening.address('http', _HOST.value, listener.getsockname()[1])}/v1"
        server.run(service, worker, listener, _GRACE.value, lambda: print(ready, flush=True))


def _load(folder: Path, limits: Limits, token: str) -> "tuple[Service, Worker]":
    from rlhfv_jax import sharding
    from rlhfv_jax.decoding.engine import Engine
    from rlhfv_jax.serving.service import Service
    from rlhfv_jax.serving.worker import Worker

    mesh = sharding.make_mesh(data=-1, fsdp=_FSDP.value)
    engine = Engine.load(folder, _DTYPE.value, mesh, _BATCH_SIZE.value)
    template = TEMPLATES[_STYLE.value] if _STYLE.value else engine.template
    name = _MODEL.value or Path(_CHECKPOINT.value).resolve().name
    return Service(engine, template, name, limits, token), Worker(engine, _WINDOW.value / 1000)


def _library() -> Any:
    try:
        return importlib.import_module("rlhfv_jax.serving.server")
    except ImportError as error:
        raise UserError("Serving needs starlette and uvicorn: pip install 'rlhfv_jax[serve]'.") from error


def _limits(token: str) -> Limits:
    if not _CHECKPOINT.value:
        raise UserError("Give the model to serve as --checkpoint=PATH.")
    if _BATCH_SIZE.value < 1 or _WINDOW.value < 0 or _GRACE.value < 0:
        raise UserError(
            f"--batch_size={_BATCH_SIZE.value}, --window_ms={_WINDOW.value:g} and --grace={_GRACE.value}: expected at "
            "least 1, 0 and 0."
        )
    if not token and _HOST.value not in LOCAL:
        raise UserError(
            f"--host={_HOST.value} lets other machines in, and there is no token; set {TOKEN} or give --token."
        )
    return Limits(
        context=_CONTEXT.value,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        text_chars=_TEXT.value,
        image_bytes=_IMAGE_BYTES.value,
        image_pixels=_IMAGE_PIXELS.value,
        requests=_REQUESTS.value,
    )


if __name__ == "__main__":
    main()
