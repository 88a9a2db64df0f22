"""Adam with global-norm clipping, linear warm-up and a cosine (method section 6)."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def learning_rate_schedule(config: ConfigDict, num_steps: int) -> optax.Schedule:
    """Linear from 0 over `warmup_fraction` of the steps, then a cosine to `final_ratio` of the peak."""
    warmup = round(config.warmup_fraction * num_steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=num_steps,
        end_value=config.final_ratio * config.learning_rate,
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales by min(1, max_norm / (norm + 1e-6)), as the authors' program; optax's has no 1e-6."""

    def update(grads, state, params=None):
        del params
        factor = jnp.minimum(1.0, max_norm / (optax.tree.norm(grads) + 1e-6))
        return jax.tree.map(lambda g: g * factor, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def build_optimizer(config: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """The optimiser over all trained parameters. `clip_norm` 0 turns clipping off."""
    clip = clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, optax.adam(learning_rate_schedule(config, num_steps)))
