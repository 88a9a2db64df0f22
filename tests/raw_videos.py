"""Miniatures of CLEVRER and Physion in their original layouts, with real mp4 files."""

import csv
import io
import itertools
import json
from pathlib import Path

import cv2
import numpy as np
from raw_clips import compressed, write, write_zip

HEIGHT, WIDTH = 40, 60  # 2:3, as CLEVRER's 320x480
SIZE = 128  # of stored frames
CUBE = {"color": "red", "material": "metal", "shape": "cube"}
BALL = {"color": "blue", "material": "rubber", "shape": "sphere"}


def moving(seed: int, num_frames: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Frames (T,H,W,3) of a block that moves to the right over a gray ground."""
    frames = np.full((num_frames, height, width, 3), 90 + seed, np.uint8)
    for t in range(num_frames):
        frames[t][place(t, height, width)] = (220, 30, 40)
    return frames


def place(t: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Where the block of `moving` is in frame t, as a mask (H,W)."""
    mask = np.zeros((height, width), bool)
    left = 4 + t % (width - 24)
    mask[height // 4 : height // 2, left : left + 16] = True
    return mask


def corner(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Where a second object is said to be: it covers a part of the block's path."""
    mask = np.zeros((height, width), bool)
    mask[height // 4 :, 2:10] = True
    return mask


def mp4(path: Path, frames: np.ndarray, rate: int = 25) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (frames.shape[2], frames.shape[1])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def cut(path: Path, share: float) -> None:
    """Damage the end of a video: its frames are lost, its header is not."""
    data = bytearray(path.read_bytes())
    start, index = data.find(b"mdat"), data.rfind(b"moov")
    begin = start + int(share * (index - start))
    data[begin : index - 4] = bytes(index - 4 - begin)
    path.write_bytes(bytes(data))


# ------------------------------------------------------------------------------------------ CLEVRER


def question(number: int, kind: str, text: str, answer: str | None, *choices) -> dict:
    """A question as in the official files; each choice is its text and its answer."""
    entry = {"question_id": number, "question": text, "question_type": kind, "program": ["events"]}
    if not choices:
        entry["question_subtype"] = "exist"
        return entry | ({"answer": answer} if answer else {})
    listed = []
    for k, (words, right) in enumerate(choices):
        choice = {"choice_id": k, "choice": words, "program": []}
        listed.append(choice | ({"answer": right} if right else {}))
    return entry | {"choices": listed}


def questions(number: int, known: bool = True) -> dict:
    """A video's entry in a file of questions."""
    right, wrong = ("correct", "wrong") if known else (None, None)
    return {
        "scene_index": number,
        "video_filename": f"video_{number:05d}.mp4",
        "questions": [
            question(0, "descriptive", "How many metal objects are there?", "1" if known else None),
            question(
                1,
                "predictive",
                "What will happen next?",
                None,
                ("The cube and the sphere collide", right),
                ("The sphere collides with the cube", wrong),
            ),
        ],
    }


def annotation(number: int, num_frames: int) -> dict:
    """The sphere enters the view in the third frame, and the two collide in the last but one."""
    return {
        "scene_index": number,
        "video_filename": f"video_{number:05d}.mp4",
        "object_property": [{"object_id": 0, **CUBE}, {"object_id": 2, **BALL}],
        "motion_trajectory": [
            {
                "frame_id": t,
                "objects": [
                    {"object_id": 2, "location": [0, 0, 0], "inside_camera_view": t >= 2},
                    {"object_id": 0, "location": [1, 0, 0], "inside_camera_view": True},
                ],
            }
            for t in range(num_frames)
        ],
        "collision": [{"frame_id": num_frames - 2, "object_ids": [0, 2], "location": [0, 0, 0]}],
    }


def proposals(number: int, num_frames: int) -> dict:
    """The sphere is proposed first in odd frames, the cube in even ones; in the last frame none."""
    frames = []
    for t in range(num_frames):
        cube = {**CUBE, "mask": compressed(place(t)), "score": 0.9}
        ball = {**BALL, "mask": compressed(corner()), "score": 0.8}
        objects = [ball, cube] if t % 2 else [cube, ball]
        frames.append({"frame_index": t, "objects": [] if t == num_frames - 1 else objects})
    return {"video_name": f"video_{number:05d}.mp4", "frames": frames}


SPLITS = {"train": (7, 7648), "validation": (10001,), "test": (15002,)}


def clevrer(folder: Path, num_frames: int = 5) -> Path:
    """Two videos to train on, the second of which is damaged, and one in each other split."""
    for split, numbers in SPLITS.items():
        part = {"validation": "val"}.get(split, split)
        for number in numbers:
            first = number // 1000 * 1000
            below = f"_{first:05d}-{first + 1000:05d}"
            frames = moving(number % 13, num_frames)
            path = mp4(folder / f"videos/{part}/video{below}/video_{number:05d}.mp4", frames)
            if number == 7648:
                cut(path, 0.75)
            name = f"derender_proposals/proposal_{number:05d}.json"
            contents = {name: proposals(number, num_frames)}
            if split != "test":
                name = f"annotations/{part}/annotation{below}/annotation_{number:05d}.json"
                contents[name] = annotation(number, num_frames)
            write(folder, {name: json.dumps(x).encode() for name, x in contents.items()})
        listed = [questions(number, known=split != "test") for number in numbers]
        write(folder, {f"questions/{split}.json": json.dumps(listed).encode()})
    return folder


def zipped(folder: Path, target: Path) -> Path:
    """Videos and annotations as they are downloaded: an archive for each split."""
    for what, split in itertools.product(("video", "annotation"), ("train", "val")):
        inside = folder / f"{what}s" / split
        name = {"val": "validation"}.get(split, split)
        files = {str(p.relative_to(inside)): p.read_bytes() for p in inside.rglob("*.*")}
        write_zip(target / f"{what}_{name}.zip", files)
    return target


# ------------------------------------------------------------------------------------------ Physion

TOWER = "pilot_towers_nb2_fr015_SJ010_mono0_dis0_occ0_tdwroom"


def table(rows: dict[str, bool]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["", "ground truth outcome"])
    writer.writerows(rows.items())
    return text.getvalue().encode()


# Below the train part: folder, stimulus. 0018 of training and 0007 of readout are validation.
OF_TRAINING = {"Support": [f"{TOWER}_0001", f"{TOWER}_0018"], "Drape": ["test10_0005"]}
OF_READOUT = {"Support": [f"{TOWER}_0007", f"{TOWER}_0008"], "Drape": ["test10_0007"]}
# One stimulus of Drape is bad; of Roll's, one is listed in a way that never fits.
LEDGE = "pilot_it2_rollingSliding_simple_ledge_box_1_dis_1_occ-redyellow_0000"
OF_TEST = {"Drape": ["test10-redyellow_0013", "test10-redyellow_0014"], "Roll": [LEDGE]}
CONTACTS = {f"{TOWER}_0007": True, f"{TOWER}_0008": False, "test10_0007": True}
TEST_CONTACTS = {
    "test10_0013_img": False,
    "test10_0014_img": True,
    LEDGE.replace("-redyellow", "") + "_img": True,
}


def physion(folder: Path, num_frames: int = 4) -> Path:
    """Three videos in each part; frames are square, as in the download."""
    seed = 0
    for part, of in (("training", OF_TRAINING), ("readout", OF_READOUT), ("test", OF_TEST)):
        for scenario, stimuli in of.items():
            for stimulus in stimuli:
                below = f"PhysionTrainMP4s/{scenario}_{part}_MP4s"
                if part == "test":
                    below = f"PhysionTestMP4s/{scenario}/mp4s-redyellow"
                mp4(folder / below / f"{stimulus}_img.mp4", moving(seed, num_frames, 48, 48), 30)
                seed += 3
    write(folder, {"PhysionTrainMP4s/readout_labels.csv": table(CONTACTS)})
    return write(folder, {"PhysionTestMP4s/labels.csv": table(TEST_CONTACTS)})
