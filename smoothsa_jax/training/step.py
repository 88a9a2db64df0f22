"""One pure training step and one pure evaluation forward, compiled for a mesh."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array
from ml_collections import ConfigDict

from smoothsa_jax.models.build import build_model
from smoothsa_jax.models.draws import Draws, sample_evaluation_draws, sample_training_draws
from smoothsa_jax.models.parameters import ModelDefinition, Parameters, place, split
from smoothsa_jax.objectives.objective import LOSS_INPUTS, active_terms, weighted_losses
from smoothsa_jax.objectives.optimizer import build_optimizer, learning_rate_schedule
from smoothsa_jax.training.compiling import compiler_options
from smoothsa_jax.training.mesh import kept, make_mesh, replicated, spread
from smoothsa_jax.training.over_samples import over_samples
from smoothsa_jax.training.state import TrainState, create_state

MODEL_INPUTS = ("video", "features", "boxes", "slot_mask")  # a batch has pixels or stored features
PREDICTED = ("slots", "attention", "decoder_attention")  # what else XLA need not compute


@dataclasses.dataclass(frozen=True)
class Training:
    """All that a loop needs: the first state, and the compiled functions.

    Attributes:
        frozen: the backbone's arrays. Where they come from elsewhere, shapes only until a run gives them (`Task.begin`, or a
            checkpoint), so that nothing can run on untrained ones by mistake.
        frozen_from: what they are and where from, in words; kept in checkpoints.
        train_step: (state, frozen, batch, key, draws=None) -> (state, metrics). The state is donated. Without
            `draws` all randomness is sampled from the key.
        predict: (params, frozen, batch, key) -> the model's slots and attentions at evaluation.
        predict_on: how the outputs' samples are spread -> the same on those devices.
    """

    definition: ModelDefinition
    state: TrainState
    frozen: Parameters
    train_step: Callable
    predict: Callable
    grid: tuple[int, int]
    mesh: Mesh
    batch_sharding: NamedSharding
    replicated: NamedSharding
    frozen_from: str = dataclasses.field(default="", kw_only=True)
    predict_on: Callable | None = dataclasses.field(default=None, kw_only=True)

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, Array]:
        """Puts what the model sees of a batch on the mesh, samples spread over all devices.

        Where several processes train together, each gives its own part of the batch.
        """
        seen = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        return jax.make_array_from_process_local_data(self.batch_sharding, seen)


def descend(
    loss_function: Callable[[Parameters], tuple[Array, dict[str, Array]]],
    state: TrainState,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
) -> tuple[TrainState, dict[str, Array]]:
    """One update down the gradient of `loss_function`: params -> (loss, its terms by name); made to be called in a jitted step."""
    (total, losses), grads = jax.value_and_grad(loss_function, has_aux=True)(state.params)
    grads = jax.lax.with_sharding_constraint(grads, kept(mesh, grads))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {
        "loss": total,
        **{f"loss/{name}": loss for name, loss in losses.items()},
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": schedule(state.step),
    }
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), metrics


def build_training(config: ConfigDict) -> Training:
    """Builds the model, the optimiser and the compiled functions of a config.

    Raises:
        UserError: a config that does not fit together or does not fit the devices.
    """
    size = config.data.image_size
    image_size = (size, size) if isinstance(size, int) else tuple(size)

    model = build_model(config.model, image_size, config.seed)
    model.trade(config.train.get("remat", "none"), config.train.get("scan_unroll", 1))
    definition, params, frozen = split(model, config.dtype)
    grid = model.backbone.grid
    num_tokens = model.backbone.num_tokens
    history = 2 if model.transition is None else model.transition.history
    optimizer = build_optimizer(config.optimizer, config.train.num_steps)
    schedule = learning_rate_schedule(config.optimizer, config.train.num_steps)
    detach_until = config.model.initializer.detach_until * config.train.num_steps
    slot_size = config.model.slot_attention.slot_size
    weights = active_terms(config.loss, config.model.initializer.warmer, config.data.num_frames)
    parts = config.train.get("accumulate", 1)
    mesh = make_mesh(config.mesh)

    def sample(key: Array, batch: dict[str, Array]) -> Draws:
        return sample_training_draws(
            key,
            *batch["slot_mask"].shape,
            slot_size,
            num_frames=batch["boxes"].shape[1],
            num_tokens=num_tokens,
            history=history,
        )

    def extract(arrays, video):
        return definition.merge(*arrays).extract(video)

    def forward(arrays, inputs):
        *arrays, detach = arrays
        outputs = definition.merge(*arrays)(*inputs, detach)
        return {name: outputs[name] for name in LOSS_INPUTS if name in outputs}

    def train_step(
        state: TrainState,
        frozen: Parameters,
        batch: dict[str, Array],
        key: Array,
        draws: Draws | None = None,
    ) -> tuple[TrainState, dict[str, Array]]:
        if draws is None:
            draws = sample(key, batch)
        mask = batch["slot_mask"]

        # The backbone stands outside the differentiated function and stores no activations.
        arrays = (state.params, frozen)
        if "features" in batch:
            features = batch["features"].astype(jnp.float32)
        else:
            features = over_samples(extract, mesh, parts, arrays, batch["video"])

        def loss_function(params):
            arrays = (params, frozen, state.step < detach_until)
            inputs = (features, draws, batch["boxes"], mask)
            outputs = over_samples(forward, mesh, parts, arrays, inputs)
            losses = weighted_losses({**outputs, "features": features}, mask, weights)
            return sum(losses.values()), losses

        return descend(loss_function, state, optimizer, schedule, mesh)

    def predict(
        params: Parameters, frozen: Parameters, batch: dict[str, Array], key: Array
    ) -> dict[str, Array]:
        model = definition.merge(params, frozen)
        draws = sample_evaluation_draws(key, *batch["slot_mask"].shape, slot_size)
        outputs = model(model.extract(batch["video"]), draws, batch["boxes"], batch["slot_mask"])
        return {name: outputs[name] for name in PREDICTED}

    return Training(
        definition=definition,
        grid=grid,
        **on_mesh(mesh, config, create_state(params, optimizer), frozen, train_step, predict),
    )


def on_mesh(
    mesh: Mesh,
    config: ConfigDict,
    state: TrainState,
    frozen: Parameters,
    train_step: Callable,
    predict: Callable,
    **of_predict: Any,
) -> dict[str, Any]:
    """The fields of a `Training` that have to do with devices: arrays in their places, functions compiled for them.

    Args:
        of_predict: options of `jax.jit` for `predict`, such as its static arguments.
    """
    places, whole, samples = kept(mesh, state), replicated(mesh), spread(mesh)

    @functools.cache
    def predict_on(samples: NamedSharding) -> Callable:
        return jax.jit(predict, out_shardings=samples, **of_predict)

    return {
        "state": jax.device_put(state, places),
        "frozen": place(frozen, kept(mesh, frozen)),
        "train_step": jax.jit(
            train_step,
            donate_argnums=0,
            out_shardings=(places, whole),
            compiler_options=compiler_options(config),
        ),
        "predict": predict_on(samples),
        "predict_on": predict_on,
        "mesh": mesh,
        "batch_sharding": samples,
        "replicated": whole,
    }
