"""The number of programs that a whole run compiles."""

import collections
import logging
import re
from pathlib import Path

import jax
import pytest
import run_config
from recipes import quick

from smoothsa_jax.config.load import load_config
from smoothsa_jax.training import loop

SPRITES = Path(__file__).parent.parent / "configs" / "sprites.py"


SYSTEMS = ["image,dias", "image,metaslot", "gaussian,randsfq", "gaussian,slotcontrast", "videosaur"]


@pytest.mark.more
@pytest.mark.parametrize("words", quick(["", *SYSTEMS], ""))
def test_a_whole_run_compiles_each_program_once(words, tmp_path, caplog):
    """Training with validations, and an evaluation by both protocols with a partial last batch.

    Which slots are pruned or stay, which pairs are drawn and which codes are used changes nothing.
    """
    config = run_config.get_config("image")
    if words:
        config = load_config(f"{SPRITES}:{words},smoke")
    config.data.num_samples = 6
    config.train.update(num_steps=5, batch_size=2)
    config.checkpoint.update(every=2, best_metric="fg_ari", best_mode="max")
    config.eval.update(seeds=(0, 1), match_paper=True, baselines=False, validation_samples=3)
    jax.clear_caches()  # what other tests of this process have compiled
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        loop.train(config, tmp_path / "run")
    compiling = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling ")]
    names = [re.match(r"Compiling (?:jit\()?(\w+)", line).group(1) for line in compiling]
    compiled = collections.Counter(names)
    assert [compiled[name] for name in ("train_step", "predict", "_counted")] == [1, 1, 1]
    # After the first step nothing is compiled a second time, of any size.
    later = collections.Counter(compiling[names.index("train_step") :])
    assert not {line: count for line, count in later.items() if count > 1}
