"""Answers of an OpenAI-compatible endpoint, in the form that our own have."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhfv_jax import endpoint
from rlhfv_jax.data import images
from rlhfv_jax.endpoint import Endpoint, Failure, Reply, Request
from rlhfv_jax.errors import UserError
from rlhfv_jax.generation.questions import Question
from rlhfv_jax.generation.sink import Sink, seed_of


def ask(
    where: Endpoint, body: Mapping[str, Any], questions: Sequence[Question], sink: Sink, seed: int | None = None
) -> None:
    """Asks with `body` in every request; with a `seed`, also with each question's own. Raises as `endpoint.ask`."""
    by_id = {str(question.id): question for question in questions}

    def requests() -> Iterator[Request]:
        for question in questions:
            try:
                yield _request(question, body, seed)
            except UserError as error:
                sink.failed(question, where.model, str(error))

    def done(request: Request, result: Reply | Failure) -> None:
        question = by_id[request.id]
        if isinstance(result, Failure):
            return sink.failed(question, where.model, result.reason)
        choices = [{"text": text, "finish_reason": result.finish_reason} for text in result.texts]
        sink.answered(question, result.model, choices, int(result.usage.get("completion_tokens") or 0))

    endpoint.ask(where, requests(), done)


def _request(question: Question, body: Mapping[str, Any], seed: int | None) -> Request:
    data = question.image_bytes()
    if data is not None:
        images.open_image(data)  # a broken image is found here, whatever a server would make of it
    message = endpoint.user_message(question.text, [] if data is None else [data])
    own = {} if seed is None else {"seed": seed_of(seed, question)}
    return Request(str(question.id), (message,), {**body, **own})
