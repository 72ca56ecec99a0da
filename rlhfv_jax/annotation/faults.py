"""What a request can do wrong; the HTTP interface turns each into a status and one JSON shape."""

from typing import Any


class Fault(Exception):
    """A refused request: `status`, a short code, a sentence, and the fields that are wrong as (path, sentence)."""

    status = 400
    code = "bad_request"

    def __init__(self, detail: str, fields: list[tuple[str, str]] | None = None, **extra: Any):
        super().__init__(detail)
        self.detail = detail
        self.fields = fields or []
        self.extra = extra

    def to_dict(self) -> dict[str, Any]:
        """The body of the reply."""
        fields = [{"path": path, "detail": detail} for path, detail in self.fields]
        return {"error": self.code, "detail": self.detail, "fields": fields} | self.extra


class Unauthorized(Fault):
    """Nobody is signed in."""

    status, code = 401, "unauthorized"


class Forbidden(Fault):
    """Somebody is, who may not do this."""

    status, code = 403, "forbidden"


class NotFound(Fault):
    """There is no such thing, or not for this person."""

    status, code = 404, "not_found"


class Conflict(Fault):
    """The server's copy is newer; it comes along as `rev` and `server_copy`."""

    status, code = 409, "conflict"


class TooLarge(Fault):
    """The body is larger than allowed."""

    status, code = 413, "too_large"


class Invalid(Fault):
    """Fields are missing or wrong."""

    status, code = 422, "invalid"


class Unconfirmed(Fault):
    """Allowed, but unusual; sent again with `confirm` it is accepted."""

    status, code = 422, "unconfirmed"


class TooMany(Fault):
    """Too many attempts in a short time."""

    status, code = 429, "too_many"
