"""The deterministic image transform, the released model's for evaluation, for policy and reference alike; and the
augmentation that the paper warns of, for its ablation."""

import io
from collections.abc import Callable

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


def crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Untrustworthy augmentation (paper, section 3.2): what the text names may end up outside, or elsewhere.

    On 30 % of the images, a random square window of 80 to 100 % of the side, back at full size; uint8[S, S, 3] twice.
    """
    if rng.random() >= CROP_SHARE:
        return image
    size = image.shape[0]
    side = int(rng.integers(int(np.ceil(CROP_SMALLEST * size)), size + 1))
    top, left = rng.integers(0, size - side + 1, 2).tolist()
    window = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(window.resize((size, size), Image.Resampling.BICUBIC))


CROP_SHARE, CROP_SMALLEST = 0.3, 0.8
Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
AUGMENTATIONS: dict[str, Augmentation | None] = {"none": None, "crop": crop}
