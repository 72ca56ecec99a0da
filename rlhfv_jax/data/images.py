"""The deterministic image transform: the released model's evaluation transform, for policy and reference alike."""

import io

import numpy as np
from PIL import Image

from rlhfv_jax.errors import UserError


def decode(data: bytes, size: int) -> np.ndarray:
    """Encoded bytes -> uint8[size, size, 3]: RGB (alpha dropped), bicubic resize without keeping the aspect ratio.

    No crop and no flip (paper, section 3.2). Raises UserError where the bytes are not a readable image.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"not a readable image ({str(error).splitlines()[0]})") from error
    return np.asarray(resized, np.uint8)
