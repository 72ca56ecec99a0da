import numpy as np
import pytest

from rlhfv_jax.miniature import world
from rlhfv_jax.miniature.world import Group, Scene


def scenes(count, seed=0):
    rng = np.random.default_rng(seed)
    return [world.sample_scene(rng) for _ in range(count)]


def nearest_color(pixel):
    """The palette word whose direction in RGB is nearest: light scales a color but does not turn it."""
    unit = pixel / np.linalg.norm(pixel)
    return max(
        world.COLORS, key=lambda word: unit @ (np.array(world.COLORS[word]) / np.linalg.norm(world.COLORS[word]))
    )


def cells_from_pixels(scene):
    """Find (cell, number, color) by what differs from the same place photographed empty under the same light."""
    image = world.draw(scene, noise_sigma=0.0).astype(float)
    empty = world.draw(Scene(scene.kind, (), scene.seed), noise_sigma=0.0).astype(float)
    found = set()
    for cell in range(16):
        top, left = 16 * (cell // 4), 16 * (cell % 4)
        changed = np.abs(image - empty).max(-1)[top : top + 16, left : left + 16] > 0
        if not changed.any():
            continue
        number = sum(changed[y : y + 8, x : x + 8].any() for y in (0, 8) for x in (0, 8))
        pixels = image[top : top + 16, left : left + 16][changed]
        colors = {nearest_color(pixel) for pixel in np.unique(pixels, axis=0)}
        assert len(colors) == 1
        found.add((cell, int(number), colors.pop()))
    return found


def test_drawing_is_a_pure_function_of_the_scene():
    for scene in scenes(5):
        first = world.draw(scene)
        np.random.default_rng(1).random(100)
        again = world.draw(Scene(scene.kind, tuple(Group(**vars(group)) for group in scene.groups), scene.seed))
        assert first.shape == (64, 64, 3) and first.dtype == np.uint8
        np.testing.assert_array_equal(first, again)
        assert (first != world.draw(Scene(scene.kind, scene.groups, scene.seed + 1))).mean() > 0.5


def test_the_same_rng_state_gives_the_same_scenes():
    assert scenes(20, seed=3) == scenes(20, seed=3) != scenes(20, seed=4)


def test_the_drawn_pixels_hold_exactly_the_groups_of_the_ground_truth():
    for scene in scenes(60):
        assert cells_from_pixels(scene) == {(group.cell, group.number, group.color) for group in scene.groups}


def test_position_words_name_the_quadrant_of_the_drawn_pixels():
    for cell in range(16):
        group = Group("car", 1, "red", cell)
        image = world.draw(Scene("street", (group,), 0), 0.0).astype(int)
        empty = world.draw(Scene("street", (), 0), 0.0).astype(int)
        rows, columns = np.nonzero((image != empty).any(-1))
        vertical = "top" if rows.max() < 32 else "bottom"
        horizontal = "left" if columns.max() < 32 else "right"
        assert group.position == f"{vertical}-{horizontal}"
        assert (rows.min() >= 32) == (vertical == "bottom") and (columns.min() >= 32) == (horizontal == "right")


def test_every_class_has_its_own_mirror_symmetric_shape():
    shapes = {}
    for name in world.CLASSES:
        images = [world.draw(Scene("street", groups, 0), 0.0) for groups in ((Group(name, 1, "red", 0),), ())]
        changed = (images[0] != images[1]).any(-1)
        top, left = (8 * (int(where.min()) // 8) for where in np.nonzero(changed))  # its slot in the cell
        glyph = changed[top : top + 7, left : left + 7]
        np.testing.assert_array_equal(glyph, glyph[:, ::-1])
        shapes[name] = glyph
    names = list(shapes)
    distances = [(shapes[a] != shapes[b]).sum() for i, a in enumerate(names) for b in names[:i]]
    assert min(distances) >= 21


def test_scenes_follow_the_stated_statistics():
    sample = scenes(6000)
    sizes = np.array([len(scene.groups) for scene in sample])
    assert set(sizes) == {5, 6, 7}
    assert sizes.mean() == pytest.approx(5.82, abs=0.05)
    core = np.mean([[name in scene.by_name for name in world.CORE_OBJECTS[scene.kind]] for scene in sample])
    others = np.mean([len(set(s.by_name) - set(world.CORE_OBJECTS[s.kind])) / 12 for s in sample])
    # A little over the shares of the draw, 0.7 and 0.1: scenes with fewer than five groups are drawn again.
    assert core == pytest.approx(0.756, abs=0.02) and others == pytest.approx(0.107, abs=0.01)
    groups = [group for scene in sample for group in scene.groups]
    typical = [world.TYPICAL[group.name] for group in groups]
    same = np.array(
        [
            (g.number == t.number, g.color == t.color, g.position == t.position)
            for g, t in zip(groups, typical, strict=True)
        ]
    )
    np.testing.assert_allclose(same.mean(0), (0.55, 0.4, 0.4), atol=0.015)
    assert min(np.mean([scene.kind == kind for scene in sample]) for kind in world.KINDS) > 0.23


def test_pixel_noise_has_the_stated_strength():
    scene = Scene("bathroom", (), 7)
    residue = world.draw(scene).astype(float) - world.draw(scene, noise_sigma=0.0)
    assert residue.std() == pytest.approx(18.0, abs=0.5)


def test_cell_labels_tell_apart_every_class_color_and_number():
    seen = set()
    for name in world.CLASSES:
        for color in world.COLORS:
            for number in (1, 2, 3):
                labels = world.cell_labels(Scene("street", (Group(name, number, color, 5),), 0))
                assert labels.dtype == np.int32 and np.flatnonzero(labels).tolist() == [5]
                seen.add(int(labels[5]))
    assert seen == set(range(1, world.NUM_CELL_LABELS))


def test_a_png_holds_the_same_pixels():
    import io

    from PIL import Image

    image = world.draw(scenes(1)[0])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(world.png_bytes(image)))), image)


def test_a_scene_refuses_what_words_could_not_tell_apart():
    with pytest.raises(ValueError, match="one class"):
        Scene("street", (Group("car", 1, "red", 0), Group("car", 1, "blue", 1)), 0)
    with pytest.raises(ValueError, match="one cell"):
        Scene("street", (Group("car", 1, "red", 0), Group("bus", 1, "blue", 0)), 0)
