"""Images by the hash of their bytes: the originals as they came, and clean copies for the browser."""

import hashlib
import io
import os
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from rlhfv_jax.data import images
from rlhfv_jax.errors import UserError

FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}
SHOWN_PIXELS = 2048  # longest side of what a browser gets
_SHA = re.compile(r"[0-9a-f]{64}")


class Picture(NamedTuple):
    """A stored image."""

    sha256: str
    mime: str
    width: int
    height: int


class Pictures:
    """The image folder of a project directory."""

    def __init__(self, folder: Path):
        self.originals = folder / "images"
        self.shown = folder / "images_shown"

    def check(self, data: bytes) -> Picture:
        """What an image is; raises UserError where it is none, of a kind that is not taken, or too large."""
        images.open_image(data)
        with Image.open(io.BytesIO(data)) as image:
            if image.format not in FORMATS:
                raise UserError(f"not a taken image format ({image.format}; taken are {', '.join(FORMATS)})")
            return Picture(hashlib.sha256(data).hexdigest(), FORMATS[image.format], image.width, image.height)

    def add(self, picture: Picture, data: bytes) -> None:
        """Stores the bytes under their hash."""
        path = self._path(self.originals, picture.sha256)
        if not path.exists():
            _write(path, data)

    def original(self, sha256: str) -> bytes:
        """The bytes as they came; raises UserError where the file is missing or damaged."""
        path = self._path(self.originals, sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"The image {path} cannot be read ({error.strerror}).") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise UserError(f"The image {path} is damaged: its content is not what its name says.")
        return data

    def copy(self, sha256: str) -> tuple[bytes, str]:
        """(bytes, MIME type) to show: turned as the camera says, without metadata, at most SHOWN_PIXELS long.

        Raises UserError for an unknown hash.
        """
        if not _SHA.fullmatch(sha256):
            raise UserError("Not the hash of an image.")
        path = self._path(self.shown, sha256)
        if not path.exists():
            _write(path, _clean(self.original(sha256)))
        data = path.read_bytes()
        return data, "image/jpeg" if data.startswith(b"\xff\xd8") else "image/png"

    @staticmethod
    def _path(folder: Path, sha256: str) -> Path:
        if not _SHA.fullmatch(sha256):
            raise UserError("Not the hash of an image.")
        return folder / sha256[:2] / sha256


def _clean(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        lossy = image.format == "JPEG"
        turned = ImageOps.exif_transpose(image).convert("RGB")
    turned.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    out = io.BytesIO()
    clean = Image.frombytes("RGB", turned.size, turned.tobytes())  # pixels alone: no profile, no comment
    clean.save(out, "JPEG", quality=92) if lossy else clean.save(out, "PNG")
    return out.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
