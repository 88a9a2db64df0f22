"""A pure training step and a pure evaluation forward pass, compiled for a mesh.

No other file computes a gradient.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array
from ml_collections import ConfigDict

from smoothsa_jax.config.values import image_size_of, is_absent
from smoothsa_jax.devices.compiling import at_precision, compiler_options
from smoothsa_jax.devices.mesh import (
    backend_of_mesh,
    make_mesh,
    persistent_sharding,
    replicated,
    spread,
)
from smoothsa_jax.devices.over_samples import over_samples
from smoothsa_jax.errors import UserError
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.asked import of_evaluation
from smoothsa_jax.models.backend import Backend
from smoothsa_jax.models.buffers import DRAWS, Updates
from smoothsa_jax.models.build import model_shapes
from smoothsa_jax.models.interfaces import Draws
from smoothsa_jax.models.parameters import (
    ModelDefinition,
    Parameters,
    frozen_patterns,
    place,
    shapes_in_place,
    split,
)
from smoothsa_jax.schedules import Schedules
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.task import MODEL, Task, run_task, sizes_of
from smoothsa_jax.training.optimizer import build_optimizer, learning_rate_schedules, norm_of
from smoothsa_jax.training.state import TrainState, create_state


@dataclasses.dataclass(frozen=True)
class Training:
    """Everything that a training loop needs: the initial state and the compiled functions.

    Attributes:
        task: what is trained and how it is scored.
        definitions: definition of the trained model, as "model", and of its companions by name.
        state: the initial state.
        frozen: the arrays that are never trained, including the companions'. If they come from
            elsewhere, these are only shapes until a run provides arrays (from
            `checkpoints.sources` or a checkpoint), so that no run uses untrained ones by mistake.
        train_step: (state, frozen, batch, key, draws=None) -> (state, metrics). The state is
            donated. Without `draws`, all random numbers come from the key.
        predict_on: (mesh, params, frozen, batch, key, match_paper) -> what the evaluator
            reads, compiled for a mesh.
        losses_on: (mesh, params, frozen, batch, key) -> the weighted losses (B,) of each sample,
            compiled for a mesh.
        mesh: the devices.
        frozen_from: what the frozen arrays are and where they come from, in words; saved in
            checkpoints.
    """

    task: Task
    definitions: dict[str, ModelDefinition]
    state: TrainState
    frozen: Parameters
    train_step: Callable
    predict_on: Callable
    losses_on: Callable
    mesh: Mesh
    frozen_from: str = ""

    @property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of a batch: samples over all devices of the mesh."""
        return spread(self.mesh)

    def predict(
        self,
        params: Parameters,
        frozen: Parameters,
        batch: dict[str, Array],
        key: Array,
        match_paper: bool = False,
    ) -> dict[str, Array]:
        """Call `predict_on` with this training's mesh."""
        return self.predict_on(self.mesh, params, frozen, batch, key, match_paper)

    def losses(
        self, params: Parameters, frozen: Parameters, batch: dict[str, Array], key: Array
    ) -> dict[str, Array]:
        """Call `losses_on` with this training's mesh."""
        return self.losses_on(self.mesh, params, frozen, batch, key)

    def features(self, params: Parameters, frozen: Parameters, video: Array) -> Array:
        """Encode pixels (B,T,H,W,3) that are on the mesh. This function is not compiled.

        Returns:
            Features (B,T,h,w,C).
        """

        def extract(arrays, video):
            model = self.definitions[MODEL].merge(*arrays, differentiated=False)
            found = model.encode(video)["features"]
            return found.reshape(*found.shape[:2], *model.encoder.grid, found.shape[-1])

        return over_samples(extract, self.mesh, 1, (params, frozen), video)

    @functools.cached_property
    def cast_frozen(self) -> Parameters:
        """The frozen arrays in the dtype that their model computes in, cast once for all steps."""
        return _cast(self.definitions, self.frozen)

    def cast(self, params: Parameters) -> Parameters:
        """Cast trained arrays to their model's dtype, once for many predictions with them."""
        return _cast(self.definitions, params)

    def place(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """Put the arrays of a batch that the task reads on the mesh, samples over all devices.

        With several processes, each passes its own part of the batch.

        Raises:
            UserError: the task does not accept the batch.
        """
        self.task.check_batch(batch)
        seen = {name: batch[name] for name in self.task.inputs if name in batch}
        return jax.make_array_from_process_local_data(self.batch_sharding, seen)


def build_training(
    config: ConfigDict,
    mesh: Mesh | None = None,
    backend: Backend | None = None,
    shapes_only: bool = False,
) -> Training:
    """Make the models, the optimizer and the compiled functions of a config.

    Args:
        config: the whole config.
        mesh: the devices; None: as `config.mesh` says.
        backend: the backend to compile for; None: that of the mesh.
        shapes_only: whether to use shapes instead of arrays, to compile for devices that are not
            present.

    Raises:
        UserError: the config is inconsistent or does not fit the devices.
    """
    mesh = mesh or make_mesh(config.mesh)
    backend = backend or backend_of_mesh(mesh)
    task = build_task(config)
    model = task.build(shapes_only)
    set_memory_options(model, config)
    patterns = frozen_patterns(config.weights)
    definition, params, frozen = split(model, config.dtype, backend, patterns)
    definitions, averaged = {MODEL: definition}, []
    for name, companion in config.companions.items():
        if is_absent(companion):
            continue
        definitions[name], arrays = _companion(name, companion, config, task, backend)
        if "average_of" in companion:
            averaged.append(name)
        else:
            frozen |= arrays
    programs = _Programs(config, mesh, task, definitions, tuple(averaged))
    create = lambda params, buffers: create_state(  # noqa: E731
        params, programs.optimizer, programs.averaged, buffers
    )
    first = params, programs.updates.buffers(model)
    state = jax.eval_shape(create, *first) if shapes_only else create(*first)
    places = persistent_sharding(mesh, state)
    return Training(
        task=task,
        definitions=definitions,
        state=shapes_in_place(state, places) if shapes_only else jax.device_put(state, places),
        frozen=place(frozen, persistent_sharding(mesh, frozen)),
        train_step=jax.jit(
            at_precision(programs.train_step, config),
            donate_argnums=0,
            out_shardings=(places, replicated(mesh)),
            compiler_options=compiler_options(config, backend_of_mesh(mesh)),
        ),
        predict_on=jax.jit(at_precision(programs.predict, config), static_argnums=(0, 5)),
        losses_on=jax.jit(at_precision(programs.sample_losses, config), static_argnums=0),
        mesh=mesh,
    )


class _Programs:
    """The pure functions of a config, before they are compiled.

    Args:
        config: the whole config.
        mesh: the devices of the training step.
        task: what is trained.
        definitions: of the trained model and its companions, by name.
        averaged: names of the companions that are moving averages of the trained model.
    """

    def __init__(
        self,
        config: ConfigDict,
        mesh: Mesh,
        task: Task,
        definitions: dict[str, ModelDefinition],
        averaged: tuple[str, ...],
    ):
        self.config, self.mesh, self.task = config, mesh, task
        self.definitions, self.averaged = definitions, averaged
        self.skeletons = {name: x.skeleton() for name, x in definitions.items()}
        self.updates = Updates(self.skeletons[MODEL], definitions[MODEL].frozen_parts)
        self.losses = build_losses(config.losses)
        self.losses.check_frames(config.data.get("num_frames") or 1)
        num_steps = config.train.num_steps
        settings = {"losses": self.losses.schedules, MODEL: task.schedules}
        self.schedules = Schedules(settings, num_steps)
        frozen = definitions[MODEL].frozen
        conditional = [name for name in self.updates.conditional if name not in frozen]
        names = [name for name in definitions[MODEL].names if name not in frozen]
        optimizer = build_optimizer(config.optimizer, num_steps, conditional, names)
        self.optimizer = optax.with_extra_args_support(optimizer)
        self.learning_rates = learning_rate_schedules(config.optimizer, num_steps)
        self.asked = of_evaluation(config.eval)

    def train_step(
        self,
        state: TrainState,
        frozen: Parameters,
        batch: dict[str, Array],
        key: Array,
        draws: Draws | None = None,
    ) -> tuple[TrainState, dict[str, Array]]:
        """Make one step; see `Training`."""
        task, mesh, parts = self.task, self.mesh, self.config.train.accumulate
        if draws is None:
            draws = task.draw(self.skeletons, key, sizes_of(batch), True)
        of_updates = None
        if self.updates:
            draws = dict(draws)
            # A key of their own: a model without buffers draws the same numbers.
            of_updates = draws.pop(DRAWS, None) or self.updates.draw(
                jax.random.fold_in(key, 2), sizes_of(batch)
            )
        scheduled = self.schedules.at(state.step)
        still = {**frozen, **state.averages, **state.buffers}

        # Frozen models run outside the differentiated function, so no activations are stored.
        inputs = (batch, draws)
        constants = over_samples(self._constants, mesh, parts, (state.params, still), inputs)
        constants = constants | task.targets(self.skeletons, batch, constants, draws)
        names = task.forward_inputs(constants)
        seen = {name: batch[name] for name in names if name in batch}

        def loss_function(params: Parameters) -> tuple[Array, tuple]:
            arrays, inputs = (params, still, scheduled[MODEL]), (seen, constants, draws)
            outputs = over_samples(self._forward, mesh, parts, arrays, inputs)
            terms = self.losses({**constants, **outputs}, batch, scheduled["losses"])
            kept = {name: x for name, x in outputs.items() if name in self._update_reads}
            return sum(terms.values()), (terms, kept)

        state, metrics = apply_gradients(
            loss_function,
            state,
            self.optimizer,
            self.learning_rates,
            mesh,
            self.config.optimizer.clip_by,
            lambda outputs: self._updated(state, still, outputs, of_updates),
        )
        averages = _averaged(state, self.config.companions)
        return state.replace(averages=averages), {**metrics, **task.monitor(constants)}

    @property
    def _update_reads(self) -> frozenset[str]:
        return self.updates.reads | {"slot_mask"} if self.updates else frozenset()

    def _updated(self, state, still, outputs, draws):
        """Return what the updates write, which gradients there are, and numbers for the log."""
        if not self.updates:
            return {}, {}, {}
        definition = dataclasses.replace(self.definitions[MODEL], dtype="float32")
        leaves = dict(zip(definition.leaves, definition.shapes, strict=True))

        def update(arrays, outputs, draws):
            # The parts that are not updated only have to be there.
            other = {name: jnp.zeros(x.shape, x.dtype) for name, x in leaves.items()}
            model = definition.merge(other, arrays, differentiated=False)
            return self.updates.gradients_of(outputs), *self.updates(model, outputs, draws)

        arrays = {**state.params, **still}
        arrays = {name: x for name, x in arrays.items() if self.updates.covers(name)}
        # Every device computes the whole update, which is small: it is the same on every mesh, and
        # nothing moves between devices within its loops.
        whole = jax.sharding.PartitionSpec()
        run = jax.shard_map(
            update, mesh=self.mesh, in_specs=whole, out_specs=whole, check_vma=False
        )
        return run(arrays, outputs, draws)

    def predict(
        self,
        mesh: Mesh,
        params: Parameters,
        frozen: Parameters,
        batch: dict[str, Array],
        key: Array,
        match_paper: bool,
    ) -> dict[str, Array]:
        """Return what the evaluator reads; see `Training`."""

        def look(arrays, inputs):
            models = self._merged(arrays, False)
            outputs = run_task(self.task, models, *inputs, match_paper, self.asked)
            return {name: outputs[name] for name in self.task.evaluator.outputs}

        draws = self.task.draw(self.skeletons, key, sizes_of(batch), False)
        return over_samples(look, mesh, 1, (params, frozen), (batch, draws))

    def sample_losses(
        self,
        mesh: Mesh,
        params: Parameters,
        frozen: Parameters,
        batch: dict[str, Array],
        key: Array,
    ) -> dict[str, Array]:
        """Return the loss of each sample, as at the end of training; see `Training`.

        The forward pass is that of training, with its random numbers: a decoder that sees all of
        its target, as at evaluation, would have next to no loss. Each sample is a batch of its own,
        so its losses do not depend on its neighbors.
        """
        scheduled = self.schedules.at(self.config.train.num_steps)

        def look(arrays, inputs):
            *arrays, of_model = arrays
            models = self._merged(arrays, False)
            outputs = run_task(self.task, models, *inputs, scheduled=of_model)
            reads = self.losses.reads | {"slot_mask"}
            return {name: x for name, x in outputs.items() if name in reads and x is not None}

        draws = self.task.draw(self.skeletons, key, sizes_of(batch), True)
        arrays = (params, frozen, scheduled[MODEL])
        outputs = over_samples(look, mesh, 1, arrays, (batch, draws))

        def of_sample(outputs, sample):
            alone = jax.tree.map(lambda x: x[None], (outputs, sample))
            return self.losses(*alone, scheduled["losses"])

        terms = jax.vmap(of_sample)(outputs, batch)
        return {"loss": sum(terms.values()), **{f"loss/{name}": x for name, x in terms.items()}}

    def _constants(self, arrays, inputs):
        batch, draws = inputs
        match_paper = self.config.train.match_paper
        return self.task.constants(self._merged(arrays, True), batch, draws, match_paper)

    def _forward(self, arrays, inputs):
        *arrays, scheduled = arrays
        through = (MODEL, *getattr(self.task, "through", ()))
        outputs = self.task.forward(self._merged(arrays, True, through), *inputs, scheduled)
        reads = self.losses.reads | self.updates.reads | {"slot_mask"}
        return {name: x for name, x in outputs.items() if name in reads}

    def _merged(
        self,
        arrays: Sequence[Parameters],
        differentiated: bool,
        through: tuple[str, ...] = (MODEL,),
    ) -> dict[str, nnx.Module]:
        flat = {name: x for tree in arrays for name, x in tree.items()}
        for average in self.averaged:
            # There is one copy of the frozen arrays. At evaluation, where averages are not given,
            # the trained model stands for them.
            names = self.definitions[MODEL].names
            flat = {f"{average}.{name}": flat[name] for name in names} | flat
        return {
            name: found.merge(flat, differentiated=differentiated and name in through)
            for name, found in self.definitions.items()
        }


def apply_gradients(
    loss_function: Callable[[Parameters], tuple[Array, tuple]],
    state: TrainState,
    optimizer: optax.GradientTransformationExtraArgs,
    learning_rates: Mapping[str, optax.Schedule],
    mesh: Mesh,
    clip_by: str,
    update_buffers: Callable[[dict[str, Array]], tuple[dict, dict, dict]],
) -> tuple[TrainState, dict[str, Array]]:
    """Make one gradient step; called inside a jitted step.

    Args:
        loss_function: params -> (loss, (its terms by name, the outputs that updates read)).
        state: the state before the step.
        optimizer: the optimizer.
        learning_rates: the schedules, for the metrics, by name there.
        mesh: the devices.
        clip_by: which size of the gradient is clipped, and logged; see `optimizer.norm_of`.
        update_buffers: outputs -> (name -> whether that parameter has a gradient, new values of
            buffers and parameters, numbers for the log).

    Returns:
        The new state, and metrics: losses, size of the gradient, learning rates.
    """
    (total, (losses, outputs)), grads = jax.value_and_grad(loss_function, has_aux=True)(
        state.params
    )
    grads = jax.lax.with_sharding_constraint(grads, persistent_sharding(mesh, grads))
    has_gradient, written, numbers = update_buffers(outputs)
    updates, opt_state = optimizer.update(
        grads, state.opt_state, state.params, has_gradient=has_gradient
    )
    metrics = {
        "loss": total,
        **{f"loss/{name}": loss for name, loss in losses.items()},
        "grad_norm": norm_of(grads, clip_by),
        **{name: rate(state.step) for name, rate in learning_rates.items()},
        **numbers,
    }
    # What an update wrote is where the optimizer starts from: it belongs to the forward pass.
    written_in = lambda arrays: {name: written.get(name, x) for name, x in arrays.items()}  # noqa: E731
    params = optax.apply_updates(written_in(state.params), updates)
    buffers = written_in(state.buffers)
    return TrainState(state.step + 1, params, opt_state, buffers, state.averages), metrics


def set_memory_options(model: nnx.Module, config: ConfigDict) -> None:
    """Pass `train.remat` and `train.scan_unroll` to a model that has such options."""
    if hasattr(model, "set_memory_options"):
        model.set_memory_options(config.train.remat, config.train.scan_unroll)


def _companion(
    name: str, companion: ConfigDict, config: ConfigDict, task: Task, backend: Backend
) -> tuple[ModelDefinition, Parameters]:
    """Return a companion's definition and the shapes of its arrays, which come from elsewhere."""
    of_model = companion.get("model") or config.model
    slot_model = getattr(task, "slot_model", None)
    model = model_shapes(of_model, image_size_of(config), slot_model)
    if hasattr(model, "set_memory_options"):
        # No gradient passes through it, so there is nothing to recompute.
        model.set_memory_options("none", config.train.scan_unroll)
    definition, _, arrays = split(model, config.dtype, backend, ("*",), f"{name}.")
    return definition, arrays


def _averaged(state: TrainState, companions: Mapping[str, Any]) -> Parameters:
    """Return the moving averages after a step.

    Raises:
        UserError: a companion averages something other than the trained model.
    """
    averages = dict(state.averages)
    for name, companion in companions.items():
        if "average_of" not in companion:
            continue
        if companion["average_of"] != MODEL:
            raise UserError(
                f"companions.{name}.average_of is {companion['average_of']!r}; expected {MODEL!r}, "
                "the trained model"
            )
        for key, x in state.params.items():
            old, decay = averages[f"{name}.{key}"], companion["decay"]
            averages[f"{name}.{key}"] = decay * old + (1.0 - decay) * x
    return averages


def _cast(definitions: Mapping[str, ModelDefinition], arrays: Parameters) -> Parameters:
    if all(definition.dtype == "float32" for definition in definitions.values()):
        return arrays

    def cast(arrays: Parameters) -> Parameters:
        for definition in definitions.values():
            arrays = definition.cast(arrays)
        return arrays

    places = {name: x.sharding for name, x in arrays.items()}
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in arrays.values()):
        return shapes_in_place(jax.eval_shape(cast, arrays), places)
    return jax.jit(cast, out_shardings=places)(arrays)
