"""The deterministic image transform: the released model's evaluation transform, for policy and reference alike."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from rlhfv_jax.errors import UserError


def decode(data: bytes, size: int) -> np.ndarray:
    """Encoded bytes -> uint8[size, size, 3]: RGB (alpha dropped), bicubic resize without keeping the aspect ratio.

    No crop and no flip (paper, section 3.2). Raises UserError where the bytes are not a readable image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except UnidentifiedImageError as error:
        raise UserError("not a readable image (unknown format)") from error
    except Exception as error:  # a damaged file makes a decoder raise anything
        raise UserError(f"not a readable image ({type(error).__name__}: {error})") from error
    return np.asarray(resized, np.uint8)
