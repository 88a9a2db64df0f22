"""A sample of a prepared folder, drawn as stored and as the model sees it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import prepare, show

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
