"""The evaluation transform of the released model, bit for bit."""

import io

import numpy as np
import pytest
from PIL import Image, features

from rlhfv_jax.data import images
from rlhfv_jax.errors import UserError

NAMES = ("img0_120x90_rgb", "img1_75x200_rgb", "img2_640x427_rgb", "img3_97x61_rgba")


@pytest.fixture(scope="module")
def golden(fixtures):
    return np.load(fixtures / "preprocess.npz")


def encoded(kind: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_pixels_at_64_equal_the_reference(fixtures, golden, name):
    pixels = images.decode((fixtures / f"images/{name}.png").read_bytes(), 64)
    np.testing.assert_array_equal(pixels, golden[f"{name}_to64_uint8_hwc"])
    normalised = (pixels.astype(np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(normalised.transpose(2, 0, 1), golden[f"{name}_to64"], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_pixels_at_448_equal_the_reference(fixtures, golden, name):
    pixels = images.decode((fixtures / f"images/{name}.png").read_bytes(), 448)
    whole, crop = f"{name}_to448_uint8_hwc", f"{name}_to448_uint8_crop_rows160_256_cols96_192"
    if whole in golden:
        np.testing.assert_array_equal(pixels, golden[whole])
    else:
        np.testing.assert_array_equal(pixels[160:256, 96:192], golden[crop])
    normalised = (pixels.astype(np.float32) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(normalised.mean((0, 1), np.float64), golden[f"{name}_to448_mean_per_channel"], atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_colour_mode_becomes_rgb(mode):
    stream = io.BytesIO()
    Image.new(mode, (20, 10)).save(stream, "TIFF")
    pixels = images.decode(stream.getvalue(), 16)
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_file_is_refused(kind):
    whole = encoded(kind)
    assert images.decode(whole, 16).shape == (16, 16, 3)
    for part in (0.1, 0.5, 0.9):
        with pytest.raises(UserError, match="not a readable image"):
            images.decode(whole[: int(len(whole) * part)], 16)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"<html>404</html>"])
def test_other_bytes_are_refused(data):
    with pytest.raises(UserError, match="not a readable image") as caught:
        images.decode(data, 16)
    assert "0x" not in str(caught.value)  # the same sentence every time, without the address of a Python object


def test_damaged_files_give_pixels_or_the_users_error():
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", *(["AVIF"] if features.check("avif") else [])):
        whole = np.frombuffer(encoded(kind), np.uint8)
        for _ in range(150):
            damaged = whole.copy()
            damaged[rng.integers(0, len(damaged), 4)] = rng.integers(0, 256, 4)
            damaged[rng.integers(0, min(200, len(damaged)), 2)] = rng.integers(0, 256, 2)
            try:
                assert images.decode(damaged.tobytes(), 8).shape == (8, 8, 3)
            except UserError as error:
                assert "not a readable image" in str(error)


def test_a_crop_shows_a_window_of_the_image_and_leaves_most_images_alone():
    # A ramp tells where the window lies: its first and last value, in pixels of the original.
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    cropped = [images.crop(ramp, np.random.default_rng(seed)) for seed in range(400)]
    changed = [one for one in cropped if not np.array_equal(one, ramp)]
    assert 0.2 < len(changed) / len(cropped) < 0.4
    widths = [int(one[0, -1, 0]) - int(one[0, 0, 0]) for one in changed]
    assert all(one.shape == ramp.shape and one.dtype == np.uint8 for one in changed)
    assert 157 <= min(widths) < 170 and 190 < max(widths) <= 199
    again = images.crop(ramp, np.random.default_rng(7))
    np.testing.assert_array_equal(again, cropped[7])
