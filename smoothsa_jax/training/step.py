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

from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.devices.compiling import at_precision, compiler_options
from smoothsa_jax.devices.mesh import (
    backend_of_mesh,
    make_mesh,
    persistent_sharding,
    replicated,
    spread,
)
from smoothsa_jax.devices.over_samples import over_samples
from smoothsa_jax.losses.build import LOSS_INPUTS, active_terms, weighted_losses
from smoothsa_jax.models.backend import Backend
from smoothsa_jax.models.build import build_model, build_shapes
from smoothsa_jax.models.draws import Draws, sample_evaluation_draws, sample_training_draws
from smoothsa_jax.models.parameters import (
    ModelDefinition,
    Parameters,
    place,
    shapes_in_place,
    split,
)
from smoothsa_jax.training.optimizer import build_optimizer, learning_rate_schedule
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
        predict_on: (mesh, params, frozen, batch, key) -> the model's slots and attentions at evaluation, compiled for a mesh.
    """

    definition: ModelDefinition
    state: TrainState
    frozen: Parameters
    train_step: Callable
    predict_on: Callable
    grid: tuple[int, int]
    mesh: Mesh
    frozen_from: str = dataclasses.field(default="", kw_only=True)

    @property
    def batch_sharding(self) -> NamedSharding:
        """How the samples of a batch lie on the mesh."""
        return spread(self.mesh)

    def predict(
        self,
        params: Parameters,
        frozen: Parameters,
        batch: dict[str, Array],
        key: Array,
        *options: Any,
    ) -> dict[str, Array]:
        """What `predict_on` gives on this training's mesh."""
        return self.predict_on(self.mesh, params, frozen, batch, key, *options)

    def features(self, params: Parameters, frozen: Parameters, video: Array) -> Array:
        """What the backbone gives of pixels (B,T,H,W,3) that were placed: (B,T,M,C). Not compiled."""
        extract = lambda arrays, video: self.definition.merge(*arrays).extract(video)  # noqa: E731
        return over_samples(extract, self.mesh, 1, (params, frozen), video)

    @property
    def frozen_definition(self) -> ModelDefinition:
        """The model that the frozen arrays belong to."""
        return self.definition

    @functools.cached_property
    def cast_frozen(self) -> Parameters:
        """The frozen arrays in the dtype that they are used in, cast once for all steps."""
        return _cast(self.frozen_definition, self.frozen)

    def cast(self, params: Parameters) -> Parameters:
        """Trained arrays in the dtype that they are used in, for many predictions with the same ones."""
        return _cast(self.definition, params)

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, Array]:
        """Puts what the model sees of a batch on the mesh, samples spread over all devices.

        Where several processes train together, each gives its own part of the batch.
        """
        seen = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        return jax.make_array_from_process_local_data(self.batch_sharding, seen)


def _cast(definition: ModelDefinition, arrays: Parameters) -> Parameters:
    if definition.dtype == "float32":
        return arrays
    places = {name: x.sharding for name, x in arrays.items()}
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in arrays.values()):
        return shapes_in_place(jax.eval_shape(definition.cast, arrays), places)
    return jax.jit(definition.cast, out_shardings=places)(arrays)


def apply_gradients(
    loss_function: Callable[[Parameters], tuple[Array, dict[str, Array]]],
    state: TrainState,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
) -> tuple[TrainState, dict[str, Array]]:
    """One update down the gradient of `loss_function`: params -> (loss, its terms by name); made to be called in a jitted step."""
    (total, losses), grads = jax.value_and_grad(loss_function, has_aux=True)(state.params)
    grads = jax.lax.with_sharding_constraint(grads, persistent_sharding(mesh, grads))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {
        "loss": total,
        **{f"loss/{name}": loss for name, loss in losses.items()},
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": schedule(state.step),
    }
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), metrics


def build_training(
    config: ConfigDict,
    mesh: Mesh | None = None,
    backend: Backend | None = None,
    shapes_only: bool = False,
) -> Training:
    """Builds the model, the optimiser and the compiled functions of a config.

    Args:
        mesh: default: of the devices that there are, as `config.mesh` says.
        backend: what to compile for; default: the mesh's devices.
        shapes_only: shapes stand in place of all arrays, to lower and compile for devices that are not there.

    Raises:
        UserError: a config that does not fit together or does not fit the devices.
    """
    mesh = mesh or make_mesh(config.mesh)
    if shapes_only:
        model = build_shapes(config.model, image_size_of(config))
    else:
        model = build_model(config.model, image_size_of(config), config.seed)
    model.set_memory_options(config.train.get("remat", "none"), config.train.get("scan_unroll", 0))
    definition, params, frozen = split(model, config.dtype, backend or backend_of_mesh(mesh))
    grid = model.backbone.grid
    num_tokens = model.backbone.num_tokens
    history = 2 if model.transition is None else model.transition.history
    optimizer = build_optimizer(config.optimizer, config.train.num_steps)
    create = functools.partial(create_state, optimizer=optimizer)
    schedule = learning_rate_schedule(config.optimizer, config.train.num_steps)
    detach_until = config.model.initializer.detach_until * config.train.num_steps
    slot_size = config.model.slot_attention.slot_size
    weights = active_terms(config.loss, config.model.initializer.warmer, config.data.num_frames)
    parts = config.train.get("accumulate", 1)

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

        return apply_gradients(loss_function, state, optimizer, schedule, mesh)

    def look(arrays, inputs):
        model, (batch, draws) = definition.merge(*arrays, differentiated=False), inputs
        outputs = model(model.extract(batch["video"]), draws, batch["boxes"], batch["slot_mask"])
        return {name: outputs[name] for name in PREDICTED}

    def predict(
        mesh: Mesh, params: Parameters, frozen: Parameters, batch: dict[str, Array], key: Array
    ) -> dict[str, Array]:
        draws = sample_evaluation_draws(key, *batch["slot_mask"].shape, slot_size)
        return over_samples(look, mesh, 1, (params, frozen), (batch, draws))

    state = jax.eval_shape(create, params) if shapes_only else create(params)
    return Training(
        definition=definition,
        grid=grid,
        predict_on=jax.jit(at_precision(predict, config), static_argnums=0),
        **on_mesh(mesh, config, state, frozen, train_step, shapes_only),
    )


def on_mesh(
    mesh: Mesh,
    config: ConfigDict,
    state: TrainState,
    frozen: Parameters,
    train_step: Callable,
    shapes_only: bool = False,
) -> dict[str, Any]:
    """The fields of a `Training` that have to do with devices: arrays (or shapes) in their places, the step compiled for them."""
    places = persistent_sharding(mesh, state)
    return {
        "state": shapes_in_place(state, places) if shapes_only else jax.device_put(state, places),
        "frozen": place(frozen, persistent_sharding(mesh, frozen)),
        "train_step": jax.jit(
            at_precision(train_step, config),
            donate_argnums=0,
            out_shardings=(places, replicated(mesh)),
            compiler_options=compiler_options(config, backend_of_mesh(mesh)),
        ),
        "mesh": mesh,
    }
