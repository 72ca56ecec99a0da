"""The deterministic image transform, the released model's for evaluation, for policy and reference alike; and the
augmentations that the paper warns of, for its ablation."""

import io
import re
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError

from rlhfv_jax.errors import UserError

# 8192 x 8192; a few kilobytes of PNG can claim more than a machine holds.
MAX_PIXELS = 2**26


def open_image(data: bytes, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Encoded bytes -> RGB picture (alpha dropped), of pillow's `formats` (None: whatever it reads).

    Raises UserError where they are no image, or one of more than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height}"
                raise UserError(f"not a readable image ({size} pixels, at most {max_pixels} are read)")
            return image.convert("RGB")
    except UserError:
        raise
    except Image.DecompressionBombError as error:  # pillow's own limit comes before any size is known
        raise UserError(f"not a readable image (too many pixels, at most {max_pixels} are read)") from error
    except UnidentifiedImageError as error:
        raise UserError("not a readable image (unknown format)") from error
    except Exception as error:  # a damaged file makes a decoder raise anything
        raise UserError(f"not a readable image ({type(error).__name__}: {error})") from error


def resize(picture: Image.Image, size: int) -> np.ndarray:
    """uint8[size, size, 3]: bicubic, without keeping the aspect ratio."""
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC), np.uint8)


def decode(data: bytes, size: int) -> np.ndarray:
    """Encoded bytes -> uint8[size, size, 3]; no crop and no flip (paper, section 3.2). Errors as `open_image`."""
    return resize(open_image(data), size)


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


def untrustworthy(picture: Image.Image, size: int, rng: np.random.Generator, may_flip: bool = True) -> np.ndarray:
    """The released script's training transform, which the paper's Table 3 shows to hurt: uint8[size, size, 3].

    A random window of 50 to 100 % of the area with an aspect ratio between 3/4 and 4/3, resized bilinearly (its timm
    version falls back to that); a mirror image half of the time, unless `may_flip` is false; RandAugment(2, 7).
    """
    left, top, width, height = _window(picture.width, picture.height, rng)
    box = (left, top, left + width, top + height)
    picture = picture.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5 and may_flip:
        picture = ImageOps.mirror(picture)
    for operation in rng.choice(len(RAND_AUGMENT), 2):
        if rng.random() < 0.5:
            picture = RAND_AUGMENT[operation](picture, rng)
    return np.asarray(picture, np.uint8)


def _window(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height): ten tries at a window that fits, then the largest central one of a fair shape."""
    low, high = RATIO
    for _ in range(10):
        area = rng.uniform(*SCALE) * width * height
        ratio = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h
    w = min(width, max(1, round(height * high)))
    h = min(height, max(1, round(width / low)))
    return (width - w) // 2, (height - h) // 2, w, h


def _signed(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() < 0.5 else value


def _affine(picture: Image.Image, a: float, b: float, c: float, d: float, e: float, f: float) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, (a, b, c, d, e, f), fillcolor=FILL)


# RandAugment at magnitude 7 of 10, each operation drawn done half of the time; shears and shifts (in pixels) move what
# the text describes.
SCALE, RATIO = (0.5, 1.0), (3 / 4, 4 / 3)
LEVEL = 0.7
FILL = (128, 128, 128)
RandOperation = Callable[[Image.Image, np.random.Generator], Image.Image]
RAND_AUGMENT: tuple[RandOperation, ...] = (
    lambda picture, rng: picture,
    lambda picture, rng: ImageOps.autocontrast(picture),
    lambda picture, rng: ImageOps.equalize(picture),
    lambda picture, rng: ImageEnhance.Brightness(picture).enhance(0.1 + 1.8 * LEVEL),
    lambda picture, rng: ImageEnhance.Sharpness(picture).enhance(0.1 + 1.8 * LEVEL),
    lambda picture, rng: picture.rotate(_signed(30 * LEVEL, rng), fillcolor=FILL),
    lambda picture, rng: _affine(picture, 1, _signed(0.3 * LEVEL, rng), 0, 0, 1, 0),
    lambda picture, rng: _affine(picture, 1, 0, 0, _signed(0.3 * LEVEL, rng), 1, 0),
    lambda picture, rng: _affine(picture, 1, 0, _signed(10 * LEVEL, rng), 0, 1, 0),
    lambda picture, rng: _affine(picture, 1, 0, 0, 0, 1, _signed(10 * LEVEL, rng)),
)

_SIDES = re.compile(r"\b(left|right)(?:most|hand|ward|wards)?\b", re.IGNORECASE)


def speaks_of_sides(*texts: str) -> bool:
    """Whether a text says left or right, so that a mirrored image would make it false."""
    return any(_SIDES.search(text) for text in texts)


def _cropped(picture: Image.Image, size: int, rng: np.random.Generator, may_flip: bool) -> np.ndarray:
    return crop(resize(picture, size), rng)


CROP_SHARE, CROP_SMALLEST = 0.3, 0.8
# (picture, size, rng, may_flip) -> uint8[size, size, 3]
Augmentation = Callable[[Image.Image, int, np.random.Generator, bool], np.ndarray]
AUGMENTATIONS: dict[str, Augmentation | None] = {"none": None, "crop": _cropped, "untrustworthy": untrustworthy}
