"""Small copies of the questions' images, within a size limit."""

import base64
import hashlib
import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageOps

from rlhfv_jax.data.images import open_image
from rlhfv_jax.errors import UserError
from rlhfv_jax.generation.questions import Question

SIDES = (480, 384, 320, 256, 192, 128, 96)  # longest sides in pixels, the largest that fits is taken


class Thumbnails(NamedTuple):
    """Data URLs, each once; `of` has a place among them for every question, None where it has no readable image."""

    urls: list[str]
    of: list[int | None]
    side: int
    size: int  # bytes of all URLs
    broken: list[str]  # what is wrong with the images that cannot be shown


def thumbnail(data: bytes, side: int) -> bytes:
    """A JPEG of at most `side` pixels, turned as the camera says, without metadata; raises UserError for no image."""
    open_image(data)
    with Image.open(io.BytesIO(data)) as image:
        turned = ImageOps.exif_transpose(image).convert("RGB")
    turned.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _jpeg(turned)


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    Image.frombytes("RGB", picture.size, picture.tobytes()).save(out, "JPEG", quality=82, optimize=True)
    return out.getvalue()


def embed(questions: Sequence[Question], limit: int) -> Thumbnails:
    """Thumbnails of every question's image, together at most `limit` bytes as they stand on the page.

    Raises UserError where even the smallest do not fit.
    """
    places: dict[str, int] = {}
    small: list[bytes] = []
    of: list[int | None] = []
    broken = []
    for question in questions:
        try:
            data = question.image_bytes()
            if data is None:
                of.append(None)
                continue
            key = hashlib.sha256(data).hexdigest()
            if key not in places:
                small.append(thumbnail(data, SIDES[0]))
                places[key] = len(small) - 1
            of.append(places[key])
        except UserError as error:
            broken.append(f"question {question.id}: {error}")
            of.append(None)
    for side in SIDES:
        if side != SIDES[0]:
            small = [_shrunk(one, side) for one in small]
        urls = ["data:image/jpeg;base64," + base64.b64encode(one).decode() for one in small]
        if (size := sum(map(len, urls))) <= limit:
            return Thumbnails(urls, of, side, size, broken)
    raise UserError(
        f"The {len(small)} images take {size} bytes at {SIDES[-1]} pixels; at most {limit} may be on the page. "
        "Raise --image_mb, or compare fewer questions."
    )


def _shrunk(data: bytes, side: int) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return _jpeg(image)
