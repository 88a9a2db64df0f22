"""Shares of a split, scored apart and merged, and work in pieces: what needs no Ray."""

import pickle
import types

import jax
import numpy as np
import pytest
from run_of_samples import untrained_run, written

from data import finished, shards, workers
from data.family import Options
from smoothsa_jax.bulk import pieces
from smoothsa_jax.bulk.evaluate import ScoreShare
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.answers import AnswerEvaluator
from smoothsa_jax.evaluation.split import whole_split
from smoothsa_jax.training import evaluating
from smoothsa_jax.training.evaluating import FIRST, TRAINED, Pass


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained_run(tmp_path_factory.mktemp("runs") / "run", 1)


@pytest.mark.more
def test_merged_shares_are_the_scores_of_the_whole(run):
    """Four batches, of which the last one is not full, in three shares and in six."""
    evaluating.evaluate_run(run)
    expected, asked, workers = written(run), set(), []
    assert len(expected) == 2 + 3
    for count in (3, 6):

        def workers_of(config, task, checkpoint, count=count):
            workers.append(workers[0] if workers else ScoreShare(run, config, checkpoint.step))
            score = workers[0]

            def shares(weights, wanted):
                asked.add((weights, wanted.baselines))
                # As on another machine, and in the order in which they happen to be ready.
                sent = pickle.dumps(wanted)
                found = dict(
                    score((weights, pickle.loads(sent), i, count)) for i in (*range(count),)[::-1]
                )
                return [found[i] for i in range(count)]

            return shares

        for name in ("scores.json", "scores.csv"):
            (run / name).unlink()
        evaluating.evaluate_run(run, workers_of=workers_of)
        assert written(run) == expected
    assert asked == {(TRAINED, False), (FIRST, False), (FIRST, True)}


@pytest.fixture(scope="module")
def score(run):
    checkpoint, config = evaluating.restored(run, lambda stored: stored)
    return ScoreShare(run, config, checkpoint.step)


def test_a_share_has_the_random_numbers_of_its_batches(score):
    _, alone = score((TRAINED, Pass("test", 7, (3,)), 0, 1))
    _, third = score((TRAINED, Pass("test", 7, (3,)), 2, 4))
    for name, values in third.found.scores.items():
        np.testing.assert_array_equal(values, alone.found.scores[name][:, 4:6])
    others = alone.found.scores["mbo"][:, :2]
    assert not np.array_equal(third.found.scores["mbo"], others), "each batch has its own scores"
    assert third.num_samples == 7
    one = whole_split([alone.found], 2, 7)
    assert one.names == alone.found.names


def test_too_little_memory_for_a_share_is_one_line(score, monkeypatch):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.")

    monkeypatch.setattr(evaluating, "share_of", exhausted)
    with pytest.raises(UserError, match="--config.eval.batch_size=1"):
        score((TRAINED, Pass("test", 7, (3,)), 0, 1))


def test_a_chosen_evaluator_can_be_sent():
    settings = {"kinds": ("contact",), "answers": ("no", "yes"), "rows": ("other",)}
    evaluator = AnswerEvaluator(
        **settings, has_choices=False, protocol={}, thresholds={"model": 0.4}
    )
    sent = pickle.loads(pickle.dumps(Pass("test", None, evaluator=evaluator))).evaluator
    assert sent.protocol == evaluator.protocol and sent.protocol["threshold"] == 0.4


class Halves:
    """Work that refuses odd numbers; each process makes it once."""

    made = 0

    def __init__(self, label):
        Halves.made += 1
        self._label = label

    def __call__(self, number):
        if number < 0:
            raise FileNotFoundError(2, "No such file or directory", "numbers")
        if number % 2:
            raise UserError(f"{number} is odd; give an even one")
        return self._label, number // 2


def test_a_worker_makes_its_work_once_and_tells_errors_as_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr(pieces, "_held", None)
    monkeypatch.setattr(Halves, "made", 0)
    name = f"{Halves.__module__}:{Halves.__name__}"

    def did(work, piece):
        return pieces._result(pieces._do(work, pickle.dumps(piece)))

    with pieces.marked("--out=here", tmp_path) as mark:
        work = pieces._work(name, ("half",), mark)
        assert [did(work, n) for n in (2, 4, 8)] == [("half", 1), ("half", 2), ("half", 4)]
        assert Halves.made == 1
        with pytest.raises(UserError, match="^3 is odd; give an even one$"):
            did(work, 3)
        with pytest.raises(FileNotFoundError) as found:
            did(work, -1)
        assert (found.value.filename, found.value.strerror) == (
            "numbers",
            "No such file or directory",
        )
        assert did(pieces._work(name, ("other",), mark), 2) == ("other", 1) and Halves.made == 2
        monkeypatch.setattr(pieces, "_held", None)
        mark.file.unlink()
        with pytest.raises(UserError, match="does not see --out=here"):
            did(work, 2)
    assert not list(tmp_path.iterdir())


def test_two_runs_in_one_folder_keep_their_marks(tmp_path):
    with pieces.marked("--workdir=a", tmp_path) as first:
        with pieces.marked("--workdir=a", tmp_path) as second:
            assert first.file.exists() and second.file.exists()
        assert first.file.exists() and not second.file.exists()


def test_the_mark_of_a_killed_run_goes_with_its_notes(tmp_path):
    with finished.only_one(tmp_path):
        (tmp_path / finished.UNFINISHED / f"{pieces.MARK}0").touch()
        finished.remove_notes(tmp_path, {})
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


def test_a_shard_made_twice_at_once_is_whole(tmp_path):
    """Also by processes of one number, on two machines."""
    path, second = tmp_path / "x.array_record", []

    def records():
        yield b"a"
        second.append(shards.write_shard(path, [b"a", b"b"]))
        assert shards.sha256_of(path) == second[0][2]
        yield b"b"

    assert shards.write_shard(path, records()) == second[0]
    assert shards.sha256_of(path) == second[0][2] and list(tmp_path.iterdir()) == [path]


def test_tasks_end_before_the_caller_leaves_ray(tmp_path, monkeypatch):
    ended = []

    def notes(*_):
        try:
            yield {"num_examples": 1, "skipped": []}
        finally:
            ended.append(True)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "_on_ray", notes)
    monkeypatch.setattr(workers.tqdm, "update", interrupted)
    plan = types.SimpleNamespace(features={})
    with pytest.raises(KeyboardInterrupt) as found:  # which holds the frames
        workers.make_shards("x", "x", Options(), plan, tmp_path, {}, 1, 0, cluster=object())
    assert found and ended
