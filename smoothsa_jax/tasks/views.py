"""Views: train a model to render a scene from new views, and score its pictures and segments.

The frames of a sample are the views of one scene, with `cameras`. The model sees some of them as
one set of tokens, finds slots once for the whole scene, and renders rays of the target views (OSRT,
Sajjadi et al. 2022, arXiv 2206.06922). `model.target` says which views and rays these are.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.split import Batch
from smoothsa_jax.evaluation.views import ViewsEvaluator
from smoothsa_jax.models.build import PARTS
from smoothsa_jax.models.interfaces import Draws, Scheduled
from smoothsa_jax.models.parameters import ENCODER
from smoothsa_jax.models.slot_model import SlotModel
from smoothsa_jax.parts import choose, make
from smoothsa_jax.tasks.discovery import Discovery
from smoothsa_jax.tasks.task import MODEL, Models, Outputs

# What the parts of a model have to be: kind -> (attribute of the class, an example).
NEEDED = {
    "encoder": ("of_scenes", "scene"),
    "target": ("of_rays", "rays"),
    "decoder": ("of_rays", "ray_mixer"),
}
CAMERAS = "cameras"


class Views(Discovery):
    """See `task.Task`. The trained model is a `SlotModel` of one frame, the scene."""

    companions = ()
    no_segments = (
        "renders a scene that several cameras see, and finds no segments in pictures alone; its "
        "pictures are in the folder pictures/ of its workdir, which --mode=evaluate draws again"
    )

    def __init__(self, config: ConfigDict):
        for kind, (attribute, example) in NEEDED.items():
            name = config.model[kind].name
            if not getattr(choose(f"model.{kind}", name, PARTS[kind]), attribute, False):
                raise UserError(
                    f"model.{kind}.name is {name!r}, which the task 'views' cannot use; expected "
                    f"a part of scenes such as {example!r}; set --config.model.{kind}.name"
                )
        super().__init__(config)
        self.inputs = ("video", "slot_mask", CAMERAS)
        settings, size = config.model.target, image_size_of(config)
        self._target = make("model.target", settings, PARTS["target"], None, size, rngs=None)
        for views in (config.data.get("num_frames"), config.eval.num_frames):
            if views is not None:
                self._check_number(views)
        decoder = choose("model.decoder", config.model.decoder.name, PARTS["decoder"])
        self.evaluator = ViewsEvaluator(self._target, decoder.has_masks)
        for key, default in (("prune", None), ("masks", "decoder")):
            if (found := config.eval[key]) != default:
                raise UserError(
                    f"eval.{key} is {found!r}, but the task 'views' scores all slots of the "
                    f"decoder's masks; set --config.eval.{key}={default}"
                )

    def _check_number(self, views: int) -> None:
        if views < 1:  # scenes of any length would be filled up with copies of their last views
            raise UserError(
                f"eval.num_frames is {views}, but the task 'views' scores as many views of each "
                "scene; set --config.eval.num_frames to that number"
            )
        self._target.check_views(views)

    def check_batch(self, batch: Mapping[str, np.ndarray]) -> None:
        if CAMERAS not in batch:
            raise UserError(
                f"the data has no {CAMERAS!r}, expected a camera for each view of a scene; choose "
                "a data set of views, such as configs/scenes.py:views"
            )
        self._target.check_views(batch["video"].shape[1])

    def constants(
        self, models: Models, batch: Mapping[str, Array], draws: Draws, match_paper: bool
    ) -> Outputs:
        del match_paper
        if ENCODER not in models[MODEL].frozen_parts:
            return {}
        return {"features": self.encoded(models[MODEL], batch, draws)}

    def forward_inputs(self, constants: Outputs) -> tuple[str, ...]:
        return () if "features" in constants else ("video", CAMERAS)

    def forward(
        self,
        models: Models,
        batch: Mapping[str, Array],
        constants: Outputs,
        draws: Draws,
        scheduled: Scheduled,
    ) -> Outputs:
        model = models[MODEL]
        features = constants.get("features")
        if features is None:
            features = self.encoded(model, batch, draws)
        given = {name: constants[name] for name in model.decoder.exact}
        return model(features, given, draws, scheduled=scheduled)

    def encoded(self, model: SlotModel, batch: Mapping[str, Array], draws: Draws) -> Array:
        """Return the features (B,1,M,C) of the input views of each scene."""
        return model.encode(*model.target.seen(batch, draws["target"]))["features"]

    def baselines(
        self, batches: Callable[[], Iterable[Batch]], features: Callable[[Batch], object]
    ) -> dict[str, dict[str, np.ndarray]]:
        del batches, features
        return {}
