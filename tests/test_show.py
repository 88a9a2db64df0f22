"""A sample of a prepared folder, drawn as stored and as the model sees it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import prepare, show
from data.family import Options

MOVI = Path(__file__).parent / "fixtures" / "movi_c"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("show") / "prepared"
    prepare.prepare("movi_c", str(MOVI), out)
    return out


def test_the_sheet_shows_stored_and_seen(folder, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert show.main([str(folder), "--index=1", f"--out={out}", "--image_size=64"]) == 0
    assert str(out) in capsys.readouterr().out
    tile = show.TILE + show.GAP
    assert Image.open(out).size == (show.MARGIN + 6 * tile, 5 * tile)

    name, rows = show.look(folder, "train", 1, 64, 6, seed=0)
    assert [row[0] for row in rows] == [
        "stored",
        "labels",
        "training 1",
        "training 2",
        "evaluation",
    ]
    videos = {row[0]: row[1] for row in rows}
    assert len(videos["training 1"]) == len(videos["labels"]) == 6
    np.testing.assert_array_equal(videos["stored"], videos["labels"])
    assert not np.array_equal(videos["training 1"], videos["training 2"])
    again = show.look(folder, "train", 1, 64, 6, seed=0)[1]
    np.testing.assert_array_equal(again[2][1], videos["training 1"])


def test_boxes_are_drawn_around_the_labels(folder):
    labels = np.zeros((1, 64, 64), np.uint8)
    labels[0, 16:32, 8:48] = 3
    video = np.zeros((1, 64, 64, 3), np.uint8)
    sheet = np.asarray(show.sheet([("x", video, labels)], 1))[:, show.MARGIN :]
    yellow = (sheet == [255, 255, 0]).all(-1)
    rows, columns = np.flatnonzero(yellow.any(1)), np.flatnonzero(yellow.any(0))
    scale = show.TILE / 64
    np.testing.assert_allclose([rows[0], columns[0]], [16 * scale, 8 * scale], atol=1)
    np.testing.assert_allclose([rows[-1], columns[-1]], [31 * scale, 47 * scale], atol=1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--index=2"], "has 2 samples; expected 0 to 1"),
        (["--split=val"], "has no split 'val'"),
        (["--num_frames=0"], "--num_frames is 0"),
        (["--out=/nowhere/x.png"], "cannot be written"),
    ],
)
def test_what_cannot_be_drawn_gets_one_line(folder, arguments, expected, capsys):
    assert show.main([str(folder), *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and expected in lines[0]


def test_a_folder_that_is_not_prepared(tmp_path, capsys):
    assert show.main([str(tmp_path)]) == 2
    assert "python -m data.prepare" in capsys.readouterr().err


def test_generated_data_are_shown_with_depth_flow_and_contacts(tmp_path, capsys):
    out = tmp_path / "scenes.png"
    arguments = ["configs/scenes.py", "--split=test", "--index=1", "--num_frames=8"]
    assert show.main([*arguments, f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "contacts (0 is the ground): 0-1 from frame 0" in said and str(out) in said
    tile = show.TILE + show.GAP
    assert Image.open(out).size == (show.MARGIN + 8 * tile, 4 * tile)
    _, rows = show.look_at_generated("configs/scenes.py", "test", 1, 64, 8)
    pictures = {name: pixels for name, pixels, _ in rows}
    assert list(pictures) == ["video", "labels", "depth", "flow"]
    labels = rows[1][2]
    assert (pictures["flow"][labels == 0] >= 254).all()  # the ground stands still: white
    assert (pictures["flow"][labels > 0] < 254).any()
    assert pictures["depth"].max() == 255 and pictures["depth"].min() == 0
    _, views = show.look_at_generated("configs/scenes.py:views", "train", 0, None, 3)
    assert [name for name, *_ in views] == ["video", "labels", "depth"]
    _, sprites = show.look_at_generated("configs/sprites.py", "train", 0, None, 2)
    assert [name for name, *_ in sprites] == ["video", "labels"]
    assert show.main(["configs/coco.py"]) == 2
    assert "has no generated data but 'prepared'" in capsys.readouterr().err


def test_contacts_are_told_by_their_first_frames():
    contacts = np.zeros((4, 3, 3), bool)
    contacts[2:, 0, 1] = contacts[2:, 1, 0] = contacts[1, 1, 2] = contacts[1, 2, 1] = True
    assert show.contacts_in_words(contacts) == "1-2 from frame 1, 0-1 from frame 2"
    assert show.contacts_in_words(contacts[:1]) == "none"


def test_depth_and_flow_of_a_prepared_folder_are_shown(tmp_path):
    keep = Options(keep=("depth", "flow"))
    prepare.prepare("movi_c", str(MOVI), tmp_path, ("train",), keep)
    rows = show.look(tmp_path, "train", 0, 64, 3, seed=0)[1]
    assert [name for name, *_ in rows[-2:]] == ["depth", "flow"]
    assert rows[-1][1].shape == (3, 64, 64, 3)
