"""Scenes, embedded data in three dimensions: no download, no accelerator.

Procedural clips of textured spheres, boxes and cylinders that fall, roll and collide on a ground
plane (smoothsa_jax/inputs/scenes.py), with exact flow, depth, camera poses and contacts for the
systems that read them.

    (no word)   video, slots start from boxes
    gaussian    video, slots start from queries of the system's own
    moving      as gaussian, and the camera moves around the scene in every clip
    image       single frames, without boxes
    views       six views of one still scene from random sides, without boxes
    smoke       seconds, to see that everything runs

Every system is small here, as on sprites; `configs/sprites.py` says how. FG-ARI in %, on the first
32 test clips:

                            12 frames   single frames (image)
    k-means on features       58.0       52.0
    k-means on RGB            66.4       68.3
    first boxes kept still    50.1
    SmoothSA, untrained                  12.9
    SmoothSA, 1,500 steps                59.5 (one seed)
"""

from ml_collections import ConfigDict

from configs import base, sprites


def gaussian(data: base.DataSet) -> base.DataSet:
    return data.changed(data={"boxes": False})


def moving(data: base.DataSet) -> base.DataSet:
    return data.changed(data={"boxes": False, "moving": 1.0})


def image(data: base.DataSet) -> base.DataSet:
    return data.changed(
        data={"boxes": False, "num_frames": 1}, settings={"eval": {"num_frames": 1}}
    )


def views(data: base.DataSet) -> base.DataSet:
    return data.changed(
        data={"boxes": False, "views": True, "num_frames": 6},
        settings={"eval": {"num_frames": 6}},
    )


DATA = base.DataSet(
    name="scenes",
    data={
        "name": "scenes",
        "seed": 0,  # of the clips; the same for all training seeds, so that test clips stay
        "image_size": 64,
        "num_frames": 4,
        # Of training; drawn in the first epoch, then kept in 130 MB, or 530 MB with flow and depth.
        "num_samples": 2048,
        "keep": True,
        "min_objects": 2,
        "max_objects": 4,
        "boxes": True,
        "background_box": True,  # slot 0 starts from the whole frame
        "moving": 0.0,  # share of the clips in which the camera moves
        "views": False,  # whether the frames of a clip are views of a still scene
        "features": "",  # a folder of cached features, in place of the encoder in training
    },
    num_slots=5,
    num_steps=3000,
    batch_size=8,
    encoder=sprites.DATA.encoder,
    encoder_source="random",
    settings={
        **sprites.DATA.settings,
        "checkpoint": {**sprites.DATA.settings["checkpoint"], "every": 500},
    },
    small=sprites.SMALL,
    smoke=sprites.DATA.smoke,
    variants={"gaussian": gaussian, "moving": moving, "image": image, "views": views},
)
WORDS = base.words_of(DATA)


def get_config(words: str = "") -> ConfigDict:
    return base.compose(DATA, words)
