"""Pictures: what is drawn where, and the files."""

import numpy as np
import pytest
from PIL import Image

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation import pictures
from smoothsa_jax.evaluation.pictures import animation, contact_sheet, match_colours, overlay


def clip(num_frames=5, height=24, width=32):
    rng = np.random.default_rng(0)
    video = rng.integers(0, 255, (num_frames, height, width, 3)).astype(np.uint8)
    true = np.zeros((num_frames, height, width), np.uint8)
    for t in range(num_frames):
        true[t, 2:10, 2 + t : 12 + t] = 1
        true[t, 12:20, 15 - t : 25 - t] = 2
    true[:, -2:] = 255
    return video, true


def test_colours_follow_the_labels_and_stay_through_time():
    _, true = clip()
    numbers = np.zeros(256, np.uint8)
    numbers[[0, 1, 2, 255]] = [3, 0, 1, 1]
    predicted = numbers[true]
    predicted[0, :, :3] = 2  # a slot that only the first frame has, and no segment is left for
    matched = match_colours(predicted, true)
    clear = (predicted != 2) & (true != 255)
    np.testing.assert_array_equal(matched[clear], true[clear])
    assert (matched[predicted == 2] == 3).all()


def test_colours_without_labels_or_prediction():
    _, true = clip()
    nothing = np.full_like(true, 255)
    assert (match_colours(true, nothing)[true == 1] != 0).all()  # not the background's colour
    np.testing.assert_array_equal(match_colours(nothing, true), nothing)


def test_overlay_tints_borders_and_leaves_the_rest():
    video, true = clip()
    video[:] = 100
    drawn = overlay(video, true, scale=2, strength=1.0)
    assert drawn.shape == (5, 48, 64, 3) and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[0, 10, 12], pictures.OBJECTS[0])
    np.testing.assert_array_equal(drawn[0, 30, 36], pictures.OBJECTS[1])
    np.testing.assert_array_equal(drawn[0, 0, 0], pictures.BACKGROUND)
    np.testing.assert_array_equal(drawn[0, 47, 0], [100] * 3)  # in no segment
    np.testing.assert_array_equal(drawn[0, 4, 12], [255] * 3)  # top border of the first object


@pytest.mark.parametrize("num_frames", [1, 3, 20])
def test_sheet_size(tmp_path, num_frames):
    video, true = clip(num_frames)
    path = tmp_path / "new" / "sheet.png"
    contact_sheet(video, true, true, path, max_frames=6, tile=96)
    with Image.open(path) as image:
        assert image.format == "PNG"
        tiles = min(num_frames, 6) * (96 + pictures.GAP)
        assert tiles < image.width < tiles + 150  # and the names of the rows
        assert image.height == 20 + 3 * (72 + pictures.GAP)
        # the last tile of the first row ends with the last frame's last pixel
        corner = image.getpixel((image.width - pictures.GAP - 1, 20 + 71))
        assert corner == tuple(video[-1, -1, -1])
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


def test_sheet_takes_several_predictions_and_is_reproducible(tmp_path):
    video, true = clip()
    for name in ("one", "two"):
        contact_sheet(video, true, {"ours": true, "theirs": 0 * true}, tmp_path / f"{name}.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert image.height == 20 + 4 * (96 + pictures.GAP)


def test_animation_plays_all_frames_in_a_loop(tmp_path):
    video, true = clip(7)
    animation(video, true, true, tmp_path / "clip.gif", tile=64)
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.format == "GIF" and image.n_frames == 7 and image.info["loop"] == 0
        assert image.info["duration"] == 170
        assert image.size == (3 * 64 + 2 * pictures.GAP, 20 + 48)
        first = np.asarray(image.convert("RGB"), int)
        image.seek(6)
        last = np.asarray(image.convert("RGB"), int)
    assert np.abs(first - last).max() > 50
    # the second tile is the truth in the colours of `overlay`, up to the GIF's 256 colours
    tile = overlay(video, true, scale=2)[6]
    shown = last[20:, 64 + pictures.GAP : 128 + pictures.GAP]
    assert np.abs(shown - tile).mean() < 12


def test_sizes_that_differ_are_refused_and_nothing_is_left(tmp_path):
    video, true = clip()
    with pytest.raises(UserError, match=r"\(4, 24, 32\).*\(5, 24, 32\)"):
        contact_sheet(video, true, true[:4], tmp_path / "a.png")
    with pytest.raises(UserError, match="labels"):
        animation(video, true[:, :8], true, tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())
