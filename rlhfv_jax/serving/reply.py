"""Answers in the form of OpenAI's chat completions: whole, or as the chunks of a stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhfv_jax.decoding.batch import Answer


@dataclass(frozen=True)
class Reply:
    """What all objects of one reply have in common; `created` is in seconds since 1970."""

    id: str
    created: int
    model: str
    prompt_tokens: int

    def completion(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The reply of a request without `stream`."""
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "finish_reason": answer.finish_reason,
                "logprobs": None,
            }
            for i, answer in enumerate(answers)
        ]
        return self._object("chat.completion", choices) | {"usage": self._usage(answers)}

    def chunk(self, choice: int, delta: dict[str, str], answer: Answer | None = None) -> dict[str, Any]:
        """A piece of a choice; the `answer` where it ends with this."""
        reason = None if answer is None else answer.finish_reason
        choices = [{"index": choice, "delta": delta, "finish_reason": reason, "logprobs": None}]
        return self._object("chat.completion.chunk", choices)

    def usage_chunk(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The last chunk, of a request that asks for it."""
        return self._object("chat.completion.chunk", []) | {"usage": self._usage(answers)}

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _usage(self, answers: Sequence[Answer]) -> dict[str, int]:
        generated = sum(len(answer.token_ids) for answer in answers)
        total = self.prompt_tokens + generated
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": generated, "total_tokens": total}
