"""How much one request may ask for."""

from dataclasses import dataclass, fields

from rlhfv_jax.errors import UserError


@dataclass(frozen=True)
class Limits:
    """Everything that a stranger could make large.

    context: tokens of prompt and answer together, image tokens included.
    max_new_tokens: the most tokens of an answer, and how many a request gets that names no number.
    max_answers: the largest `n`.
    text_chars, messages: of a whole conversation.
    image_bytes, image_pixels: of its image, as it comes and decoded.
    requests: under way at once, those that wait included.
    body_seconds: in which a body has to arrive.
    """

    context: int = 2048
    max_new_tokens: int = 1024
    max_answers: int = 8
    text_chars: int = 65_536
    messages: int = 256
    image_bytes: int = 10 * 2**20
    image_pixels: int = 2**24  # 4096 x 4096
    requests: int = 128
    body_seconds: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) <= 0:
                raise UserError(f"{field.name}={value}: expected a number above 0.")
        if self.max_new_tokens >= self.context:
            raise UserError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for a prompt in context={self.context}; lower it."
            )

    @property
    def body_bytes(self) -> int:
        """What the largest conversation allowed takes as JSON: base64, and up to 12 bytes for an escaped character."""
        return 4 * -(-self.image_bytes // 3) + 12 * self.text_chars + 2**16
