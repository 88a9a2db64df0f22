"""The page of the arena holds what the rows say, and nothing else."""

import json
import re

import numpy as np
import pytest
from command import ROOT
from PIL import Image

from benchmarks import arena_page, arena_pictures, arena_rows, bootstrap
from smoothsa_jax.errors import UserError

CLIPS = 12
PLAIN = {"eval.prune": None, "eval.num_slots": None}
SLOWER = {"optimizer.learning_rate.peak": 0.002}


def row(system: str, words: str, seed: int, fg_ari: float, **other) -> dict:
    """A row of today, whose clips are spread around its mean."""
    clips = [round(fg_ari + 0.02 * (i - (CLIPS - 1) / 2), 4) for i in range(CLIPS)]
    points = [(100, 10.0, 0.5), (200, 20.0, 0.75), (400, 40.0, 1.0)]
    return {
        "system": system,
        "data": "sprites",
        "words": words,
        "ablation": "full",
        "overrides": {},
        "seed": seed,
        "steps": 400,
        "seconds": 40.0,
        "steps_per_second": 10.0,
        "scores": {
            "fg_ari": fg_ari,
            "ari": fg_ari - 0.3,
            "mbo": 0.25,
            "miou": 0.125,
            "count_error": 1.5,
            "segments_found": 5.5,
        },
        "baselines": {
            arena_rows.KMEANS: {"fg_ari": 0.5, "ari": 0.4, "segments_found": 4.0},
            arena_rows.BLOCKS: {"fg_ari": 0.62, "ari": 0.1},
            "untrained model": {"fg_ari": 0.1},
        },
        "clips": {"fg_ari": clips},
        "baseline_clips": {
            arena_rows.KMEANS: {"fg_ari": [0.5] * CLIPS},
            arena_rows.BLOCKS: {"fg_ari": [0.62] * CLIPS},
        },
        "curve": [
            {"step": step, "seconds": seconds, "scores": {"fg_ari": share * fg_ari}}
            for step, seconds, share in points
        ],
        "parameters": {"trained": 3000, "frozen": 20},
        "memory": 10_000_000,
        "cores": 1,
        "device": "cpu",
        "revision": "abc",
        "folder": "a_run",
        "title": {"smoothsa": "SmoothSA", "spot": "SPOT"}.get(system, system),
        **other,
    }


def old_row(system: str, words: str, seed: int, fg_ari: float, **other) -> dict:
    """A row from before there were curves."""
    found = row(system, words, seed, fg_ari, **other)
    for name in ("curve", "clips", "baseline_clips", "steps_per_second", "folder"):
        del found[name]
    del found["scores"]["count_error"], found["scores"]["segments_found"]
    return found


def tables(text: str) -> dict[str, dict[str, list[str]]]:
    """The first table of each head: head -> first cell -> the other cells."""
    found, head = {}, None
    for line in text.splitlines():
        if not line.startswith("|"):
            head = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if head is None:
            head = " | ".join(cells)
            found.setdefault(head, {})
        elif not set(line) <= {"|", "-", " "}:
            found[head].setdefault(cells[0], cells[1:])
    return found


def table(text: str, begins: str) -> dict[str, list[str]]:
    return next(found for head, found in tables(text).items() if head.startswith(begins))


def section(text: str, heading: str) -> str:
    return re.split(r"^#{2,3} ", text.split(f"# {heading}\n", 1)[1], flags=re.MULTILINE)[0]


def test_tables_have_mean_spread_and_baselines():
    rows = [row("smoothsa", "image", s, v) for s, v in ((1, 0.8), (0, 0.6), (2, 0.7))]
    rows += [row("spot", "image", 0, 0.4), row("spot", "image", 0, 0.45)]  # the newest counts
    rows[0]["seconds"] = 20.0
    text = arena_page.page(rows, {})
    found = table(section(text, "sprites:image"), "system |")
    assert found["SmoothSA"] == [
        *(
            "no",
            "400",
            "3",
            "70.0 ± 10.0",
            "40.0 ± 10.0",
            "25.0 ± 0.0",
            "12.5 ± 0.0",
            "1.50 ± 0.00",
        ),
        "0: 60.0, 1: 80.0, 2: 70.0",
    ]
    assert found["SPOT"][:4] == ["no", "400", "1", "45.0"]
    assert found["*k-means on features*"][3:5] == ["50.0", "40.0"]
    assert found["`dinosaur`"] == [""] * 9  # planned, and not there yet
    assert list(found)[:2] == ["SmoothSA", "SPOT"]
    best = table(text, "data | best system")["[sprites:image](#spritesimage)"]
    assert best[:3] == ["SmoothSA", "70.0 ± 10.0", "SPOT"] and best[4] == "50.0"
    cost = table(text, "cost")["SmoothSA"]
    assert cost == ["3,000", "20", "10", "10.0 to 20.0", "33", "", "1", "10.0 ± 0.0", "`abc`"]


def test_costs_have_the_time_of_a_first_stage():
    rows = [row("slate", "image", 0, 0.6), row("spot", "image,student", 0, 0.6)]
    rows += [row("spot", "image", 0, 0.7, seconds=30.0)]
    tokenizer = old_row("slate", "image,tokenizer", 0, 0.0, seconds=20.0)
    rows += [{**tokenizer, "scores": {"psnr": 20.0}}]
    for x in rows:
        x["title"] = ""
    cost = table(arena_page.page(rows, {}), "cost")
    assert {name: cells[5] for name, cells in cost.items()} == {
        "slate": "20",
        "spot,student": "30",
        "spot": "",
    }


def test_features_of_an_own_encoder_are_no_baseline_of_the_others():
    rows = [row("smoothsa", "image", 0, 0.8), row("spot", "image", 0, 0.6)]
    own = {"baselines": {arena_rows.KMEANS: {"fg_ari": 0.2}}}
    own["baseline_clips"] = {arena_rows.KMEANS: {"fg_ari": [0.2] * CLIPS}}
    # Once the first row, the best and the last one.
    for number in range(2):
        trained = row("slot_attention", "image", 0, (0.9, 0.4)[number], **own)
        rows = [trained, *rows] if number == 0 else [*rows[1:], trained]
        text = section(arena_page.page(rows, {}), "sprites:image")
        assert table(text, "system |")["*k-means on features*"][3] == "50.0"
        assert table(text, "FG-ARI, difference")["SPOT"][1].startswith("+10.0 (")
        assert "10.0 points of FG-ARI above k-means" in arena_page.page(rows, {})


def test_equal_steps_and_time_are_read_off_the_curves():
    """Time is that of processors and has the first stage; wall time depends on other programs."""
    short = row("spot", "image", 0, 0.4, steps=300, step_seconds=0.05, seconds=999.0)
    short["curve"] = [
        {"step": 150, "seconds": 500.0, "scores": {"fg_ari": 0.1}},
        {"step": 300, "seconds": 999.0, "scores": {"fg_ari": 0.4}},
    ]
    tokenizer = row("slate", "image,tokenizer", 0, 0.0, steps=50, step_seconds=0.1)
    del tokenizer["scores"]["fg_ari"]
    rows = [
        short,
        row("smoothsa", "image", 0, 0.8, step_seconds=0.1),
        tokenizer,
        row("slate", "image", 0, 0.6, step_seconds=0.2),
        row("boqsa", "image", 0, 0.5),
        old_row("dinosaur", "image", 0, 0.5),
    ]
    text = arena_page.page(rows, {})
    found = table(text, "FG-ARI on validation clips")
    assert "equal steps: after 300 | equal time: after 15 s" in text
    assert found["SPOT"] == ["40.0", "15", "40.0", "40.0"]
    # Between 0.75 and 1 of 0.8 after 300 steps; after 15 s it has done 150, halfway to 0.75.
    assert found["SmoothSA"] == ["80.0", "40", "70.0", "50.0"]
    # Five seconds are gone when its own steps begin; after fifty of them it is not scored yet.
    assert found["slate"] == ["60.0", "85", "52.5", ""]
    assert found["boqsa"] == ["50.0", "", "43.8", ""]
    assert "dinosaur" not in found


def test_pruned_and_plain_are_beside_each_other():
    own = row("smoothsa", "image", 0, 0.8)
    own["scores"]["plain"] = {"fg_ari": 0.7, "ari": 0.25, "count_error": 2.0}
    own["clips"]["plain"] = {"fg_ari": [round(x - 0.1, 4) for x in own["clips"]["fg_ari"]]}
    text = arena_page.page([own, row("spot", "image", 0, 0.4)], {})
    pruned = {name: cells[0] for name, cells in table(text, "system |").items()}
    assert (pruned["SmoothSA"], pruned["SPOT"]) == ("yes", "no")
    assert table(text, "plain against pruned") == {
        "SmoothSA": ["1", "70.0", "80.0", "+10.0 (+10.0 to +10.0)", "25.0", "50.0", "2.00", "1.50"]
    }


def test_main_tables_have_each_system_with_one_number_of_steps():
    """That of the plan: a longer run is no system of its own, and never the best."""
    rows = [row("slotcontrast", "gaussian", 0, 0.9, steps=7000)]
    rows += [row("slotcontrast", "gaussian", seed, 0.5, steps=3500) for seed in range(2)]
    rows += [row("smoothsa", "gaussian", 0, 0.6, steps=3500)]
    rows += [row("spot", "image", 0, 0.8, steps=500), row("spot", "image", 0, 0.4, steps=7000)]
    text = arena_page.page(rows, {})
    assert (
        table(text, "data | best system")["[sprites:gaussian](#spritesgaussian)"][0] == "SmoothSA"
    )
    found = section(text, "sprites:gaussian")
    assert table(found, "system |")["slotcontrast"][1:4] == ["3,500", "2", "50.0 ± 0.0"]
    assert found.count("| slotcontrast | no |") == 1
    others = table(found, "other runs")
    assert others == {"slotcontrast": ["7,000", "1", "90.0"]}
    # Where the plan takes the config's steps, these.
    assert table(section(text, "sprites:image"), "system |")["SPOT"][1:4] == [
        "7,000",
        "1",
        "40.0",
    ]


def test_nobody_is_the_best_where_nobody_finds_objects():
    rows = [row("smoothsa", "image", 0, 0.05), row("spot", "image", 0, 0.02)]
    best = table(arena_page.page(rows, {}), "data | best system")["[sprites:image](#spritesimage)"]
    assert best[:4] == ["none finds objects", "5.0", "", ""]


@pytest.mark.parametrize(
    ("easy", "hard", "all_hold"),
    [(0.8, 0.64, "yes"), (0.7, 0.64, "no"), (0.8, 0.55, "no"), (0.8, 0.61, "no")],
)
def test_harder_data_leave_the_best_system_much_to_win(easy, hard, all_hold):
    rows = [row("spot", "image", 0, easy), row("smoothsa", "image", 0, 0.9)]
    rows += [row("spot", "hard_image", 0, hard), row("smoothsa", "hard_image", 0, 0.5)]
    text = section(arena_page.page(rows, {}), "Harder data")
    above = [f"{100 * (hard - x):+.1f}" for x in (0.5, 0.62)]
    expected = [f"{100 * (easy - hard):.1f}", *above, all_hold]
    best_there = table(text, "")["sprites:hard_image"]
    assert best_there[0] == "SPOT" and best_there[3:] == expected
    (best_here,) = [line for line in text.splitlines() if "SmoothSA" in line]
    assert best_here.endswith("| 90.0 on sprites:image | 40.0 | +0.0 | -12.0 | no |")
    assert not any(table(text, "")["sprites:hard"])


def test_claims_pair_the_same_steps_and_figures_keep_their_order():
    rows = [
        old_row("smoothsa", "", 0, 0.9, steps=7000),
        old_row("smoothsa", "", 0, 0.7),
        old_row("smoothsa", "", 0, 0.6, ablation="no warmer"),
        old_row("smoothsa", "", 0, 0.1, ablation="3/3"),
        old_row("smoothsa", "", 0, 0.5, ablation="3/3", overrides=SLOWER),
        old_row("smoothsa", "", 0, 0.8, overrides=SLOWER),
        old_row("smoothsa", "", 0, 0.2, ablation="1/1", overrides={"optimizer.clip_norm": 2.0}),
        old_row("videosaur", "gaussian", 0, 0.3),
        old_row("videosaur", "gaussian,smooth", 0, 0.5),
        old_row("inverted", "image,sa", 0, 0.3, overrides=PLAIN, title="SA"),
        old_row("inverted", "image,tf", 0, 0.6, overrides=PLAIN, title="TF"),
        old_row("inverted", "image,tf", 0, 0.8, title="TF, pruned"),
        old_row("inverted", "image,tf_inv_gru", 0, 0.8, overrides={"eval.prune": None}),
        old_row("inverted", "image", 0, 0.9, overrides={"optimizer.clip_norm": 2.0}),
    ]
    text = arena_page.page(rows, {"the warmer": "What people say."})
    warmer = section(text, "The warmer")
    sprites = ["60.0", "70.0", "+10.0, no interval", "1 / 1"]
    assert table(warmer, "")["sprites"] == sprites and "What people say." in warmer
    assert table(warmer, "")["sprites:image"] == ["", "", "", "0 / 0"]
    iterations = section(text, "Three iterations, then one")
    with_settings = "sprites, `optimizer.learning_rate.peak=0.002`"
    of_three = table(iterations, " | FG-ARI, 3/3")
    assert of_three["sprites"] == ["10.0", "70.0", "+60.0, no interval", "1 / 1"]
    assert of_three[with_settings] == ["50.0", "80.0", "+30.0, no interval", "1 / 1"]
    # Nothing to compare with has these settings.
    assert "clip_norm" not in iterations
    attached = table(section(text, "It can be attached to other systems"), "")
    assert attached["videosaur on sprites:gaussian"][:2] == ["30.0", "50.0"]
    assert attached["randsfq on sprites"] == ["", "", "", "0 / 0"]
    figure = section(text, "Figure 3: queries from one Gaussian")
    assert [line.split("|")[3].strip() for line in figure.splitlines()[3:5]] == ["400", "400"]
    assert figure.index("60.0") < figure.index("30.0")  # TF before SA, as in the paper
    # Runs with settings of their own are no part of the main tables, those scored plain are.
    images = section(text, "sprites:image")
    main = table(images, "system |")
    assert [main[name][3] for name in ("TF", "SA")] == ["60.0", "30.0"]
    assert not any(main["`inverted`"]) and not any(main["`inverted,tf_inv_gru`"])
    assert "though configured to be pruned: TF; SA." in images
    assert table(images, "other runs") == {"TF, pruned": ["400", "1", "80.0"]}
    assert "No run has finished yet" in section(text, "Table 1: OSRT")


def test_systems_fail_where_their_rows_say():
    good, bad = row("smoothsa", "image", 0, 0.8), row("spot", "image", 0, 0.4)
    bad["clips"]["fg_ari"][7] = 0.01
    text = arena_page.page([good, bad], {"spot on sprites:image": "It is tired."})
    lines = section(text, "Where they fail on sprites:image").splitlines()
    (said,) = [line for line in lines if "**SPOT**" in line]
    assert "10.0 points of FG-ARI below k-means on features and 22.0 below a block" in said
    assert said.endswith("It is tired.")
    assert "is 30.0 points below FG-ARI" in said and "One seed alone." in said
    assert "finds 5.50 segments where there are 4.00, and is off by 1.50" in said
    assert "Worst on clips 7 (1.0, all systems 42.0), 0 (29.0," in said
    assert "changed by +5.0 points" in said  # from 0.875 to 1 of 0.4, halfway up its last stretch
    (old,) = [
        line
        for line in arena_page.page([old_row("spot", "image", 0, 0.4)], {}).splitlines()
        if "**SPOT**" in line
    ]
    assert "not recorded" in old and "Worst" not in old


@pytest.mark.parametrize(
    ("spot", "dinosaur", "expected"),
    [(0.7, 0.5, "the same"), (0.5, 0.7, "**the reverse**"), (0.5, 0.5, "undecided")],
)
def test_reported_orders_are_judged(spot, dinosaur, expected):
    rows = [row("spot", "image", 0, spot), row("dinosaur", "image", 0, dinosaur)]
    notes = {"spot above dinosaur on sprites:image": "It is because."}
    found = table(arena_page.page(rows, notes), "reported on real data")
    _, place, steps, _, equal, here, reason = found["SPOT above dinosaur"]
    assert (place, steps, here) == ("sprites:image", "400 / 400", expected)
    assert equal == f"{100 * (spot - dinosaur):+.1f} after 400"
    assert reason == ("It is because." if "reverse" in expected else "")


@pytest.mark.parametrize(
    ("spot", "dinosaur", "expected"),
    [
        ((0.5, 0.6, 0.7), (0.1, 0.2, 0.4), "the same"),
        ((0.5, 0.6, 0.7), (0.8, 0.9, 0.75), "**the reverse**"),
        ((0.5, 0.6, 0.7), (0.1, 0.2, 0.51), "undecided"),
        ((0.7,), (0.1, 0.2, 0.3), "undecided"),
    ],
)
def test_orders_without_scores_of_clips_are_judged_by_seeds(spot, dinosaur, expected):
    both = (("spot", spot), ("dinosaur", dinosaur))
    rows = [old_row(name, "image", i, x) for name, seeds in both for i, x in enumerate(seeds)]
    found = table(arena_page.page(rows, {}), "reported on real data")
    assert found["SPOT above dinosaur"][5] == expected


def test_a_mean_over_some_of_the_seeds_says_so():
    rows = [row("smoothsa", "image", 0, 0.8), old_row("smoothsa", "image", 1, 0.7)]
    found = table(arena_page.page(rows, {}), "system |")["SmoothSA"]
    assert found[3] == "75.0 ± 7.1" and found[7] == "1.50 (1 of 2 seeds)"


def test_notes_hold_no_numbers(tmp_path):
    path = tmp_path / "notes.md"
    path.write_text(
        "# About\n\nText.\n\n## spot on sprites\n\nDINOv2 with\n`--x=3`.\n\n## b\n\nNo."
    )
    assert arena_page.read_notes(path) == {"spot on sprites": "DINOv2 with `--x=3`.", "b": "No."}
    path.write_text("## spot on sprites\n\nIt has 71.5 points.")
    with pytest.raises(UserError, match=r"'spot on sprites' holds the number 71\.5"):
        arena_page.read_notes(path)


# --------------------------------------------------------------------------------------- intervals


def test_an_interval_is_as_wide_as_theory_says():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.6, 0.2, (1, 400)), rng.normal(0.5, 0.2, (1, 400))
    gap, low, high = bootstrap.difference(first, second)
    error = (first - second).std() / 20
    assert gap == pytest.approx((first - second).mean())
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    # The same clips: what is hard for both does not count.
    hard = rng.normal(0, 10, (1, 400))
    np.testing.assert_allclose(
        bootstrap.difference(first + hard, second + hard), (gap, low, high), atol=1e-9
    )


def test_seeds_widen_an_interval_and_undefined_clips_are_left_out():
    clips = np.linspace(0.4, 0.6, 30)
    same, apart = np.stack([clips] * 3), np.stack([clips - 0.1, clips, clips + 0.1])
    other = np.stack([clips - 0.3] * 3)
    assert bootstrap.difference(same, other) == pytest.approx((0.3, 0.3, 0.3))
    gap, low, high = bootstrap.difference(apart, other)
    # Three seeds drawn of three: the mean moves by up to the whole spread.
    assert gap == pytest.approx(0.3) and 0.19 < low < 0.24 and 0.36 < high < 0.41
    same[1, 4] = np.nan
    assert bootstrap.difference(same, other)[0] == pytest.approx(0.3)


# --------------------------------------------------------------------------- pictures, and the disk


def test_pictures_show_the_same_clips_of_every_system(tmp_path):
    videos, labels = arena_pictures.true_clips("sprites:image", (3, 1, 60, 60))
    assert videos.shape == (3, 1, 60, 60, 3) and labels.max() >= 2
    rows = []
    for system, segments in (("smoothsa", labels), ("spot", np.zeros_like(labels))):
        own = arena_rows.packed(list(segments))
        rows.append(row(system, "image", 0, 0.5 + len(rows) / 10, segments=own))
    page = tmp_path / "arena.md"
    arena_page.write(rows, page, {})
    text = page.read_text()
    links = re.findall(r"!\[.*?\]\((.+?)\)", text)
    assert links == ["arena/curves_sprites_image.png", "arena/clips_sprites_image.png"]
    before = {link: (tmp_path / link).read_bytes() for link in links}
    sheet = np.asarray(Image.open(tmp_path / links[1]).convert("RGB"))
    frames, true, spot, smoothsa = np.split(sheet[:, arena_pictures.LABEL :], 4)
    np.testing.assert_array_equal(true, smoothsa)  # the best last here: SPOT is 0.6
    assert (spot != true).mean() > 0.01 and (frames != true).mean() > 0.1
    arena_page.write(rows, page, {})
    assert before == {link: (tmp_path / link).read_bytes() for link in links}
    assert sum(map(len, before.values())) < 300_000


def test_the_page_is_what_the_rows_and_notes_make():
    rows = arena_rows.read_rows(arena_rows.ROWS_FILE)
    text = arena_page.page(rows, arena_page.read_notes())
    assert arena_page.PAGE.read_text() == text, "run: python benchmarks/arena.py --page"
    assert len(json.dumps(rows)) < 20_000_000 and (ROOT / "docs" / "arena.md").exists()
