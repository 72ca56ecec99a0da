"""Text files as users give them."""

from pathlib import Path

from rlhfv_jax.errors import UserError


def decoded(data: bytes, path: str | Path, encoding: str = "utf-8") -> str:
    """The text of a file's bytes. Raises UserError, naming the file, where they are no UTF-8."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}).") from error


def read_bytes(path: str | Path) -> bytes:
    """A file's bytes. Raises UserError, naming the file, where there is none or it cannot be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"The file {path} does not exist.") from error
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror or error}).") from error


def read(path: str | Path, encoding: str = "utf-8") -> str:
    """The text of a UTF-8 file, line ends as Python writes them; `utf-8-sig` drops a byte order mark.

    Raises UserError as the two above.
    """
    return decoded(read_bytes(path), path, encoding).replace("\r\n", "\n").replace("\r", "\n")
