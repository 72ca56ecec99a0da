"""The evaluation transform of the released model, bit for bit."""

import io
import struct
import zlib

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


# The released training transform.


def ramps() -> Image.Image:
    """300 x 200 pixels; red grows to the right, green downwards, so a pixel tells where it comes from."""
    x, y = np.meshgrid(np.linspace(0, 255, 300), np.linspace(0, 255, 200))
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8))


def plain_views(monkeypatch, may_flip: bool, number: int = 300) -> list[np.ndarray]:
    """Crops and mirror images without RandAugment."""
    monkeypatch.setattr(images, "RAND_AUGMENT", (lambda picture, rng: picture,))
    rngs = (np.random.default_rng(seed) for seed in range(number))
    return [images.untrustworthy(ramps(), 64, rng, may_flip) for rng in rngs]


def test_windows_have_the_released_area_and_shape(monkeypatch):
    areas, ratios = [], []
    for view in plain_views(monkeypatch, may_flip=False):
        width = (int(view[32, -1, 0]) - int(view[32, 0, 0])) / 255 * 300 * 64 / 63
        height = (int(view[-1, 32, 1]) - int(view[0, 32, 1])) / 255 * 200 * 64 / 63
        areas.append(width * height / (300 * 200))
        ratios.append(width / height)
    assert 0.47 < min(areas) < 0.55 and 0.8 < max(areas) < 1.03
    assert 0.72 < min(ratios) < 0.8 and 1.28 < max(ratios) < 1.37


def test_a_picture_too_long_for_any_window_gives_its_middle():
    picture = ramps().resize((900, 30))
    left, top, width, height = images._window(picture.width, picture.height, np.random.default_rng(0))
    assert (top, width, height) == (0, 40, 30) and left == 430


def test_half_of_the_views_are_mirrored_and_none_that_may_not(monkeypatch):
    mirrored = [view[32, 0, 0] > view[32, -1, 0] for view in plain_views(monkeypatch, may_flip=True)]
    assert 0.4 < np.mean(mirrored) < 0.6
    assert not any(view[32, 0, 0] > view[32, -1, 0] for view in plain_views(monkeypatch, may_flip=False))


def test_refusing_to_mirror_changes_nothing_else(monkeypatch):
    free, held = (plain_views(monkeypatch, may_flip, 60) for may_flip in (True, False))
    for one, other in zip(free, held, strict=True):
        assert np.array_equal(one, other) or np.array_equal(one, other[:, ::-1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cup is to the left of the plate.", True),
        ("On the RIGHT, a man.", True),
        ("The leftmost chair, the right-hand side.", True),
        ("He wrights in bright light.", False),
        ("He left-handedly cleft it.", True),
        ("A dog in the middle.", False),
    ],
)
def test_sides_are_found_in_words(text, expected):
    assert images.speaks_of_sides("A plain text.", text) is expected


def test_every_operation_of_randaugment_keeps_the_size_and_does_something():
    picture = ramps().resize((64, 64))
    changed = []
    for operation in images.RAND_AUGMENT:
        result = operation(picture, np.random.default_rng(0))
        assert result.size == (64, 64) and result.mode == "RGB"
        changed.append(not np.array_equal(np.asarray(result), np.asarray(picture)))
    assert changed.count(False) <= 2, "the identity, and stretching what already spans the whole range"


def test_shears_shifts_and_rotations_go_both_ways():
    picture = ramps().resize((64, 64))
    for operation in images.RAND_AUGMENT[5:]:
        found = {np.asarray(operation(picture, np.random.default_rng(seed))).tobytes() for seed in range(20)}
        assert len(found) == 2


def test_a_view_is_a_function_of_its_seed():
    views = [images.untrustworthy(ramps(), 32, np.random.default_rng(seed)) for seed in (3, 3, 4)]
    assert np.array_equal(views[0], views[1]) and not np.array_equal(views[0], views[2])


# Huge images.


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims the given size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("size", "words"), [(8200, "8200 x 8200 pixels, at most 67108864"), (60_000, "too many pixels")]
)
def test_a_file_that_claims_a_huge_image_is_refused_before_it_is_decoded(size, words):
    with pytest.raises(UserError, match=words):
        images.decode(claiming(size, size), 16)
