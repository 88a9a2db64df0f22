"""Metrics: against scikit-learn, brute force and Python's integers; then scores and protocol."""

import csv
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.masks import MaskEvaluator, Scoring, evaluate_baselines
from smoothsa_jax.evaluation.metrics import (
    METRICS,
    ari,
    contingency,
    contingency_from_one_hot,
    count_segments,
    iou,
    mbo,
    miou,
    score_batch,
)
from smoothsa_jax.evaluation.sample_scores import Scored, scored_by_seeds, write_sample_scores
from smoothsa_jax.evaluation.scores import (
    build_scores,
    mean_over_samples,
    scores_table,
    summarise_seeds,
    write_scores,
)
from smoothsa_jax.evaluation.split import evaluate
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.inputs.loader import evaluation_batches


def random_maps(seed, shape=(4, 12, 12)):
    """Predictions that partly follow the labels, with pixels in no segment."""
    rng = np.random.default_rng(seed)
    num_predicted, num_true = rng.integers(1, 7, 2)
    true = rng.integers(0, num_true, shape)
    predicted = np.where(rng.random(shape) < 0.4, true, rng.integers(0, num_predicted, shape))
    true[rng.random(shape) < rng.choice([0, 0.2])] = 255
    return predicted.astype(np.uint8), true.astype(np.uint8)


@pytest.mark.parametrize("seed", range(25))
def test_ari_equals_scikit_learn(seed):
    predicted, true = random_maps(seed)
    scores = score_batch(predicted, true)
    for b in range(len(true)):
        inside = true[b] != 255
        foreground = inside & (true[b] != 0)
        expected = adjusted_rand_score(true[b][inside], predicted[b][inside])
        np.testing.assert_allclose(scores["ari"][b], expected, atol=1e-12)
        if foreground.any():
            expected = adjusted_rand_score(true[b][foreground], predicted[b][foreground])
            np.testing.assert_allclose(scores["fg_ari"][b], expected, atol=1e-12)
        else:
            assert np.isnan(scores["fg_ari"][b])


@pytest.mark.parametrize("seed", range(25))
def test_mbo_and_miou_equal_brute_force(seed):
    predicted, true = random_maps(seed)
    scores = score_batch(predicted, true)
    for b in range(len(true)):
        segments = [true[b] == k for k in np.unique(true[b]) if k != 255]
        slots = [predicted[b] == p for p in range(6)]
        table = np.array([[(s & k).sum() / (s | k).sum() for k in segments] for s in slots])
        best = max(
            sum(table[p, k] for k, p in enumerate(order))
            for order in itertools.permutations(range(len(slots)), len(segments))
        )
        np.testing.assert_allclose(scores["mbo"][b], table.max(axis=0).mean(), atol=1e-12)
        np.testing.assert_allclose(scores["miou"][b], best / len(segments), atol=1e-12)


def large_video(seed=0):
    rng = np.random.default_rng(seed)
    shape = (1, 24, 256, 256)
    true = np.where(rng.random(shape) < 0.8, 0, rng.integers(0, 6, shape)).astype(np.uint8)
    predicted = np.where(rng.random(shape) < 0.7, true, rng.integers(0, 8, shape)).astype(np.uint8)
    return predicted, true


def python_pairs(values):
    return sum(int(v) * (int(v) - 1) for v in values)


def test_video_of_24x256x256_is_exact_where_64_bits_overflow():
    predicted, true = large_video()
    counts = contingency(predicted, true)
    table = [
        [int(((predicted == p) & (true == k)).sum()) for k in range(counts.table.shape[2])]
        for p in range(counts.table.shape[1])
    ]
    np.testing.assert_array_equal(counts.table[0], table)
    both = python_pairs(itertools.chain(*table))
    rows = python_pairs(map(sum, table))
    columns = python_pairs(map(sum, zip(*table, strict=True)))
    pixels = true.size
    assert rows * columns > 2**63  # or this test shows nothing
    pairs = pixels * (pixels - 1)
    expected = (2 * both * pairs - 2 * rows * columns) / (
        (rows + columns) * pairs - 2 * rows * columns
    )
    assert ari(counts)[0] == expected
    # The published arithmetic loses the chance term and comes out higher.
    assert ari(counts, match_paper=True)[0] > expected + 0.1


def test_match_paper_is_the_int64_wrap():
    predicted, true = large_video(1)
    counts = contingency(predicted, true)
    table = counts.table[0]
    rows, columns = table.sum(axis=1), table.sum(axis=0)
    with np.errstate(over="ignore"):
        product = (rows * (rows - 1)).sum() * (columns * (columns - 1)).sum()
    expected = product / (table.sum() * (table.sum() - 1))
    highest = ((rows * (rows - 1)).sum() + (columns * (columns - 1)).sum()) / 2
    value = ((table * (table - 1)).sum() - expected) / (highest - expected)
    np.testing.assert_allclose(ari(counts, match_paper=True)[0], value, rtol=1e-6)


def test_small_images_are_the_same_either_way():
    predicted, true = random_maps(3)
    true[:, 0, 0] = 0  # background there, so that the column is the same too
    exact, paper = score_batch(predicted, true), score_batch(predicted, true, match_paper=True)
    for name in METRICS:
        np.testing.assert_allclose(exact[name], paper[name], atol=1e-5)


def test_renumbering_changes_nothing():
    predicted, true = random_maps(5)
    rng = np.random.default_rng(0)
    slots = rng.permutation(8).astype(np.uint8)
    objects = np.concatenate([[0], 1 + rng.permutation(8)]).astype(np.uint8)  # background stays 0
    renumbered = np.where(true == 255, 255, objects[np.minimum(true, 8)])
    one, two = score_batch(predicted, true), score_batch(slots[predicted], renumbered)
    for name in METRICS:
        np.testing.assert_allclose(one[name], two[name], atol=1e-12)


def test_one_hot_equals_index_maps():
    predicted, true = random_maps(9)
    predicted[0, :3] = 255
    rows_p = predicted.reshape(4, -1, 1) == np.arange(6)
    rows_t = true.reshape(4, -1, 1) == np.arange(6)
    one, two = contingency(predicted, true, 6, 6), contingency_from_one_hot(rows_p, rows_t)
    for name in ("table", "predicted_area", "true_area"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_pixel_in_no_segment_leaves_ari_but_counts_in_the_predicted_area():
    true = np.array([[[1, 1, 255, 255]]], np.uint8)
    predicted = np.array([[[0, 0, 0, 1]]], np.uint8)
    counts = contingency(predicted, true)
    assert ari(counts)[0] == 1
    np.testing.assert_allclose(iou(counts)[0, :, 1], [2 / 3, 0])
    np.testing.assert_allclose([mbo(counts)[0], miou(counts)[0]], 2 / 3)


def test_edge_cases():
    nothing = np.full((1, 4, 4), 255, np.uint8)
    single = np.zeros((1, 4, 4), np.uint8)
    halves = np.repeat([[[0, 0, 1, 1]]], 4, axis=1).astype(np.uint8)
    # no true pixel: left out of every mean
    assert all(np.isnan(score_batch(single, nothing)[name][0]) for name in METRICS)
    mixed = score_batch(np.concatenate([single, halves]), np.concatenate([nothing, halves]))
    np.testing.assert_array_equal(np.isnan(mixed["ari"]), [True, False])
    # one true segment, found: ARI's denominator is 0
    scores = score_batch(single, single)
    assert scores["ari"][0] == scores["mbo"][0] == scores["miou"][0] == 1
    assert np.isnan(scores["fg_ari"][0])
    # no predicted pixel at all
    scores = score_batch(nothing, halves)
    assert scores["mbo"][0] == scores["miou"][0] == 0 and scores["ari"][0] == 1
    # everything in one slot
    scores = score_batch(single, halves)
    assert scores["ari"][0] == 0 and scores["mbo"][0] == 0.5 and scores["miou"][0] == 0.25


def test_column_that_fg_ari_leaves_out():
    rng = np.random.default_rng(0)
    true = rng.integers(1, 4, (1, 9, 9)).astype(np.uint8)  # a crop without background
    predicted = np.where(rng.random(true.shape) < 0.3, true, 0).astype(np.uint8)

    def expected(kept):
        return adjusted_rand_score(true[kept], predicted[kept])

    def fg_ari(**options):
        return score_batch(predicted, true, **options)["fg_ari"][0]

    everything, without_first = expected(true > 0), expected(true > 1)
    assert abs(everything - without_first) > 1e-3
    np.testing.assert_allclose(fg_ari(), everything, atol=1e-12)
    np.testing.assert_allclose(fg_ari(match_paper=True), without_first, atol=1e-6)
    coco = fg_ari(match_paper=True, background_column_always=True)
    np.testing.assert_allclose(coco, everything, atol=1e-6)


def test_bad_input_is_named():
    masks = np.zeros((2, 3, 8, 8), np.uint8)
    with pytest.raises(UserError, match=r"\(2, 3, 8, 8\).*\(2, 3, 16, 16\)"):
        score_batch(masks, np.zeros((2, 3, 16, 16), np.uint8))
    with pytest.raises(UserError, match="segment number 5, expected less than 4"):
        contingency(masks + 5, masks, num_predicted=4)
    with pytest.raises(UserError, match="integer"):
        score_batch(masks.astype(np.float32), masks)
    with pytest.raises(UserError, match="from -1 to 0"):
        contingency(masks.astype(np.int32), masks.astype(np.int32) - np.eye(8, dtype=np.int32))
    with pytest.raises(UserError, match="one-hot"):
        contingency_from_one_hot(np.zeros((2, 5, 3), bool), np.zeros((2, 6, 3), bool))


# --- scores ---------------------------------------------------------------------------------------


def some_scores():
    per_sample = {
        name: np.array([[0.5, np.nan, 0.7], [0.1, 0.2, 0.3]]) + 0.01 * i
        for i, name in enumerate(METRICS)
    }
    baselines = {
        "b": {name: np.array([0.25, np.nan]) for name in METRICS},
        "a": {name: np.array([0.5]) for name in METRICS},
    }
    return build_scores(
        per_sample,
        baselines,
        mean_over_samples,
        split="test",
        protocol={"seeds": (0, 1), "match_paper": False},
        step=7,
    )


def test_summary_is_a_mean_of_per_seed_means():
    per_sample = {"ari": np.array([[0.5, np.nan, 0.7], [0.1, 0.2, 0.3]])}
    summary = summarise_seeds(mean_over_samples(per_sample))["ari"]
    assert summary == {"mean": 0.4, "std": 0.2, "seeds": [0.6, 0.2]}
    with pytest.raises(UserError, match="found 0"):
        mean_over_samples({"ari": np.zeros((2, 0))})


def test_scores_file_is_byte_identical_and_replaced_whole(tmp_path):
    scores = some_scores()
    for name in ("one", "two"):
        write_scores(tmp_path / name / "scores.json", scores)
    backwards = {key: scores[key] for key in reversed(scores)}
    backwards["metrics"]["ari"]["mean"] += 1e-12  # below the rounding
    write_scores(tmp_path / "one" / "scores.json", backwards)
    one, two = ((tmp_path / n / "scores.json").read_bytes() for n in ("one", "two"))
    assert one == two
    read = json.loads(one)
    assert set(read) == {"metrics", "baselines", "split", "protocol", "step"}
    assert set(read["metrics"]) == set(METRICS) == set(read["baselines"]["a"])
    assert read["protocol"]["seeds"] == [0, 1] and read["step"] == 7
    with pytest.raises(TypeError):
        write_scores(tmp_path / "one" / "scores.json", {"metrics": object()})
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["scores.json"]
    assert (tmp_path / "one" / "scores.json").read_bytes() == one


def test_table_holds_model_and_baselines():
    lines = scores_table("SmoothSA", some_scores()).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["SmoothSA", "a", "b"]
    assert "± " in lines[2] and lines[3].split()[1:] == ["50.0"] * 4


def test_the_papers_protocol_is_a_row_of_its_own():
    paper = {name: np.array([[0.9, 0.9]]) for name in (*METRICS, "ap")}
    scores = build_scores(
        {name: np.array([[0.5, 0.5]]) for name in METRICS},
        {},
        mean_over_samples,
        split="test",
        protocol={},
        step=0,
        paper_per_sample=paper,
    )
    assert scores["match_paper"]["metrics"]["ari"]["mean"] == 0.9
    head, _, own, of_paper = scores_table("SmoothSA", scores).splitlines()
    assert [line.split("  ")[0] for line in (own, of_paper)] == [
        "SmoothSA",
        "SmoothSA, match_paper",
    ]
    # A score of the paper's protocol alone.
    assert [line.split()[-1] for line in (head, own, of_paper)] == ["AP", "-", "90.0"]


def test_every_sample_has_a_line(tmp_path):
    path = tmp_path / "scores.csv"
    of_model = {"ari": np.array([[0.5, np.nan], [0.25, 1.0]]), "mbo": np.full((2, 2), 1 / 3)}
    rows = scored_by_seeds("SmoothSA", "exact", (3, 4), of_model)
    rows.append(Scored("boxes", "exact", 3, {"ari": np.zeros(2), "mbo": np.ones(2)}))
    write_sample_scores(path, ["a", "b,c"], rows)
    with open(path, newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == ["a", "b,c"] * 3
    assert [(line["method"], line["seed"]) for line in lines[::2]] == [
        ("SmoothSA", "3"),
        ("SmoothSA", "4"),
        ("boxes", "3"),
    ]
    assert [line["ari"] for line in lines] == ["0.5", "", "0.25", "1", "0", "0"]
    assert lines[0]["mbo"] == "0.333333"


def test_undefined_score_is_null_and_a_dash(tmp_path):
    empty = {name: np.full((1, 2), np.nan) for name in METRICS}
    options = {"split": "test", "protocol": {}, "step": 0}
    scores = build_scores(empty, {"b": empty}, mean_over_samples, **options)
    write_scores(tmp_path / "scores.json", scores)
    assert json.loads((tmp_path / "scores.json").read_text())["metrics"]["ari"]["mean"] is None
    assert scores_table("SmoothSA", scores).splitlines()[2].split()[1:] == ["-"] * 4


# --- protocol -------------------------------------------------------------------------------------


def clips(num, num_slots=4, size=16):
    """Batches of two clips of moving squares; the last one is filled up with an invalid clip."""
    rng, side = np.random.default_rng(0), size // 3
    labels = np.zeros((num + num % 2, 3, size, size), np.uint8)
    for b in range(len(labels)):
        for k in range(1, num_slots - 1):
            y, x = rng.integers(0, size - side - 2, 2)
            for t in range(3):
                labels[b, t, y : y + side, x + t : x + t + side] = k
    video = rng.integers(0, 40, (*labels.shape, 3)) + 50 * labels[..., None]
    boxes = np.zeros((len(labels), 3, num_slots, 4), np.float32)
    for i in range(0, len(labels), 2):
        yield {
            "video": video[i : i + 2].astype(np.uint8),
            "segmentations": labels[i : i + 2],
            "boxes": boxes[i : i + 2],
            "slot_mask": np.ones((2, num_slots), bool),
            "valid": np.arange(i, i + 2) < num,
        }


def perfect(batch, key, match_paper=False):
    """Masks that are the labels at every second pixel, slots shuffled by the key."""
    small = jnp.asarray(batch["segmentations"])[:, :, ::2, ::2]
    flat = jax.nn.one_hot(small.reshape(*small.shape[:2], -1), 4, axis=2)
    flat = flat + 0.6 * jax.random.uniform(key, flat.shape)
    return {"masks": flat.reshape(*flat.shape[:3], *small.shape[2:])}


EVALUATOR = MaskEvaluator()


def test_protocol_scores_each_seed_on_each_valid_sample():
    found = evaluate(perfect, clips(5), EVALUATOR, seeds=(3, 4), keep_samples=3)
    assert {name: value.shape for name, value in found.scores.items()} == dict.fromkeys(
        METRICS, (2, 5)
    )
    assert found.scores["fg_ari"].mean() > 0.5
    assert not np.array_equal(found.scores["ari"][0], found.scores["ari"][1])
    single = evaluate(perfect, clips(5), EVALUATOR, seeds=(4,))
    for name in METRICS:  # a seed's scores do not depend on the other seeds
        np.testing.assert_array_equal(single.scores[name][0], found.scores[name][1])
    assert [s["masks"].shape for s in found.samples] == [(3, 16, 16)] * 3
    for index, sample in enumerate(found.samples):
        again = score_batch(sample["masks"][None], sample["segmentations"][None])
        assert again["ari"][0] == found.scores["ari"][0, index]


def test_protocol_honours_the_slot_mask():
    def fourth_slot_everywhere(batch, key, match_paper):
        return {"masks": perfect(batch, key)["masks"].at[:, :, 3].add(5)}

    def without_fourth(batches):
        for batch in batches:
            batch["slot_mask"][:, 3] = False
            yield batch

    open_ = evaluate(fourth_slot_everywhere, clips(2), EVALUATOR)
    masked = evaluate(fourth_slot_everywhere, without_fourth(clips(2)), EVALUATOR)
    assert (open_.scores["ari"] == 0).all()
    assert masked.scores["ari"].mean() > 0.5


def test_both_protocols_are_scored_in_one_run():
    """As in the paper, every sample of a batch has as many slots as the one with the most boxes."""

    def masked(batches, masks):
        for batch, mask in zip(batches, masks, strict=True):
            yield {**batch, "slot_mask": np.array(mask)}

    own = [[[True] * 2 + [False] * 2, [True] * 3 + [False]], [[True] * 4, [True] + [False] * 3]]
    padded = [[[True] * 3 + [False]] * 2, [[True] * 4] * 2]
    found = evaluate(perfect, masked(clips(3), own), EVALUATOR, (0, 1), match_paper=True)
    alone = evaluate(perfect, masked(clips(3), own), EVALUATOR, (0, 1))
    paper = evaluate(perfect, masked(clips(3), padded), EVALUATOR, (0, 1))
    assert alone.paper_scores is None
    for name in METRICS:
        np.testing.assert_array_equal(found.scores[name], alone.scores[name])
        # Clips this small do not overflow, so only the arithmetic's rounding differs.
        np.testing.assert_allclose(found.paper_scores[name], paper.scores[name], atol=1e-6)
    assert (found.scores["ari"][:, 0] != found.paper_scores["ari"][:, 0]).all()
    # The last clip of the split only fills up its batch: its boxes ask for no slots.
    last = [[[True] * 3 + [False], [True] * 4]] * 2
    short = evaluate(perfect, masked(clips(3), last), EVALUATOR, match_paper=True)
    same = evaluate(perfect, masked(clips(3), [last[0], [last[0][0]] * 2]), EVALUATOR)
    np.testing.assert_allclose(short.paper_scores["ari"][0, 2], same.scores["ari"][0, 2], atol=1e-6)


def test_frames_that_fill_up_a_clip_do_not_count():
    def longer(batches):
        for batch in batches:
            more = {k: np.concatenate([batch[k], batch[k]], 1) for k in ("video", "segmentations")}
            yield {**batch, **more, "num_frames": np.array([3, 3])}

    def first_frames(
        batch, key, match_paper=False
    ):  # the random part of `perfect` depends on the shape
        return perfect({"segmentations": batch["segmentations"][:, :3]}, key)

    def with_more_frames(batch, key, match_paper):
        masks = first_frames(batch, key)["masks"]
        return {"masks": jnp.concatenate([masks, masks[:, :, ::-1]], 1)}

    short = evaluate(first_frames, clips(3), EVALUATOR, keep_samples=1)
    filled = evaluate(with_more_frames, longer(clips(3)), EVALUATOR, keep_samples=1)
    for name in METRICS:
        np.testing.assert_array_equal(short.scores[name], filled.scores[name])
    assert filled.samples[0]["video"].shape[0] == filled.samples[0]["masks"].shape[0] == 3
    by_colour = [evaluate_baselines(x) for x in (clips(2), longer(clips(2)))]
    for scores in zip(*(x["k-means on RGB"].values() for x in by_colour), strict=True):
        np.testing.assert_array_equal(*scores)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_split():
    num, shape = 2000, (8, 64, 64)
    clip = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint8)
    masks = jnp.zeros((2, 8, 4, 8, 8))  # 32 KiB each; a clip is 160 KiB
    resident = []

    class Clips:
        def __len__(self):
            return num

        def __getitem__(self, index):
            if index in (num // 10, num - 1):
                resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
            return {
                "video": np.full((*shape, 3), index % 256, np.uint8),
                "segmentations": clip.copy(),
                "slot_mask": np.ones(4, bool),
            }

    found = evaluate(
        lambda batch, key, paper: {"masks": masks + 0},
        evaluation_batches(Clips(), 2),
        EVALUATOR,
    )
    assert len(found.names) == num
    assert resident[1] - resident[0] < 32 << 20  # kept, clips would take 250 MiB, masks 60


def test_protocol_refuses_nothing_to_do():
    with pytest.raises(UserError, match="no batch"):
        evaluate(perfect, [], EVALUATOR)
    with pytest.raises(UserError, match="seeds"):
        evaluate(perfect, clips(2), EVALUATOR, seeds=())
    with pytest.raises(UserError, match=r"\(2, 3, 16, 16\).*\(2, 2, 4, 8, 8\)"):
        evaluate(
            lambda b, k, p: {"masks": perfect(b, k)["masks"][:, :2]},
            clips(2),
            EVALUATOR,
        )


def test_baselines_are_scored_on_the_valid_samples():
    def colours(batch):  # the mean of each cell of 2x2 pixels
        return batch["video"].reshape(2, 3, 24, 2, 24, 2, 3).mean(axis=(3, 5))

    found = evaluate_baselines(clips(5, size=48), colours)
    blind = {"block pattern"}
    assert set(found) == {"first boxes kept still", "k-means on features", "k-means on RGB"} | blind
    for scores in found.values():
        assert {name: value.shape for name, value in scores.items()} == dict.fromkeys(METRICS, (5,))
    # The clips' colours tell the segments apart, so colour must solve them.
    assert found["k-means on RGB"]["fg_ari"].mean() > 0.9
    assert found["k-means on features"]["fg_ari"].mean() > 0.7
    assert set(evaluate_baselines(clips(2), with_boxes=False)) == {"k-means on RGB"} | blind


# --- options of the protocol ----------------------------------------------------------------------


def by_pixels(predicted, true):
    """All scores of one sample (...) from its pixels, with scikit-learn and permutations."""
    inside, objects = true != 255, (true != 255) & (true != 0)
    found = {}
    for name, where in (("ari", inside), ("fg_ari", objects)):
        found[name] = np.nan
        if where.any():
            found[name] = adjusted_rand_score(true[where], predicted[where])
    slots = [predicted == p for p in range(5)]
    for prefix, where in (("", inside), ("fg_", objects)):
        segments = [true == k for k in np.unique(true[where])]
        table = np.array([[(s & k).sum() / (s | k).sum() for k in segments] for s in slots])
        best = (
            sum(table[p, k] for k, p in enumerate(order))
            for order in itertools.permutations(range(len(slots)), len(segments))
        )
        empty = not segments
        found[f"{prefix}mbo"] = np.nan if empty else table.max(axis=0).mean()
        found[f"{prefix}miou"] = np.nan if empty else max(best) / len(segments)
    return found


def random_clips(seed):
    """Clips of 6, 4 and 1 frames, filled up, that have every kind of missing segment."""
    rng = np.random.default_rng(seed)
    masks = rng.random((3, 6, 5, 4, 4), np.float32)
    labels = np.kron(rng.integers(0, 4, (3, 6, 4, 3)), np.ones((1, 1, 3, 4), int)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 255
    labels[0, 1] = 0  # a frame of background alone
    labels[0, 2] = 255  # a frame without true pixels
    labels[1, 0][labels[1, 0] == 0] = 2  # a frame without background
    video = np.zeros((*labels.shape, 3), np.uint8)
    lengths = np.array([6, 4, 1])
    return masks, {"segmentations": labels, "video": video, "num_frames": lengths}


@pytest.mark.parametrize("score_at", [None, 6, 20])
def test_scores_of_frames_and_of_objects_equal_brute_force(score_at):
    masks, batch = random_clips(score_at or 0)
    evaluator = MaskEvaluator(scoring=Scoring(False, score_at, per_frame=True, foreground=True))
    found = evaluate(lambda *_: {"masks": masks}, [batch], evaluator, keep_samples=3)
    names = (*METRICS, "fg_mbo", "fg_miou")
    assert evaluator.metrics == (*names, *(f"image_{name}" for name in names))
    assert tuple(found.scores) == evaluator.metrics
    for b, length in enumerate(batch["num_frames"]):
        labels = batch["segmentations"][b, :length]
        side = (12, 12) if score_at is None else (score_at, score_at)
        rows = (np.arange(side[0]) + 0.5) * 12 // side[0]
        labels = labels[:, rows.astype(int)][:, :, rows.astype(int)]
        predicted = np.asarray(segments_from_masks(masks[b : b + 1], side))[0, :length]
        whole = by_pixels(predicted, labels)
        frames = [by_pixels(*pair) for pair in zip(predicted, labels, strict=True)]
        for name in names:
            of_frames = np.array([frame[name] for frame in frames])
            mean = of_frames[~np.isnan(of_frames)].mean()
            np.testing.assert_allclose(found.scores[name][0, b], whole[name], atol=1e-12)
            np.testing.assert_allclose(found.scores[f"image_{name}"][0, b], mean, atol=1e-12)
        # Pictures stay at the size of the video.
        assert found.samples[b]["masks"].shape == (length, 12, 12)
    plain = evaluate(lambda *_: {"masks": masks}, [batch], EVALUATOR)
    assert tuple(plain.scores) == METRICS
    if score_at is None:
        for name in METRICS:
            np.testing.assert_array_equal(plain.scores[name], found.scores[name])


def test_a_clip_of_one_frame_has_the_same_scores_either_way():
    evaluator = MaskEvaluator(scoring=Scoring(per_frame=True, foreground=True))
    masks, batch = random_clips(1)
    batch = {name: x[:, :1] for name, x in batch.items() if name != "num_frames"}
    found = evaluate(lambda *_: {"masks": masks[:, :1]}, [batch], evaluator, match_paper=True)
    for scores in (found.scores, found.paper_scores):
        for name in (*METRICS, "fg_mbo", "fg_miou"):
            np.testing.assert_array_equal(scores[name], scores[f"image_{name}"])


def test_the_table_has_a_column_for_each_option():
    scoring = Scoring(per_frame=True, foreground=True)
    of_model = {name: np.full((1, 2), 0.5) for name in scoring.metrics}
    baseline = evaluate_baselines(clips(2), with_boxes=False, scoring=scoring)
    assert set(baseline["k-means on RGB"]) == set(scoring.metrics)
    scores = build_scores(
        of_model,
        baseline,
        mean_over_samples,
        split="test",
        protocol=MaskEvaluator(scoring=scoring).protocol,
        step=1,
    )
    head, _, row, *others = scores_table("SmoothSA", scores).splitlines()
    assert "mIoU  FG-mBO  FG-mIoU  image ARI  image FG-ARI  image mBO" in head
    assert row.split()[1:] == ["50.0"] * 12
    for name in baseline:
        (line,) = [x for x in others if x.startswith(name)]
        assert "-" not in line.removeprefix(name).split()
    assert {"per_frame": True, "foreground": True, "score_at": None}.items() <= (
        scores["protocol"].items()
    )


def test_segments_are_counted_where_slots_win_pixels():
    """The background counts, a slot without a pixel does not."""
    true = np.array([[[0, 0, 1, 2]], [[0, 0, 0, 0]], [[255, 255, 255, 255]]])
    predicted = np.array([[[0, 0, 4, 4]], [[0, 1, 2, 3]], [[0, 1, 2, 3]]])
    found = count_segments(contingency(predicted, true, num_predicted=8))
    np.testing.assert_array_equal(found["segments_found"], [2, 4, np.nan])
    np.testing.assert_array_equal(found["count_error"], [1, 3, np.nan])
    scoring = Scoring(count_segments=True)
    scores = scoring.scores(contingency(predicted[:1], true[:1]))
    assert set(scores) == set(scoring.metrics) and scores["count_error"] == 1
    assert "count_error" not in Scoring().scores(contingency(predicted[:1], true[:1]))
