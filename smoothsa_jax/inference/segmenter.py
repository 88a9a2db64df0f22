"""A trained model for pictures and videos."""

import functools
import json
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from smoothsa_jax.checkpoints.model_files import SCORES_FILE, save_model
from smoothsa_jax.config.schema import DTYPES
from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.devices.compiling import at_precision
from smoothsa_jax.errors import UserError
from smoothsa_jax.evaluation.masks import SOURCES
from smoothsa_jax.evaluation.upsampling import segments_from_masks
from smoothsa_jax.inference.card import CARD_FILE, model_card
from smoothsa_jax.inference.frames import Picture, as_frame, as_frames, checked_frames, is_picture
from smoothsa_jax.inference.segmentation import Segmentation
from smoothsa_jax.inputs.boxes import pad_boxes, whole_frame_box
from smoothsa_jax.inputs.resize import resize_pixels
from smoothsa_jax.interop import hub
from smoothsa_jax.models.anew import Anew, anew_of, feature_distance
from smoothsa_jax.models.asked import Iterations, as_scheduled, iterations_of
from smoothsa_jax.models.backend import Backend, backend_of
from smoothsa_jax.models.build import (
    check_prunable,
    check_repeatable,
    has_transition,
    model_shapes,
    starts_from_boxes,
)
from smoothsa_jax.models.interfaces import Scheduled, Sizes
from smoothsa_jax.models.parameters import ModelDefinition, Parameters, frozen_patterns, split
from smoothsa_jax.models.pictures import check_pictures, pictures
from smoothsa_jax.models.pruning import Carry, Prune, prune_of, pruning_settings
from smoothsa_jax.models.slot_model import SlotModel
from smoothsa_jax.models.tokenizer_model import TOKENIZER
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.task import MODEL, run_task, sizes_of

AT_ONCE = 16  # frames that are decoded to pictures at a time


class Programs(NamedTuple):
    """The pure functions with which `Segmenter.stream` computes a frame, each compiled by itself.

    Attributes:
        params: the first argument of all of them.
        constants: (params, frame (H,W,3) of the model's size) -> features and target.
        first: (params, constants, boxes, slot_mask, key, asked) -> outputs and carry.
        following: (params, constants, carry, memory, asked) -> outputs, carry and memory.
        masks: which output the masks are.
    """

    params: Parameters
    constants: Callable[..., Any]
    first: Callable[..., Any]
    following: Callable[..., Any]
    masks: str


class Segmenter:
    """A slot model with its weights; `smoothsa_jax.load` makes one.

    Five pure functions of (params, frame(s) or features, ...) compute everything. Each is compiled
    once per shape.

    Args:
        config: the whole config that the model was trained with.
        params: all its arrays, by name.
        step: number of training steps done.
        backend: the backend to compile for; None: that of the first device.
        tokenizer: the arrays of its frozen tokenizer, if it has one; for `reconstruct` alone.
        scores: the content of its `scores.json`, for its model card.

    Attributes:
        config: the whole config that it was trained with.
        params: all its arrays, including the frozen encoder's.
        definition: the model without its arrays; `definition.merge(params)` inside `jax.jit` is
            the model (docs/use.md).
        step: number of training steps done.
        scores: the content of its `scores.json`, if it has been scored.
        any_number: whether it takes another number of slots than in training.

    Raises:
        UserError: the config is not one of a slot model, or the arrays do not fit it.
    """

    def __init__(
        self,
        config: ConfigDict,
        params: Mapping[str, np.ndarray],
        step: int = 0,
        backend: Backend | None = None,
        *,
        tokenizer: Mapping[str, np.ndarray] | None = None,
        scores: Mapping[str, Any] | None = None,
    ):
        self.config, self.step, self.scores = config, step, scores
        self._backend = backend or backend_of(jax.local_devices()[0])
        self.image_size = image_size_of(config)
        task = build_task(config)
        if reason := getattr(task, "no_segments", ""):
            raise UserError(f"this model of the task {config.task!r} {reason}")
        model = task.build(shapes_only=True)  # the arrays are given
        if not isinstance(model, SlotModel):
            raise UserError(
                f"the config has the task {config.task!r}, whose model finds no segments; load the "
                "slot model that it was trained on"
            )
        self.grid, self.any_number = model.encoder.grid, model.initializer.any_number
        self._target_grid = getattr(model.target, "grid", self.grid)
        self._aggregator = model.aggregator  # shapes alone
        self._pruning, self._iterations = pruning_settings(config.eval), config.eval.iterations
        self.num_slots = config.model.num_slots
        self.starts_from_boxes = starts_from_boxes(config.model)
        patterns = frozen_patterns(config.weights)
        definition, trained, frozen = split(model, config.dtype, self._backend, patterns)
        self.definition = definition
        expected = {**trained, **frozen}
        for name, like in expected.items():
            found = np.shape(params[name]) if name in params else None
            if found != like.shape:
                raise UserError(
                    f"array {name} is {'missing' if found is None else f'of shape {found}'}, the "
                    f"model of the config needs {like.shape}: weights and config do not belong "
                    "together"
                )
        self.params: Parameters = {name: jnp.asarray(params[name]) for name in expected}
        self._tokenizer, self._tokenizer_params = _tokenizer_of(config, tokenizer, self._backend)

        self._masks = SOURCES[config.eval.masks]

        def whole(
            params: Parameters,
            video: Array,
            boxes: Any,
            slot_mask: Array,
            key: Array,
            asked: Scheduled,
        ):
            models = {MODEL: definition.merge(params, differentiated=False)}
            batch = {"video": video, "boxes": boxes, "slot_mask": slot_mask}
            draws = task.draw(models, key, sizes_of(batch), False)
            return self._found(run_task(task, models, batch, draws, scheduled=asked))

        def constants(params: Parameters, frame: Array):
            models = {MODEL: definition.merge(params, differentiated=False)}
            batch = {"video": frame[None, None]}
            found = task.constants(models, batch, None, False)
            if "features" not in found:  # the encoder is trained
                found = {**found, **models[MODEL].encode(batch["video"])}
            return {**found, **task.targets(models, batch, found, None)}

        def first(
            params: Parameters,
            constants: Any,
            boxes: Any,
            slot_mask: Array,
            key: Array,
            asked: Scheduled,
        ):
            models = {MODEL: definition.merge(params, differentiated=False)}
            batch = {"boxes": boxes, "slot_mask": slot_mask}
            draws = task.draw(models, key, Sizes(1, 1, slot_mask.shape[1]), False)
            outputs = task.forward(models, batch, constants, draws, asked)
            plain = Carry(outputs["slots"][:, 0], outputs["slot_mask"])
            return self._found({**constants, **outputs}), outputs.get("carry", plain)

        def following(
            params: Parameters, constants: Any, carry: Carry, memory: Any, asked: Scheduled
        ):
            model = definition.merge(params, differentiated=False)
            given = {name: constants[name] for name in ("target",) if name in constants}
            features = constants["features"]
            outputs, carry, memory = model.follow(features, given, carry, memory, asked)
            return self._found({**constants, **outputs}), carry, memory

        jitted = lambda function: jax.jit(at_precision(function, config))  # noqa: E731
        self._whole, self._constants = jitted(whole), jitted(constants)
        self._first, self._following = jitted(first), jitted(following)

        def decoded(arrays: Any, slots: Array, slot_mask: Array, key: Array, steps: int | None):
            params, of_tokenizer = arrays
            model = definition.merge(params, differentiated=False)
            own = model.tokenizer
            if self._tokenizer is not None:
                own = self._tokenizer.merge(of_tokenizer, differentiated=False).tokenizer
            found = pictures(model, own, slots, slot_mask, key, steps)
            return jnp.round(255.0 * found).astype(jnp.uint8)

        self._decoded = jax.jit(at_precision(decoded, config), static_argnums=4)

    @functools.cached_property
    def _cast(self) -> Parameters:
        """`params` in the dtype that the model computes in, cast only once."""
        return (
            self.params
            if self.config.dtype == "float32"
            else jax.jit(self.definition.cast)(self.params)
        )

    @functools.cached_property
    def _cast_tokenizer(self) -> Parameters:
        """The same of its frozen tokenizer."""
        if self.config.dtype == "float32" or self._tokenizer is None:
            return self._tokenizer_params
        return jax.jit(self._tokenizer.cast)(self._tokenizer_params)

    @property
    def programs(self) -> Programs:
        """What `stream` runs, for a caller that runs many videos side by side."""
        return Programs(self._cast, self._constants, self._first, self._following, self._masks)

    @functools.cached_property
    def checksum(self) -> int:
        """A CRC-32 checksum of the weights."""
        return checksum_of(self.params)

    @property
    def slot_size(self) -> int:
        """D, the width of slots."""
        return self.config.model.slot_size

    @property
    def follows(self) -> bool:
        """Whether it was trained on videos and carries slots from one frame to the next."""
        return has_transition(self.config.model)

    @property
    def is_random(self) -> bool:
        """Whether anything is drawn at random, so that another seed gives other slots."""
        sizes, model = Sizes(1, 1, self.num_slots), self.definition.skeleton()
        drawn = jax.eval_shape(lambda key: model.draw(key, sizes, False), jax.random.key(0))
        return bool(jax.tree.leaves(drawn))

    def in_dtype(self, dtype: str) -> "Segmenter":
        """Return a segmenter with the same weights that computes in another dtype.

        Args:
            dtype: "bfloat16" or "float32", independent of the dtype in training.

        Raises:
            UserError: the dtype is neither.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.dtype = dtype
        return Segmenter(config, self.params, self.step, tokenizer=self._tokenizer_params)

    def segment(
        self,
        pictures: Picture | Sequence[Picture],
        *,
        num_slots: int | None = None,
        boxes: Any = None,
        seed: int = 0,
        video: bool = False,
        shot_cuts: float | None = None,
        cut_signal: str = "features",
        requery: float | None = None,
        iterations: int | tuple[int, int] | None = None,
        prune: float | str | bool | None = None,
        prune_restart: str | None = None,
        prune_iterations: int | None = None,
        prune_video: str | None = None,
    ) -> Segmentation:
        """Find the objects in one picture, in several pictures, or in a whole video at once.

        Pictures of any size and aspect ratio are resized to the model's size. Masks
        have the size of the pictures.

        Args:
            pictures: one picture (see `frames.as_frame`), a sequence or array (B,H,W,3) of
                pictures, or videos (B,T,H,W,3).
            num_slots: N, for models that start from Gaussian queries; None: as in training.
            boxes: for models that start from boxes: (k,4), the objects in the picture or in a
                video's first frame, as left, top, right, bottom pixel, both ends included. For
                several pictures, (B,k,4) with rows of -1 as padding.
            seed: seed of the random queries.
            video: whether the pictures are the frames of one video.
            shot_cuts: as for `stream`; so are the next two.
            cut_signal: what tells cuts.
            requery: when a slot starts anew by itself.
            iterations: how many iterations the aggregator runs on each frame; or two numbers, on
                the first frame and on later ones. None: as in the model's evaluation.
            prune: leaves out redundant slots: those of a cosine distance up to this, from 0 to 2,
                or "auto" for a distance that follows the picture (see `models.pruning`). Masked
                slots have no pixels. False: no pruning. None: as in the model's evaluation.
            prune_restart: where the slots that stay are aggregated once more: from "slots" or
                "queries"; "none": nowhere; "merge": instead, masks of redundant slots are united.
                None: as in the model's evaluation; so are the next two.
            prune_iterations: number of iterations of that aggregation.
            prune_video: the first frame of a video decides ("fixed"), or each frame for itself
                ("renewed").

        Raises:
            UserError: pictures or boxes are not valid, there is no slot, boxes are missing or not
                used by the model, or `iterations` or a setting of pruning is out of range.
        """
        pruning = self.chosen_pruning(prune, prune_restart, prune_iterations, prune_video)
        anew = self.chosen_anew(shot_cuts, cut_signal, requery)
        asked = as_scheduled(pruning, self.chosen_iterations(iterations), anew)
        frames, lead = self._frames(pictures, video)
        if frames.shape[1] > 1 and not self.follows:
            raise UserError(
                "this model was trained on images and a video was given; give its frames one by "
                "one, without video=True"
            )
        boxes, slot_mask = self._slots(num_slots, boxes, len(frames), frames.shape[2:4])
        key = jax.random.key(seed)
        outputs = self._whole(self._cast, self._resized(frames), boxes, slot_mask, key, asked)
        in_use = np.asarray(outputs.pop("slot_mask"))  # pruning or an aggregator may narrow it
        of_clips = in_use if in_use.ndim == 3 else in_use[:, None]
        mask = np.broadcast_to(of_clips, (*frames.shape[:2], in_use.shape[-1]))
        cold = np.zeros(frames.shape[:2], bool)
        cold[:, 0] = True
        if anew is not None:
            cold = np.asarray(outputs.pop("cold"))
        return self._segmentation(outputs, mask, cold, frames.shape[2:4], lead)

    def stream(
        self,
        frames: Iterable[Picture],
        *,
        num_slots: int | None = None,
        boxes: Any = None,
        seed: int = 0,
        state: Mapping[str, np.ndarray] | None = None,
        shot_cuts: float | None = None,
        cut_signal: str = "features",
        requery: float | None = None,
        iterations: int | tuple[int, int] | None = None,
        prune: float | str | bool | None = None,
        prune_restart: str | None = None,
        prune_iterations: int | None = None,
        prune_video: str | None = None,
    ) -> Iterator[Segmentation]:
        """Find the objects in a video frame by frame; memory does not grow with its length.

        The results are the same as of `segment(frames, video=True)` with the same options, unless
        the aggregator draws the queries of every frame: here those of later frames are the means.

        Args:
            frames: any iterable of frames of one size.
            num_slots: as for `segment`.
            boxes: as for `segment`.
            seed: as for `segment`.
            state: `Segmentation.state` of an earlier frame, to continue after it without new
                queries.
            shot_cuts: a frame whose `cut_signal` exceeds this starts a new shot; None: none does.
                Needs Gaussian queries, since there are no boxes after a cut. The first frame after
                a `state` never starts a new shot.
            cut_signal: "features": `anew.feature_distance` from the previous frame; 0.75 is a
                good threshold. "error": how many times as large the decoder's error is as in the
                last frames, if slots follow; 2 is one. It does not go with a `state`.
            requery: a slot that takes less than this share of every token, two frames in a row,
                starts anew, for an object that enters; so does one that `prune` has left out, if it
                then finds tokens of its own. None: none does. 0.2 is a good value. Needs Gaussian
                queries, and does not go with a `state`.
            iterations: as for `segment`; the first frame of each shot is a first one.
            prune: as for `segment`; each shot is pruned anew.
            prune_restart: as for `segment`; "merge" does not go with a `state`, which holds only
                the slots that stayed.
            prune_iterations: as for `segment`.
            prune_video: as for `segment`; "renewed" does not go with a `state` either.

        Yields:
            The segmentation of each frame.

        Raises:
            UserError: as for `segment`, when the frame is reached.
        """
        anew = self.chosen_anew(shot_cuts, cut_signal, requery)
        if is_picture(frames):
            raise UserError(
                "stream takes the frames of a video, and got "
                f"{'a path' if isinstance(frames, str | os.PathLike) else 'one picture'}; "
                "give a list or an iterator of pictures, for a file smoothsa_jax.read_video(path)"
            )
        pruning = self.chosen_pruning(prune, prune_restart, prune_iterations, prune_video)
        # Cuts that features tell are known before the frame is processed.
        watched = anew is not None and (anew.signal == "error" or anew.requery is not None)
        iterations = self.chosen_iterations(iterations)
        asked = as_scheduled(pruning, iterations, anew if watched else None)
        carry = None
        if state is not None and watched:
            raise UserError(
                "cut_signal='error' and requery compare a frame with those before it, of which a "
                "state tells nothing; leave the state out"
            )
        if state is not None and pruning is not None and (pruning.merges or pruning.renews):
            raise UserError(
                f"prune_restart={pruning.restart!r} with prune_video={pruning.video!r} needs all "
                "slots of the frame before, and a state holds only those that stayed; leave the "
                "state out, or use prune_restart='slots' and prune_video='fixed'"
            )
        if state is not None:
            found, mask = np.shape(state["slots"]), np.shape(state["slot_mask"])
            if len(mask) != 1 or found != (*mask, self.slot_size):
                raise UserError(
                    f"state has slots {found} and slot_mask {mask}, expected (N, {self.slot_size}) "
                    "and (N,): the `state` of the last frame that `stream` gave"
                )
            slot_mask = np.asarray(state["slot_mask"])[None]
            carry = Carry(jnp.asarray(state["slots"])[None], slot_mask)
            num_slots = num_slots or slot_mask.shape[1]  # the same number after a cut
        before = memory = None
        for frame in checked_frames(frames):
            constants = self._constants(self._cast, self._resized(frame))
            features = constants["features"][:, 0]
            cold = carry is None
            if shot_cuts is not None and before is not None and not watched:
                cold |= float(feature_distance(before, features)[0]) > shot_cuts
            if cold:
                padded, slot_mask = self._slots(num_slots, boxes, 1, frame.shape[:2])
                start, memory = (padded, slot_mask, jax.random.key(seed)), None
                outputs, carry = self._first(self._cast, constants, *start, asked)
            else:
                outputs, carry, memory = self._following(
                    self._cast, constants, carry, memory, asked
                )
            if "slot_mask" in outputs:  # of a first frame, or of each
                slot_mask = np.asarray(outputs.pop("slot_mask")).reshape(1, -1)
            if watched:
                cold = bool(outputs.pop("cold")[0, 0])
            before = features
            yield self._segmentation(
                outputs, slot_mask[:, None], np.array([[cold]]), frame.shape[:2], ()
            )

    def check_pictures(self) -> None:
        """Refuse a model whose decoder tells no pixels, from which no picture can be made.

        Raises:
            UserError: it is such a model.
        """
        model = self.definition.skeleton()
        tokenizer = model.tokenizer
        if self._tokenizer is not None:
            tokenizer = self._tokenizer.skeleton().tokenizer
        check_pictures(model, tokenizer, repr(self.config.model.target.name))

    def reconstruct(
        self, found: Segmentation, *, seed: int = 0, steps: int | None = None
    ) -> UInt8[np.ndarray, "*lead H W 3"]:
        """Make the picture of a segmentation's slots, which may be edited.

            found = model.segment("street.png")
            picture = model.reconstruct(found)
            without_2 = model.reconstruct(found.without(2))
            other = model.segment("meadow.png")
            swapped = model.reconstruct(found.swapped(2, other, 0))

        A decoder of pixels predicts the picture. A decoder of tokens predicts them one after the
        other, the most likely one each time, and a denoising decoder denoises codes; the tokenizer
        decodes both. Pictures have the size that the model decodes, not that of the input.

        Args:
            found: what `segment` or `stream` returned, or an edit of it.
            seed: of the noise that a denoising decoder starts from.
            steps: how often a denoising decoder runs; None: 200, as published.

        Raises:
            UserError: the model's decoder tells no pixels, or the slots are not of this model.
        """
        self.check_pictures()
        lead, (number, width) = found.slots.shape[:-2], found.slots.shape[-2:]
        if width != self.slot_size:
            raise UserError(
                f"the slots are {width} wide, those of this model {self.slot_size}; segment the "
                "picture with this model"
            )
        slots = found.slots.reshape(-1, 1, number, width)
        mask = found.slot_mask.reshape(-1, 1, number)
        arrays, key = (self._cast, self._cast_tokenizer), jax.random.key(seed)
        made = []
        for begin in range(0, len(slots), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            inputs, few = (slots[part], mask[part]), min(AT_ONCE, len(slots))
            short = few - len(inputs[0])  # the last frames of many: one shape is compiled
            padded = [np.concatenate([x, x[:1].repeat(short, axis=0)]) for x in inputs]
            found_now = np.asarray(self._decoded(arrays, *padded, key, steps))
            made.append(found_now[: few - short, 0])
        whole = np.concatenate(made)
        return whole.reshape(*lead, *whole.shape[1:])

    def chosen_pruning(
        self,
        prune: float | str | bool | None = None,
        prune_restart: str | None = None,
        prune_iterations: int | None = None,
        prune_video: str | None = None,
    ) -> Prune | None:
        """Return the pruning that arguments of `segment` ask for; None: there is none.

        Raises:
            UserError: a setting is out of range, or the model cannot be pruned.
        """
        if prune is False:
            return None
        given = prune, prune_restart, prune_iterations, prune_video
        defaults = self._pruning
        asked = prune_of(*(d if x is None else x for x, d in zip(given, defaults, strict=True)))
        if asked is not None:
            check_prunable(self._aggregator, self.config.model.aggregator.name, asked.restart)
        return asked

    def chosen_num_slots(self, num_slots: int | None = None) -> int:
        """Return N, of a model that starts from Gaussian queries.

        Raises:
            UserError: it has a query for each slot, and another number is asked for.
        """
        own = self.num_slots
        if num_slots not in (None, own) and not self.any_number:
            raise UserError(
                f"num_slots={num_slots} was given, and this model has a query for each of its "
                f"{own} slots; leave it out"
            )
        return num_slots or own

    def chosen_iterations(
        self, iterations: int | tuple[int, int] | None = None
    ) -> Iterations | None:
        """Return what the argument of `segment` asks for; None: as in training.

        Raises:
            UserError: the number is out of range, or the model has a fixed one.
        """
        asked = iterations_of(iterations) or iterations_of(self._iterations, "eval.")
        if asked is not None:
            key = "iterations" if iterations is not None else "eval.iterations"
            value = self._iterations if iterations is None else iterations
            name = self.config.model.aggregator.name
            check_repeatable(self._aggregator, name, key, value)
        return asked

    def chosen_anew(
        self,
        shot_cuts: float | None = None,
        cut_signal: str = "features",
        requery: float | None = None,
    ) -> Anew | None:
        """Return what arguments of `stream` ask for; None: nothing starts anew.

        Raises:
            UserError: an argument is out of range or does not fit the model.
        """
        anew = anew_of(shot_cuts, cut_signal, requery)
        if anew is None:
            return None
        if self.starts_from_boxes:
            raise UserError(
                "shot cuts and requery start new slots and need Gaussian queries, and this model "
                "starts its slots from boxes; leave them out, or load a model with Gaussian queries"
            )
        if not self.follows:
            raise UserError(
                "shot cuts and requery have no effect on a model of images, which starts anew on "
                "each frame; leave them out"
            )
        return anew

    def save(self, folder: str | os.PathLike) -> None:
        """Write weights (safetensors) and config for `smoothsa_jax.load`.

        Raises:
            UserError: the folder is not empty or not writable.
        """
        frozen = {f"{TOKENIZER}.{name}": x for name, x in self._tokenizer_params.items()}
        save_model(Path(folder), self.config, {**self.params, **frozen}, self.step)

    def push_to_hub(
        self,
        repository: str,
        *,
        license: str | None = None,
        private: bool = False,
        message: str = "Upload a model of smoothsa_jax",
        token: str | None = None,
    ) -> str:
        """Upload weights, config, scores and a model card to the Hugging Face Hub.

        `smoothsa_jax.load("hf://owner/name")` loads it from there.

        Args:
            repository: "owner/name"; it is made if there is none.
            license: of the weights, as the Hub abbreviates it, such as "mit".
            private: whether a new repository is private.
            message: of the commit.
            token: of the user; None: the one that `hf auth login` has stored.

        Returns:
            The address of the commit.

        Raises:
            UserError: you may not write there, or the Hub is unreachable.
        """
        source = f"{hub.SCHEME}{repository.removeprefix(hub.SCHEME)}"
        name, _ = hub.split_name(source)
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "model"
            self.save(folder)
            # Also where there are none, in place of those of an earlier push.
            (folder / SCORES_FILE).write_text(json.dumps(self.scores, indent=1) + "\n")
            card = model_card(self.config, self.step, self.scores, name, license)
            (folder / CARD_FILE).write_text(card)
            return hub.upload(folder, source, private=private, message=message, token=token)

    def _frames(
        self, pictures: Picture | Sequence[Picture], video: bool
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """Return frames (B,T,H,W,3), and the leading axes of the result."""
        if getattr(pictures, "ndim", None) == 5:
            frames = np.stack([as_frames(clip) for clip in pictures])
            return frames, frames.shape[:2]
        if not is_picture(pictures):
            frames = as_frames(pictures)
            return (frames[None] if video else frames[:, None]), (len(frames),)
        if video:
            raise UserError(
                "video=True needs the frames of a video as an array (T,H,W,3) or a list of "
                "pictures; one picture was given"
            )
        return as_frame(pictures)[None, None], ()

    def _resized(self, frames: np.ndarray) -> np.ndarray:
        return (
            frames
            if frames.shape[-3:-1] == self.image_size
            else resize_pixels(frames, self.image_size)
        )

    def _slots(
        self, num_slots: int | None, boxes: Any, batch: int, size: tuple[int, int]
    ) -> tuple[Float[np.ndarray, "B 1 N 4"] | None, np.ndarray]:
        """Return boxes for the slots (None with Gaussian queries) and the slot mask (B,N)."""
        if num_slots is not None and num_slots < 1:
            raise UserError(f"num_slots is {num_slots}, expected at least 1")
        if not self.starts_from_boxes:
            if boxes is not None:
                raise UserError(
                    "boxes were given, and this model starts its slots from Gaussian queries; "
                    "leave them out"
                )
            return None, np.ones((batch, self.chosen_num_slots(num_slots)), bool)
        if num_slots is not None:
            raise UserError(
                f"num_slots={num_slots} was given, and this model has a slot for each box; give "
                "as many boxes"
            )
        if boxes is None:
            raise UserError(
                "this model starts its slots from boxes and none were given; give boxes=[[left, "
                "top, right, bottom], ...] in pixels of the first frame, or load a model with "
                "Gaussian queries"
            )
        boxes = _checked_boxes(boxes, batch, size)
        whole = whole_frame_box(*size) if self.config.data.get("background_box", True) else None
        room = max(self.num_slots, boxes.shape[1] + (whole is not None))
        padded = pad_boxes(boxes, room, whole_frame=whole)
        if self.config.data.get("zero_boxes", False):  # as in its training
            return np.maximum(padded, 0.0)[:, None], np.ones(padded.shape[:2], bool)
        return padded[:, None], padded[..., 0] >= 0

    def _found(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the contents of a segmentation, (B,T,...), float32."""
        prediction, target = outputs.get("prediction"), outputs.get("target")
        found = {name: outputs[name] for name in ("slots", "attention") if name in outputs}
        more = ("slot_mask", "iterations", "cold")
        found |= {name: outputs[name] for name in more if name in outputs}
        # Without masks of the decoder, use those of the aggregator.
        found["masks"] = outputs.get("masks", outputs["attention"])
        grid = (*found["slots"].shape[:2], *self._target_grid)
        shapes = [None if x is None else x.shape for x in (prediction, target)]
        if None not in shapes and shapes[0] == shapes[1] and shapes[0][2] == math.prod(grid[2:]):
            error = jnp.square(prediction - target.astype(jnp.float32)).mean(-1)
            return {**found, "reconstruction_error": error.reshape(grid)}
        # A prediction that is not one of each place has no error there. A video has no target of
        # flow or depth.
        return {**found, "reconstruction_error": jnp.full(grid, jnp.nan, jnp.float32)}

    def _segmentation(
        self,
        outputs: Mapping[str, Array],
        slot_mask: np.ndarray,
        cold: np.ndarray,
        size: tuple[int, int],
        lead: tuple[int, ...],
    ) -> Segmentation:
        masks = segments_from_masks(
            outputs[self._masks], tuple(map(int, size)), slot_mask, backend=self._backend
        )
        # All at once, so that an accelerator starts every transfer before the first wait.
        found = jax.device_get(dict(outputs))
        found["decoder_attention"] = found.pop("masks")
        found |= {"masks": np.asarray(masks), "slot_mask": slot_mask, "cold": cold}
        return Segmentation(**{name: x.reshape((*lead, *x.shape[2:])) for name, x in found.items()})


def checksum_of(params: Mapping[str, np.ndarray]) -> int:
    """Return a CRC-32 checksum of arrays."""
    found = 0
    for name in sorted(params):
        found = zlib.crc32(np.ascontiguousarray(params[name]).tobytes(), found)
    return found


def _tokenizer_of(
    config: ConfigDict, arrays: Mapping[str, np.ndarray] | None, backend: Backend
) -> tuple[ModelDefinition | None, Parameters]:
    """Return the definition and the arrays of a model's frozen tokenizer; None without one.

    Raises:
        UserError: the arrays do not fit the config.
    """
    companion = config.companions.get(TOKENIZER, {})
    if not arrays or "model" not in companion:
        return None, {}
    model = model_shapes(companion.model, image_size_of(config))
    definition, _, expected = split(model, config.dtype, backend, ("*",))
    for name, like in expected.items():
        if np.shape(arrays.get(name)) != like.shape:
            raise UserError(
                f"array {TOKENIZER}.{name} is of shape {np.shape(arrays.get(name))}, the tokenizer "
                f"of the config needs {like.shape}: weights and config do not belong together"
            )
    return definition, {name: jnp.asarray(arrays[name]) for name in expected}


def _checked_boxes(boxes: Any, batch: int, size: tuple[int, int]) -> Float[np.ndarray, "B k 4"]:
    """Convert pixel boxes to the model's: divided by width and height, with padding last.

    Raises:
        UserError: the shape is wrong, or a box is empty or outside the picture.
    """
    height, width = size
    try:
        array = np.asarray(boxes, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"boxes cannot be read as numbers, expected (boxes, 4): {error}") from error
    if array.ndim == 2 and batch == 1:
        array = array[None]
    if array.ndim != 3 or array.shape[-1] != 4 or len(array) != batch or array.shape[1] < 1:
        raise UserError(
            f"boxes have shape {np.shape(boxes)}, expected (boxes, 4)"
            f"{f' for each of {batch} pictures' if batch > 1 else ''}: left, top, right, bottom "
            "in pixels"
        )
    padding = (array == -1).all(-1)
    left, top, right, bottom = np.moveaxis(array, -1, 0)
    inside = (0 <= left) & (left <= right) & (right < width)
    inside &= (0 <= top) & (top <= bottom) & (bottom < height)
    if not (inside | padding).all():
        worst = array[~(inside | padding)][0]
        raise UserError(
            f"box {worst.tolist()} does not lie in a picture of {width}x{height} pixels: expected "
            f"0 <= left <= right <= {width - 1} and 0 <= top <= bottom <= {height - 1}"
        )
    scaled = array / np.array([width, height, width, height], np.float32)
    # Padding comes last, as in training.
    scaled = np.where(padding[..., None], np.float32(-1), scaled)
    order = np.argsort(padding, axis=1, kind="stable")
    return np.take_along_axis(scaled, order[..., None], axis=1)
