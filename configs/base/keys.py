"""Every key that all runs have, with its default."""

from ml_collections import ConfigDict

# Linear from 0 to the peak over this share of all steps, then a cosine.
LEARNING_RATE = {"schedule": "warmup_cosine", "peak": 2e-4, "warmup": 0.05, "end_ratio": 1e-3}


def defaults(name: str, *, num_steps: int, batch_size: int) -> ConfigDict:
    """Every key that all runs have, with its default; `data`, `model` and `losses` are empty."""
    return ConfigDict(
        {
            "name": name,  # default workdir: runs/<name>
            "title": "",  # in tables, plots and reports
            "task": "discovery",
            "seed": 0,
            "dtype": "float32",  # or bfloat16
            "matmul_precision": "default",  # of float32 products; or high, highest
            "data": {},
            "model": {},
            "losses": {},
            "companions": {},  # other models that take part: a trained run or a moving average
            "weights": {},  # arrays that come from elsewhere, and which of them are frozen
            "optimizer": {
                "learning_rate": LEARNING_RATE,
                # Arrays with a learning rate of their own: name -> {"of": patterns of their names,
                # "learning_rate": a number or a schedule}.
                "rates": {},
                "clip_norm": 1.0,  # of the gradient; 0: no clipping
                "clip_by": "norm",  # the global norm; or largest, the largest entry
            },
            "train": {
                "num_steps": num_steps,
                "batch_size": batch_size,
                "accumulate": 1,  # parts that a batch is computed in, with the same result
                "num_threads": 8,
                "num_workers": 0,
                "remat": "none",  # or recurrence, decoder, all: less memory, more time
                "scan_unroll": 0,  # frames unrolled in a row; 0: all on a GPU, 1 elsewhere
                # Every sample gets as many slots as the one of its batch with the most boxes.
                "match_paper": False,
                "xla_flags": "",  # for the training step on a GPU, as in XLA_FLAGS
            },
            "log": {"every": 100, "wandb": None},
            "eval": {
                "split": "validation",
                "num_samples": None,  # None: all
                "num_frames": None,  # -1: whole videos; -24: at most their first 24 frames
                # Score windows of so many frames in place of whole videos. At the end of a video,
                # the last window moves "back" to fit, or is left out ("drop"), or is shorter
                # ("keep"). Only "keep" scores videos that are shorter than a window.
                "windows": None,
                "window_rest": "back",
                "num_slots": None,  # None: as in training; more than that go with `prune`
                "iterations": None,  # 6: on each frame; (6, 2): on the first and on later ones
                # Leave out redundant slots, those of a cosine distance up to this: a number from 0
                # to 2, auto, or None. "slots" that stay, or their "queries", are aggregated once
                # more; or "none": as they are; or "merge": masks are united.
                "prune": None,
                "prune_restart": "slots",
                "prune_iterations": 1,
                "prune_video": "fixed",  # by the first frame; or renewed on each frame
                "batch_size": batch_size,
                "seeds": (0,),
                "masks": "decoder",  # or aggregator: whose masks are scored
                "score_at": None,  # at so many pixels a side; None: at the size of the labels
                "per_frame": False,  # also score each frame by itself: image_ari, ...
                "foreground": False,  # also mBO and mIoU without background: fg_mbo, fg_miou
                "skip_frames": 0,  # frames at the start of each clip that are not scored
                "count_segments": False,  # also their number: segments_found, count_error
                "observed": None,  # of dynamics: frames before those that are predicted
                "lpips": "",  # of dynamics: a folder with LPIPS's files, to score pixels by it, too
                "match_paper": False,
                "background_column_always": False,  # of match_paper
                "baselines": False,  # k-means on every sample takes longer than the model
                "num_pictures": 8,
                "validation_samples": 128,
                "checkpoint": "latest",  # or best
            },
            "checkpoint": {
                "every": max(num_steps // 40, 1),  # validates as often
                "max_to_keep": 3,
                "best_metric": "fg_ari",
                "best_mode": "max",
            },
            "mesh": {"data": -1, "fsdp": 1},  # devices; -1: all that there are
        }
    )
