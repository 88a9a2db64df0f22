"""Videos side by side: each as `Segmenter.stream` finds it alone, whatever runs beside it."""

import numpy as np
import pytest
from tiny import tiny_config

from smoothsa_jax.bulk.reading import Bad, Clip, Long
from smoothsa_jax.bulk.rows import Rows
from smoothsa_jax.bulk.segmenting import Worker, shipped
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.inference.segmenter import Segmenter
from smoothsa_jax.inference.side_by_side import SideBySide
from smoothsa_jax.models.build import build_slot_model
from smoothsa_jax.models.parameters import split

LENGTHS = (3, 5, 1, 2)
OPTIONS = {"num_slots": 3, "seed": 2}


def model_of(config):
    size = (config.data.image_size,) * 2
    _, params, frozen = split(build_slot_model(config.model, size, config.seed))
    return Segmenter(config, {**params, **frozen})


@pytest.fixture(scope="module")
def model():
    return model_of(tiny_config(3, initializer="gaussian", decoder="mlp_mixture"))


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8) for n in LENGTHS]


def side_by_side(step, places, clips):
    """Run clips in places, each of which takes the next one when it is free."""
    waiting, found = list(range(len(clips))), [[] for _ in clips]
    running = [None] * places
    while True:
        frames, begins = np.zeros((places, 16, 16, 3), np.uint8), np.zeros(places, bool)
        for place in range(places):
            if running[place] is None and waiting:
                running[place], begins[place] = [waiting.pop(0), 0], True
            if running[place] is not None:
                frames[place] = clips[running[place][0]][running[place][1]]
        if not any(running):
            return found
        outcome = step(frames, begins)
        for place, at in enumerate(running):
            if at is not None:
                found[at[0]].append([x[place] for x in outcome])
                running[place] = [at[0], at[1] + 1] if at[1] + 1 < len(clips[at[0]]) else None


def slow(**options):
    return pytest.param(options, marks=pytest.mark.slow, id=next(iter(options)))


@pytest.mark.more
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(OPTIONS, id="num_slots"),
        slow(shot_cuts=0.9),
        slow(prune=0.5),
        slow(requery=0.2),
    ],
)
def test_each_video_is_that_of_stream(options, model, clips):
    """Slots within 1e-4; of the pixels, at most one in a hundred is another slot's."""
    pruning = {name: x for name, x in options.items() if name == "prune"}
    others = {name: x for name, x in options.items() if name != "prune"}
    step = SideBySide(model, 2, pruning=pruning, **others)
    for clip, mine in zip(clips, side_by_side(step, 2, clips), strict=True):
        for frame, (slots, masks, used, cold) in zip(
            model.stream(clip, **options), mine, strict=True
        ):
            np.testing.assert_allclose(slots, frame.slots, atol=1e-4)
            np.testing.assert_array_equal(used, frame.slot_mask)
            assert cold == frame.cold
            segments = np.asarray(segments_from_masks(masks, (16, 16), used))
            assert (segments != frame.masks).mean() < 0.01


def test_a_model_of_images_segments_each_frame_alone(clips):
    model = model_of(tiny_config(1, initializer="gaussian", decoder="mlp_mixture"))
    assert not model.follows
    pictures = clips[0]
    found = SideBySide(model, 4)(np.concatenate([pictures, pictures[:1]]), np.ones(4, bool))
    for index, picture in enumerate(pictures):
        np.testing.assert_allclose(found.slots[index], model.segment(picture).slots, atol=1e-4)
    np.testing.assert_array_equal(found.slots[3], found.slots[0])


@pytest.mark.more
def test_a_part_is_segmented_in_few_places(model, clips, tmp_path):
    """Also a video that is too long to hold, and after an unreadable file."""
    from PIL import Image

    from smoothsa_jax.bulk.corpus import Item

    files = [str(tmp_path / f"{t}.png") for t in range(len(clips[1]))]
    for file, frame in zip(files, clips[1], strict=True):
        Image.fromarray(frame).save(file)
    entries = [
        Bad("bad", "broken"),
        *(Clip(str(n), x, (16, 16)) for n, x in zip("abcd", clips, strict=True)),
    ]
    entries.append(Long(Item("b as files", "frames", tuple(files))))
    entries.append(Long(Item("lacks one", "frames", (files[0], str(tmp_path / "none.png")))))
    bad, *found, long, lacking = Worker(shipped(model), OPTIONS, "rle", places=2)(entries)
    assert bad == entries[0] and lacking == Bad("lacks one", "it does not exist")
    rows = [Rows.of(x, "rle") for x in found]
    assert [len(x.slots) for x in rows] == list(LENGTHS)
    for mine, clip in zip(found, clips, strict=True):
        alone = [frame.slots for frame in model.stream(clip, **OPTIONS)]
        np.testing.assert_allclose(mine.slots, alone, atol=1e-4)
    np.testing.assert_allclose(long.slots, rows[1].slots, atol=1e-4)
    np.testing.assert_array_equal(long.areas.sum(axis=1), 16 * 16)
    assert len(long.masks) == 5 and long.name == "b as files"
