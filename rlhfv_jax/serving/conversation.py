"""Messages of the chat interface as what a template takes: earlier turns, a question, an image."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhfv_jax.data import images
from rlhfv_jax.data.chat import IMAGE, Template, Turn
from rlhfv_jax.data.tokenizer import find_reserved
from rlhfv_jax.decoding import batch
from rlhfv_jax.decoding.batch import Prompt
from rlhfv_jax.decoding.engine import Engine
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import vlm
from rlhfv_jax.serving import fields
from rlhfv_jax.serving.limits import Limits
from rlhfv_jax.serving.refusal import bad

ROLES = ("user", "assistant")  # in turn, a question first and last
FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
TYPES = ("image/png", "image/jpeg", "image/jpg", "image/gif", "image/webp")
TOO_LONG = "context_length_exceeded"
# What clients send back of an assistant's message that they got; there is never anything in it.
_EMPTY = ("refusal", "tool_calls", "function_call", "audio", "annotations")


@dataclass(frozen=True)
class Conversation:
    """Turns of questions and answers, the last one without its answer; an encoded image belongs to question `shown`."""

    history: tuple[Turn, ...]
    question: str
    image: bytes | None
    shown: int


def read(messages: Any, limits: Limits) -> Conversation:
    """The conversation of a body's `messages`. Raises Refusal naming the message that is wrong."""
    if not isinstance(messages, list) or not messages:
        raise bad(f"messages is {fields.shown(messages)}; expected a list with at least one message.", "messages")
    if len(messages) > limits.messages:
        raise bad(f"There are {len(messages)} messages; at most {limits.messages} are taken.", "messages", TOO_LONG)
    texts: list[str] = []
    found: list[tuple[int, bytes]] = []
    for i, message in enumerate(messages):
        text, pictures = _message(message, i, limits)
        texts.append(text)
        found += [(i // 2, picture) for picture in pictures]
    if len(messages) % 2 == 0:
        raise bad("The last message is the assistant's; expected a user's, which is answered.", "messages")
    if (size := sum(map(len, texts))) > limits.text_chars:
        raise bad(f"The messages have {size} characters; at most {limits.text_chars} are read.", "messages", TOO_LONG)
    if len(found) > 1:
        raise bad(f"There are {len(found)} images; the model sees one a conversation.", "messages")
    shown, image = found[0] if found else (0, None)
    return Conversation(tuple(zip(texts[:-1:2], texts[1::2], strict=True)), texts[-1], image, shown)


def prompt(
    engine: Engine, template: Template, conversation: Conversation, limits: Limits, seed: int
) -> tuple[Prompt, int]:
    """What the engine continues, its image already as small as the model sees it, and its number of tokens.

    Everything that the engine would refuse is refused here, so that no request spoils a batch.
    """
    turns, picture = [*conversation.history, (conversation.question, "")], None
    if conversation.image is not None:
        if not isinstance(engine.config, vlm.MuffinConfig):
            raise bad("The model is a language model alone, without a vision tower; leave the image out.", "messages")
        try:
            opened = images.open_image(conversation.image, limits.image_pixels, FORMATS)
        except UserError as error:
            raise bad(f"The image is {error}.", "messages", "invalid_image") from error
        picture = batch.picture(opened, engine.config.tower.image_size)
        if conversation.shown > 0:  # a later turn's; the template alone would put it into the first
            question, answer = turns[conversation.shown]
            turns[conversation.shown] = (IMAGE + ("" if template.image_last else "\n") + question, answer)
    found = engine.prompt(turns[-1][0], picture, template, turns[:-1], seed)
    try:
        tokens = engine.tokenizer.encode(found.text)
        batch.check_tokens(tokens, engine.tokenizer.image_token, engine.network.queries, picture is not None)
    except UserError as error:
        raise bad(str(error), "messages") from error
    return found, len(tokens)


def _message(message: Any, i: int, limits: Limits) -> tuple[str, list[bytes]]:
    where, role = f"messages[{i}]", ROLES[i % 2]
    if not isinstance(message, dict):
        raise bad(f"{where} is {fields.shown(message)}; expected an object with role and content.", where)
    if message.get("role") in ("system", "developer"):
        raise bad(
            f"{where} is a {message['role']} message; the model was trained with one system prompt, which its template "
            "brings. Leave the message out, or write it into the first question.",
            f"{where}.role",
        )
    if message.get("role") != role:
        raise bad(
            f"{where}.role is {fields.shown(message.get('role'))}; expected {role}: users and assistants take turns.",
            f"{where}.role",
        )
    for name in sorted(message.keys() - {"role", "content", "name"}):
        if name not in _EMPTY or message[name]:
            raise bad(f"{where} has {fields.shown(name)}, which this server cannot use; leave it out.", where)
    text, pictures = _content(message.get("content"), f"{where}.content", limits)
    if not text.strip():
        raise bad(f"{where}.content has no text.", f"{where}.content")
    if pictures and role == "assistant":
        raise bad(f"{where}.content has an image; only users show images.", f"{where}.content")
    return text, pictures


def _content(content: Any, where: str, limits: Limits) -> tuple[str, list[bytes]]:
    """Text, and encoded images. Several text parts are lines."""
    if not isinstance(content, list):
        return _text(content, where), []
    texts, pictures = [], []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(_text(part.get("text"), f"{where}[{i}].text"))
        elif kind == "image_url":
            pictures.append(_image(part.get("image_url"), f"{where}[{i}].image_url", limits))
        else:
            raise bad(f"{where}[{i}] is {fields.shown(part)}; expected a part of type text or image_url.", where)
    return "\n".join(texts), pictures


def _text(value: Any, where: str) -> str:
    text = fields.text(value, where)
    if token := (IMAGE if IMAGE in text else find_reserved(text)):
        raise bad(f"{where} contains {token}, which is reserved for the template; spell it otherwise.", where)
    return text


def _image(value: Any, where: str, limits: Limits) -> bytes:
    if not isinstance(value, dict):
        raise bad(f"{where} is {fields.shown(value)}; expected an object with url.", where)
    url = fields.text(value.get("url"), f"{where}.url")
    head, comma, content = url.partition(",")
    scheme, _, kind = head.partition(":")
    if scheme.lower() != "data":
        raise bad(f"{where}.url is {fields.shown(url)}; addresses are not fetched: send a base64 data URL.", where)
    if not comma or kind.lower().removesuffix(";base64") not in TYPES or not kind.lower().endswith(";base64"):
        raise bad(f"{where}.url begins {fields.shown(head)}; expected data:TYPE;base64, with {_names(TYPES)}.", where)
    if len(content) > 4 * -(-limits.image_bytes // 3):
        raise bad(f"{where}.url holds more than {limits.image_bytes} bytes, the most an image may have.", where)
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad(f"{where}.url is not base64 ({error}).", where) from error


def _names(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
