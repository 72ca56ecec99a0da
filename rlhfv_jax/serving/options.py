"""Everything in a request's body but its messages: how to decode, and how to reply."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhfv_jax.decoding import stops
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.serving import fields
from rlhfv_jax.serving.limits import Limits
from rlhfv_jax.serving.refusal import bad

COOLEST = 0.01  # a lower temperature than this that is not 0 would divide logits into infinities
MOST_STOPS = 4  # as OpenAI's
# Options of the interface that do not exist here, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **{"frequency_penalty": (0, 0.0), "presence_penalty": (0, 0.0), "logit_bias": ({},)},
    **{"logprobs": (False,), "top_logprobs": (0,), "response_format": ({"type": "text"},), "modalities": (["text"],)},
    **{"tools": ([],), "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False)},
    **{"functions": ([],), "function_call": ("none", "auto"), "audio": (), "prediction": (), "web_search_options": ()},
    **{"service_tier": ("auto", "default"), "store": (False,), "reasoning_effort": ("none",), "verbosity": ()},
}
IGNORED = ("user", "safety_identifier", "prompt_cache_key")  # who asks changes no answer
KNOWN = {
    *("model", "messages", "stream", "stream_options", "temperature", "top_p", "top_k", "repetition_penalty"),
    *("max_tokens", "max_completion_tokens", "stop", "seed", "n", "metadata", *IGNORED, *NEUTRAL),
}


@dataclass(frozen=True)
class Options:
    """settings: with the largest `max_new_tokens` there may be, and without a seed, which is the prompt's own.

    max_new_tokens, seed: None where the request names none.
    """

    settings: GenerationSettings
    max_new_tokens: int | None
    seed: int | None
    stream: bool
    include_usage: bool


def read(body: Mapping[str, Any], limits: Limits, end_of_turn: str, most_answers: int) -> Options:
    """Raises Refusal for an option that is unknown, is not to be had here, or has a value it cannot have.

    `null` is the same as leaving an option out. `end_of_turn` always ends an answer.
    """
    for name in sorted(body.keys() - KNOWN):
        raise bad(f"The option {fields.shown(name)} is not known.", fields.shown(name).strip("'"), "unknown_parameter")
    given = {name: value for name, value in body.items() if value is not None}
    _check_neutral(given)
    temperature = fields.number(given.get("temperature", 1), "temperature", 0, 2)
    if 0 < temperature < COOLEST:
        raise bad(f"temperature is {temperature}; expected 0 (greedy) or {COOLEST} to 2.", "temperature")
    answers = fields.whole(given.get("n", 1), "n", 1, most_answers)
    if temperature == 0 and answers > 1:
        raise bad(f"n is {answers} and temperature is 0: all answers would be the same. Give a temperature.", "n")
    top_p = fields.number(given.get("top_p", 1), "top_p", 0, 1)
    if top_p == 0:
        raise bad("top_p is 0; expected above 0, or temperature=0 for the most probable token.", "top_p")
    settings = GenerationSettings(
        max_new_tokens=limits.max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=max(0, fields.whole(given.get("top_k", 0), "top_k", -1, 2**31 - 1)),
        repetition_penalty=fields.number(given.get("repetition_penalty", 1), "repetition_penalty", 0.1, 10),
        stop=(end_of_turn, *_stops(given.get("stop", []), end_of_turn)),
        num_answers=answers,
    )
    seed = fields.whole(given["seed"], "seed", 0, 2**32 - 1) if "seed" in given else None
    stream = fields.flag(given.get("stream", False), "stream")
    return Options(settings, _max_new_tokens(given, limits), seed, stream, _include_usage(given, stream))


def _check_neutral(given: Mapping[str, Any]) -> None:
    for name, neutral in NEUTRAL.items():
        value = given.get(name)
        if value is not None and not any(type(value) is type(other) and value == other for other in neutral):
            raise bad(f"{name} is {fields.shown(value)}, which this server cannot do; leave it out.", name)
    for name in IGNORED:
        fields.text(given.get(name, ""), name)
    if not isinstance(given.get("metadata", {}), dict):
        raise bad(f"metadata is {fields.shown(given['metadata'])}; expected an object.", "metadata")


def _max_new_tokens(given: Mapping[str, Any], limits: Limits) -> int | None:
    names = [name for name in ("max_completion_tokens", "max_tokens") if name in given]
    values = {fields.whole(given[name], name, 1, limits.max_new_tokens) for name in names}
    if len(values) > 1:
        raise bad("max_tokens and max_completion_tokens differ; give one of them.", "max_tokens")
    return values.pop() if values else None


def _stops(value: Any, end_of_turn: str) -> tuple[str, ...]:
    """The strings in a fixed order and each once, so that equal requests find each other."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or len(values) > MOST_STOPS:
        raise bad(f"stop is {fields.shown(value)}; expected a string or up to {MOST_STOPS} of them.", "stop")
    for stop in values:
        if not 0 < len(fields.text(stop, "stop").encode()) <= stops.LONGEST:
            raise bad(f"stop has the string {fields.shown(stop)}; expected 1 to {stops.LONGEST} bytes.", "stop")
    return tuple(sorted(set(values) - {end_of_turn}))


def _include_usage(given: Mapping[str, Any], stream: bool) -> bool:
    if "stream_options" not in given:
        return False
    options = given["stream_options"]
    if not stream or not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise bad("stream_options goes with stream=true and holds include_usage alone.", "stream_options")
    return fields.flag(options.get("include_usage", False), "stream_options.include_usage")
