"""Two evaluated runs compared question by question: intervals, ties, and what is refused."""

import numpy as np
import pytest

from benchmarks import paired
from benchmarks.paired import Answered, answered, differences
from smoothsa_jax.config.load import load_config
from smoothsa_jax.config.values import to_json
from smoothsa_jax.evaluation.sample_scores import Scored, write_sample_scores

KINDS = ("count", "quarter")


def sides(shift, clips=200, of_clip=4, seed=0):
    """Random answers of two sides, of which the first has `shift` more of `quarter` right."""
    rng = np.random.default_rng(seed)
    clip = np.repeat(np.arange(clips), of_clip)
    kind = np.arange(len(clip)) % 2
    other = (rng.random(len(clip)) < 0.5).astype(float)
    more = (kind == 1) & (rng.random(len(clip)) < 2 * shift)
    one = np.where(more, 1.0, other)
    return Answered(one[None], kind, clip, KINDS), Answered(other[None], kind, clip, KINDS)


def rows_of(one, other):
    return {row.name: row for row in differences(one, other)}


def test_a_difference_and_a_tie():
    one, other = sides(0.1)
    rows = rows_of(one, other)
    assert list(rows) == [*KINDS, "mean over kinds", "all questions"]
    assert rows["count"].is_tie and rows["count"].low == rows["count"].high == 0
    assert not rows["quarter"].is_tie and rows["quarter"].low > 0
    apart = rows["quarter"].one - rows["quarter"].other
    assert rows["quarter"].low < apart < rows["quarter"].high
    of_kinds = np.mean([rows[kind].one for kind in KINDS])
    np.testing.assert_allclose(rows["mean over kinds"].one, of_kinds)
    # The other way around, everything has the other sign.
    back = rows_of(other, one)
    np.testing.assert_allclose(back["quarter"].low, -rows["quarter"].high, atol=5e-3)


def test_the_interval_is_as_wide_as_that_of_a_mean():
    """Of independent questions; where a clip's questions agree, it is wider."""
    one, other = sides(0.0)
    rng = np.random.default_rng(1)
    apart = one._replace(right=(rng.random(one.right.shape) < 0.5).astype(float))
    row = rows_of(apart, other)["all questions"]
    expected = 1.96 * np.std(apart.right - other.right) / np.sqrt(other.right.size)
    np.testing.assert_allclose((row.high - row.low) / 2, expected, rtol=0.1)
    same = lambda side: side._replace(right=np.repeat(side.right[:, ::4], 4, axis=1))  # noqa: E731
    wide = rows_of(same(apart), same(other))["all questions"]
    np.testing.assert_allclose((wide.high - wide.low) / (row.high - row.low), 2.0, rtol=0.15)


def test_intervals_hold_the_truth():
    """In 95 of 100 draws of two sides that do not differ."""
    ties = [rows_of(*_apart(seed))["all questions"].is_tie for seed in range(30)]
    assert 0.8 < np.mean(ties)


def _apart(seed):
    rng = np.random.default_rng(seed)
    one, other = sides(0.0, clips=60, seed=seed)
    return one._replace(right=(rng.random(one.right.shape) < 0.5).astype(float)), other


def test_runs_that_differ_widen_the_interval():
    """Two runs of one side: one as the other side, one with everything right."""
    one, other = sides(0.0)
    runs = one._replace(right=np.concatenate([np.ones_like(one.right), other.right]))
    row = rows_of(runs, other)["all questions"]
    alone = rows_of(one._replace(right=runs.right.mean(axis=0, keepdims=True)), other)
    np.testing.assert_allclose(row.one, alone["all questions"].one)
    assert row.is_tie and not alone["all questions"].is_tie
    # Whichever runs are drawn, the difference is at most that of the better one.
    assert row.low == 0 and row.high < 0.6


def test_unanswered_questions_are_left_out():
    one, other = sides(0.1)
    half = other._replace(right=np.where(other.kind == 0, np.nan, other.right))
    rows = rows_of(one, half)
    assert list(rows) == ["quarter", "mean over kinds", "all questions"]
    assert rows["all questions"].one == rows["quarter"].one


@pytest.fixture(scope="module")
def config():
    return load_config("configs/sprites.py:answers,smoke")


def written(folder, config, right, clips=8, **more):
    """An evaluated run, with these answers of each evaluation seed."""
    folder.mkdir()
    (folder / "config.json").write_text(to_json(config))
    number = right.shape[1]
    facts = {"kind": np.arange(number) % 7, "clip": np.arange(number) % clips}
    rows = [Scored("Aloe", "default", s, {"right": x, **facts}) for s, x in enumerate(right)]
    rows.append(Scored("chance", "default", 0, {"right": np.full(number, 0.25), **facts}))
    write_sample_scores(folder / "scores.csv", [""] * number, rows)
    return folder


def told(capsys, *arguments):
    assert paired.main([str(x) for x in arguments]) == 2
    return capsys.readouterr().err


def test_the_command(tmp_path, config, capsys):
    rng = np.random.default_rng(0)
    one = written(tmp_path / "one", config, np.ones((2, 56)))
    other = written(tmp_path / "other", config, np.round(rng.random((1, 56))))
    found = answered(one)
    assert found.kinds == tuple(config.model.kinds) and found.right.shape == (1, 56)
    assert paired.main([str(one), "--with", str(other)]) == 0
    out = capsys.readouterr().out
    assert "will_touch" in out and "100.0" in out and "a tie" not in out.splitlines()[-1]
    assert paired.main([str(one), str(one), "--with", str(other), "--row", "chance"]) == 0
    assert " 25.0  +75.0 [+75.0, +75.0]" in capsys.readouterr().out
    assert "no row 'chanse', only Aloe, chance; did you mean 'chance'" in told(
        capsys, one, "--with", other, "--row", "chanse"
    )
    fewer = written(tmp_path / "fewer", config, np.ones((1, 55)))
    assert "scored on other questions" in told(capsys, one, "--with", fewer)
    assert "cannot be read" in told(capsys, one, "--with", tmp_path / "none")
    lines = (other / "scores.csv").read_text().splitlines()
    old = [",".join(x for i, x in enumerate(line.split(",")) if i != 6) for line in lines]
    (other / "scores.csv").write_text("\n".join(old) + "\n")
    assert "does not tell the kind and the clip" in told(capsys, one, "--with", other)
