"""Recognition as the loop sees it: a head trained on the slots of a frozen SmoothSA (method section 6).

The config is one of SmoothSA with a part `recognition`:

    workdir       of the trained SmoothSA; read when a run begins, then its weights are in the run's own checkpoints
    num_classes   categories are 0 .. num_classes - 1
    dropout_rate  of the head
    match_paper   train as the authors do: their slip in the matching, and the frozen model in training mode

and with `loss.category`, `loss.box` in place of SmoothSA's terms. With `eval.match_paper` both matchings are scored; at
evaluation the frozen model is always in evaluation mode.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.read import FOLDER, refuse_different, restore_latest, restore_state
from smoothsa_jax.config.values import differences, image_size_of
from smoothsa_jax.devices.compiling import at_precision
from smoothsa_jax.devices.mesh import backend_of_mesh, make_mesh, replicated
from smoothsa_jax.devices.over_samples import over_samples
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.recognition import Targets, count, targets_of_slots
from smoothsa_jax.inputs import NO_SEGMENT
from smoothsa_jax.losses.recognition import box_loss, category_loss
from smoothsa_jax.models.backend import Backend
from smoothsa_jax.models.build import build_shapes
from smoothsa_jax.models.draws import Draws, sample_evaluation_draws, sample_training_draws
from smoothsa_jax.models.heads import DROPOUT_RATE, RecognitionHead
from smoothsa_jax.models.parameters import ModelDefinition, Parameters, split
from smoothsa_jax.training.optimizer import build_optimizer, learning_rate_schedule
from smoothsa_jax.training.state import TrainState, create_state
from smoothsa_jax.training.step import Training, apply_gradients, on_mesh

INPUTS = ("video", "boxes", "slot_mask", "segmentations", "categories")


@dataclasses.dataclass(frozen=True)
class RecognitionTraining(Training):
    """As `Training`, with other meanings where the model is two.

    Attributes:
        definition, state: of the head.
        frozen: all arrays of the SmoothSA; shapes only, until `with_pretrained` or a checkpoint gives them.
        predict_on: (mesh, params, frozen, batch, key, match_paper=False) -> counts of each sample, see
            `evaluation.recognition.count`; `match_paper` is static.
        pretrained_names: which of `frozen` its own run trained; the others were frozen there too.
        pretrained: the SmoothSA without its arrays.
    """

    num_classes: int
    pretrained_names: frozenset[str]
    pretrained: ModelDefinition

    @property
    def frozen_definition(self) -> ModelDefinition:
        return self.pretrained

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, Array]:
        """Puts a batch on the mesh.

        Raises:
            UserError: labels or categories are missing or out of range; on a device that would be silent.
        """
        check_labels(batch, self.num_classes)
        seen = {name: batch[name] for name in INPUTS}
        return jax.make_array_from_process_local_data(self.batch_sharding, seen)


def check_labels(batch: dict[str, np.ndarray], num_classes: int) -> None:
    """Refuse a batch whose objects cannot be told.

    Raises:
        UserError: no "categories" or "segmentations", a category that is not in -1 .. num_classes - 1, or a label without one.
    """
    for name in ("segmentations", "categories"):
        if name not in batch:
            raise UserError(
                f"the data has no {name!r}, expected it in every sample for recognition; choose a data set with categories"
            )
    categories, labels = np.asarray(batch["categories"]), np.asarray(batch["segmentations"])
    if categories.min() < -1 or categories.max() >= num_classes:
        raise UserError(
            f"categories hold numbers from {categories.min()} to {categories.max()}, expected -1 (none) to "
            f"{num_classes - 1}; set recognition.num_classes to at least {categories.max() + 1}"
        )
    largest = int(labels.max(where=labels != NO_SEGMENT, initial=0))
    if largest > categories.shape[-1]:
        raise UserError(
            f"labels hold object {largest}, but there are categories for {categories.shape[-1]}; raise data.max_objects"
        )


def build_recognition(
    config: ConfigDict,
    mesh: Mesh | None = None,
    backend: Backend | None = None,
    shapes_only: bool = False,
) -> RecognitionTraining:
    """Builds the head, the optimiser and the compiled functions of a config; arguments as of `step.build_training`.

    Raises:
        UserError: a config that does not fit together or does not fit the devices.
    """
    mesh = mesh or make_mesh(config.mesh)
    backend = backend or backend_of_mesh(mesh)
    settings = config.recognition
    slot_size = config.model.slot_attention.slot_size

    model = build_shapes(config.model, image_size_of(config))  # its arrays come from a checkpoint
    # No gradient passes through it, for which something could be kept or computed again.
    model.set_memory_options("none", config.train.get("scan_unroll", 0))
    smoothsa, pretrained, backbone = split(model, config.dtype, backend)
    grid, num_tokens = model.backbone.grid, model.backbone.num_tokens
    history = 2 if model.transition is None else model.transition.history
    head = RecognitionHead(
        slot_size,
        settings.num_classes,
        settings.get("dropout_rate", DROPOUT_RATE),
        rngs=nnx.Rngs(config.seed),
    )
    definition, params, _ = split(head, config.dtype, backend)
    optimizer = build_optimizer(config.optimizer, config.train.num_steps)
    schedule = learning_rate_schedule(config.optimizer, config.train.num_steps)
    weights = {"category": config.loss.category, "box": config.loss.box}
    train_paper = settings.get("match_paper", False)
    parts = config.train.get("accumulate", 1)

    def training_draws(key: Array, batch: dict[str, Array]) -> Draws:
        mask = batch["slot_mask"]
        if not train_paper:
            return sample_evaluation_draws(key, *mask.shape, slot_size)
        num_frames = batch["video"].shape[1]
        return sample_training_draws(key, *mask.shape, slot_size, num_frames, num_tokens, history)

    def look(
        frozen: Parameters, inputs: tuple[dict[str, Array], Draws], match_paper: bool
    ) -> tuple[Float[Array, "B T N D"], Targets]:
        batch, draws = inputs
        model, mask = smoothsa.merge(frozen, {}, differentiated=False), batch["slot_mask"]
        # The decoder's outputs are not used, so XLA does not compute them.
        outputs = model(model.extract(batch["video"]), draws, batch["boxes"], mask)
        targets = targets_of_slots(
            outputs["attention"],
            grid,
            batch["segmentations"],
            batch["categories"],
            mask,
            match_paper,
            backend,
        )
        return jax.lax.stop_gradient(outputs["slots"]), targets

    def train_step(
        state: TrainState,
        frozen: Parameters,
        batch: dict[str, Array],
        key: Array,
        draws: Draws | None = None,
    ) -> tuple[TrainState, dict[str, Array]]:
        draws_key, dropout_key = jax.random.split(key)
        if draws is None:
            draws = training_draws(draws_key, batch)
        # Outside the differentiated function, so that none of the frozen model's activations is kept.
        slots, targets = over_samples(
            functools.partial(look, match_paper=train_paper), mesh, parts, frozen, (batch, draws)
        )

        def loss_function(params):
            # Whole on every device. Said, because XLA might move the slots instead.
            whole = jax.lax.with_sharding_constraint(params, replicated(mesh))
            head = definition.merge(whole, {})
            logits, boxes = head(slots, dropout_key)
            losses = {
                "category": category_loss(logits, targets.category, targets.matched),
                "box": box_loss(boxes, targets.box, targets.matched),
            }
            losses = {name: weights[name] * loss for name, loss in losses.items()}
            return sum(losses.values()), losses

        state, metrics = apply_gradients(loss_function, state, optimizer, schedule, mesh)
        return state, {**metrics, "num_matches": targets.matched.sum()}

    def predict(
        mesh: Mesh,
        params: Parameters,
        frozen: Parameters,
        batch: dict[str, Array],
        key: Array,
        match_paper: bool = False,
    ) -> dict[str, Array]:
        def look_and_tell(arrays, inputs):
            params, frozen = arrays
            slots, targets = look(frozen, inputs, match_paper)
            return count(*definition.merge(params, {})(slots), targets)

        draws = sample_evaluation_draws(key, *batch["slot_mask"].shape, slot_size)
        return over_samples(look_and_tell, mesh, 1, (params, frozen), (batch, draws))

    state, arrays = create_state(params, optimizer), {**pretrained, **backbone}
    return RecognitionTraining(
        definition=definition,
        grid=grid,
        num_classes=settings.num_classes,
        pretrained_names=frozenset(pretrained),
        pretrained=smoothsa,
        predict_on=jax.jit(at_precision(predict, config), static_argnums=(0, 5)),
        **on_mesh(mesh, config, state, arrays, train_step, shapes_only),
    )


def with_pretrained(
    config: ConfigDict, training: RecognitionTraining, warn: Callable[[str], None]
) -> RecognitionTraining:
    """The same with the weights of the newest sound checkpoint in `recognition.workdir`.

    Raises:
        UserError: no checkpoint there, or one of another model.
    """
    workdir = Path(config.recognition.workdir)
    checkpoint = restore_latest(workdir, warn=warn)
    refuse_different("recognition.workdir's checkpoint", checkpoint)
    if checkpoint is None:
        raise UserError(
            f"recognition.workdir: no usable checkpoint found in {workdir / FOLDER}, expected a trained SmoothSA; "
            "train one, or give its folder with --config.recognition.workdir"
        )
    if different := differences(checkpoint.config.model, config.model):
        raise UserError(
            f"recognition.workdir {workdir} holds another model, which differs in {', '.join(different)}; "
            "use the `model` part of its config"
        )
    names = training.pretrained_names
    template = {
        "state": {"params": {name: x for name, x in training.frozen.items() if name in names}},
        "frozen": {name: x for name, x in training.frozen.items() if name not in names},
    }
    found = restore_state(template, checkpoint, only=("state/params/", "frozen/"))
    return dataclasses.replace(
        training,
        frozen={**found["state"]["params"], **found["frozen"]},
        frozen_from=f"SmoothSA of {checkpoint.path}",
    )
