"""Answers: a readout answers questions about clips, from slots of an earlier run (SlotFormer's
Aloe, Wu et al. 2023, arXiv 2210.05861).

    python main.py --config=configs/sprites.py               # the slots
    python main.py --config=configs/sprites.py:answers       # the readout, on runs/sprites

The earlier run has the same data set and the same other words, in its default workdir;
`--config.companions.slot_model.source=` names another one. Its slots are stored in the workdir
before the training begins. With predicted frames after the observed ones:

    python main.py --config=configs/sprites.py:dynamics      # the rollouter
    python main.py --config=configs/sprites.py:answers --workdir=runs/sprites_answers_ahead \\
        --config.companions.rollouter.source=runs/sprites_dynamics

Only data sets with questions have this word.
"""

from ml_collections import ConfigDict

from configs import base

KIND = "task"


def fits(data: base.DataSet) -> bool:
    return data.questions is not None


def apply(config: ConfigDict, data: base.DataSet, source: str) -> None:
    base.refuse_pictures(data, "Answers")
    questions, title = data.questions, config.title
    config.task, config.title = "answers", f"Aloe on {title}"
    config.companions = ConfigDict(
        {"slot_model": {"source": source}, "rollouter": {"source": None}}
    )
    config.model = ConfigDict(
        {
            "readout": {
                "name": "aloe",
                "width": 144,
                "num_layers": 12,
                "num_heads": 8,
                "mlp_size": 512,
                "word_size": 14,
                "hidden_size": 128,
                "question_length": questions.question_length,
                "choice_length": questions.choice_length,
                "positions": "time",
                "position_scale": 0.0,
                "dropout_rate": 0.1,
            },
            "future": questions.future,
            "words": questions.words,
            "answers": questions.answers,
            "kinds": questions.kinds,
            "beside": questions.beside,
        }
    )
    if questions.readout is not None:
        config.model.readout = ConfigDict(questions.readout)
    losses = {"answer": {"weight": 1.0}, "beside": {"weight": 1.0}}
    if questions.choice_length:
        losses["choice"] = {"weight": 1.0}
    config.losses = ConfigDict(losses)
    kept = ("image_size", "interpolation", "min_objects", "max_objects", "seed")
    kept += ("boxes", "background_box")
    of_clips = {key: config.data[key] for key in kept if key in config.data}
    config.data = ConfigDict({**of_clips, **questions.data, "slots": "auto"})
    base.train_on_slots(config, peak=1e-3, warmup=0.1)
    config.train.update(num_steps=240_000, batch_size=256)
    config.eval.update(observed=None, batch_size=128)
    config.eval.update(num_frames=None, num_samples=None, num_pictures=0)  # frames as in training
    config.eval.validation_samples = 4096
    config.checkpoint.update(every=6_000, best_metric="accuracy", best_mode="max")
    config.update(questions.settings)
    if data.small is not None:
        _make_small(config)


def _make_small(config: ConfigDict) -> None:
    """The embedded task: minutes on two cores."""
    config.model.readout.update(width=64, num_layers=2, num_heads=4, mlp_size=128, hidden_size=64)
    config.model.readout.dropout_rate = 0.0  # its random numbers take half as long as all the rest
    # From positions of zero and at half this rate, a readout of the true state learns about motion
    # and depth later than in these steps.
    config.model.readout.position_scale = 0.5
    config.optimizer.learning_rate.peak = 2e-3
    # 8,192 questions are learned by heart: a readout of the true state then answers 99 % of them
    # and 51 % of those of test; with these, 60 to 64 % of those of test.
    config.data.num_samples = 65_536
    # As good as 2,000 steps of 128, in half the time: what a step keeps fits into the caches.
    config.train.update(num_steps=3_000, batch_size=64)
    config.eval.validation_samples = 512
    config.checkpoint.every = 1000
