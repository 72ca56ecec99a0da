"""What a server serves: a model under a name, how much of it one may ask for, and requests checked against both."""

import secrets
import time
from dataclasses import dataclass, field

from rlhfv_jax.data.chat import Template
from rlhfv_jax.decoding.batch import Prompt
from rlhfv_jax.decoding.engine import Engine
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.serving import conversation, fields, options
from rlhfv_jax.serving.limits import Limits
from rlhfv_jax.serving.refusal import Refusal, bad
from rlhfv_jax.serving.reply import Reply


@dataclass(frozen=True)
class Asked:
    """A request that the engine can answer, and how its reply is sent."""

    prompt: Prompt
    settings: GenerationSettings
    reply: Reply
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class Service:
    """`engine` belongs to the worker; here its tokenizer and sizes are read alone. `token`: empty for none."""

    engine: Engine
    template: Template
    model: str
    limits: Limits
    token: str = field(default="", repr=False)

    def read(self, body: bytes) -> Asked:
        """A request's body, checked from its bytes to the tokens of its prompt. Raises Refusal."""
        given = fields.body(body)
        if "model" not in given:
            raise bad("model is missing; GET /v1/models lists the one there is.", "model")
        self.check_model(fields.text(given["model"], "model"))
        end, most = self.template.end_of_turn.strip(), min(self.limits.max_answers, self.engine.batch_size)
        asked = options.read(given, self.limits, end, most)
        talk = conversation.read(given.get("messages"), self.limits)
        seed = secrets.randbits(32) if asked.seed is None else asked.seed
        prompt, tokens = conversation.prompt(self.engine, self.template, talk, self.limits, seed)
        room = self.limits.context - tokens
        wanted = min(self.limits.max_new_tokens, room) if asked.max_new_tokens is None else asked.max_new_tokens
        if not 0 < wanted <= room:
            raise bad(
                f"The messages are {tokens} tokens, which with max_tokens={max(wanted, 1)} is more than the context of "
                f"{self.limits.context}.",
                "messages",
                conversation.TOO_LONG,
            )
        reply = Reply(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), self.model, tokens)
        settings = asked.settings.replace(max_new_tokens=wanted)
        return Asked(prompt, settings, reply, asked.stream, asked.include_usage)

    def check_model(self, name: str) -> None:
        """Raises Refusal (404) for any model but the one there is."""
        if name != self.model:
            message = f"There is no model {fields.shown(name)} here; the one there is: {self.model}."
            raise Refusal(404, message, "model", "model_not_found")
