"""Questions about clips of sprites, with exact answers.

Of a clip, the first frames are observed. Some questions ask what these show; others ask what comes
after them. A question is three words [template, mention, mention] of one vocabulary.

Answers are balanced: template, mentions and answer are drawn first, uniformly and independently,
then a clip that fits them. So words alone tell nothing of the answer.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import distance_transform_edt

from smoothsa_jax.errors import UserError
from smoothsa_jax.inputs.procedural import SPLITS
from smoothsa_jax.inputs.sprite_motion import paths
from smoothsa_jax.inputs.sprite_shapes import SHAPES
from smoothsa_jax.inputs.sprite_textures import COLOUR_NAMES, TEXTURES
from smoothsa_jax.inputs.sprite_truth import Truth, looks, truth_of
from smoothsa_jax.inputs.sprites import Sprites, camera_shift

NUM_QUESTIONS = {"train": 8192, "validation": 512, "test": 2048}
NUM_CLIPS = {"train": 4096, "validation": 512, "test": 1024}

MAX_OBJECTS = 4
# Of each feature of a state, about its mean and its deviation over the objects of sprites.
_KINDS = [len(SHAPES), len(COLOUR_NAMES), len(TEXTURES)]
_SHARES = np.repeat([1, 2, 1] / np.array(_KINDS), _KINDS)  # an object has two colors
STATE_MEAN = np.array([0.5, 0.5, 0.2, *_SHARES, 0.5], np.float32)
STATE_SCALE = np.array([0.3, 0.3, 0.03, *np.sqrt(_SHARES * (1 - _SHARES)), 0.4], np.float32)
STATE_SIZE = len(STATE_MEAN)  # see `SpriteQuestions.state`
FASTER = 1.3  # the fastest object is at least so many times as fast as the next
# Of two objects that do not touch in the last observed frame, in parts of the smaller side: nearer
# ones are said to touch later. Of the training questions it answers 78 % right, and no other bound
# clearly more.
NEAR = 0.2
NOT_ASKED = -1  # the group of a question that a clip does not allow
_OF_QUESTIONS = 1  # part of a question's seed, so that it shares no random numbers with a clip

_SHAPE_NAMES = tuple(SHAPES)
_YES_NO = ("no", "yes")
_QUARTERS = ("top left", "top right", "bottom left", "bottom right")
_ONE_SHAPE = tuple((name,) for name in _SHAPE_NAMES)
_TWO_SHAPES = tuple((a, b) for a in _SHAPE_NAMES for b in _SHAPE_NAMES if a != b)


class Template(NamedTuple):
    """A form of question.

    A group is what is drawn evenly: an answer, or an answer within one of several parts. The answer
    of group g is g modulo the number of answers.
    """

    text: str
    mentions: tuple[tuple[str, ...], ...]  # the words that it can be asked of
    answers: tuple[str, ...]
    parts: int = 1

    @property
    def num_groups(self) -> int:
        return self.parts * len(self.answers)


TEMPLATES = {
    "count": Template(
        "how many objects show {}?", tuple((name,) for name in COLOUR_NAMES), ("0", "1", "2")
    ),
    "exists": Template("is the shape {} there?", _ONE_SHAPE, _YES_NO),
    "covers": Template("does the {} cover the {}?", _TWO_SHAPES, _YES_NO),
    "fastest": Template("what shape is the fastest?", ((),), _SHAPE_NAMES),
    "touch": Template("do the {} and the {} touch?", _TWO_SHAPES, _YES_NO),
    "will_touch": Template("will the {} and the {} touch?", _TWO_SHAPES, _YES_NO),
    # In two parts: the object stays in its quarter, or changes it.
    "quarter": Template("in which quarter will the {} be?", _ONE_SHAPE, _QUARTERS, parts=2),
}
KINDS = tuple(TEMPLATES)
NO_MENTION = "none"
WORDS = ("", *KINDS, NO_MENTION, *_SHAPE_NAMES, *COLOUR_NAMES, *TEXTURES)
ANSWERS = tuple(dict.fromkeys(x for template in TEMPLATES.values() for x in template.answers))

# Rules that answer without seeing pixels or slots, from the truth of observed frames.
CONSTANT_VELOCITY, PRESENT, NEARNESS = (
    "constant velocity",
    "a shape that is there",
    "nearness in the last frame",
)
RULES = (CONSTANT_VELOCITY, PRESENT, NEARNESS)

# A column of a table of facts is a template with its mentions.
_COLUMNS = tuple((kind, mention) for kind in KINDS for mention in TEMPLATES[kind].mentions)
_COLUMNS_OF = {
    kind: np.flatnonzero([name == kind for name, _ in _COLUMNS]).astype(int) for kind in KINDS
}
_WORD_IDS = np.array(
    [
        [WORDS.index(word) for word in (kind, *mention, *(2 - len(mention)) * [NO_MENTION])]
        for kind, mention in _COLUMNS
    ],
    np.int32,
)
_ALLOWED = np.array([[x in TEMPLATES[kind].answers for x in ANSWERS] for kind in KINDS])
_PAIRS = tuple(np.array([[_SHAPE_NAMES.index(x) for x in pair] for pair in _TWO_SHAPES]).T)


class Facts(NamedTuple):
    """What questions need to know of the clips of a split: tables with a row for each question."""

    groups: Int[np.ndarray, "columns clips"]  # of the answer, or NOT_ASKED
    line: Int[np.ndarray, "shapes clips"]  # "quarter", if objects kept the last observed velocity


def facts_of(truth: Truth, observed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the column of one clip in the tables of `Facts`: (columns,) and (shapes,), int8.

    Questions on objects are asked of those that are seen and that no other object shares its shape
    with. Questions on all objects are asked where all are seen.

    Args:
        truth: of a clip.
        observed: the number of its frames that are observed; the others are the future.
    """
    frames, height, width = truth.labels.shape
    seen = truth.seen(observed)
    of_all = np.all(seen)
    # Tables by color, by shape, and by pairs of shapes; `where` has the shapes that are named.
    named = np.flatnonzero(seen & truth.named())
    where = truth.shapes[named]
    pairs = np.ix_(where, where)

    def of_shapes(values: np.ndarray, asked: np.ndarray | bool = True) -> np.ndarray:
        """Spread values of the named objects, or of their pairs, over all shapes."""
        table = np.full(values.ndim * (len(SHAPES),), NOT_ASKED, np.int8)
        table[pairs if values.ndim == 2 else where] = np.where(asked, values, NOT_ASKED)
        return table

    count = np.array([(truth.colours == c).any(axis=1).sum() for c in range(len(COLOUR_NAMES))])
    count = np.where(of_all & (count < 3), count, NOT_ASKED)
    exists = np.isin(np.arange(len(SHAPES)), truth.shapes)
    exists = np.where(of_all, exists, NOT_ASKED)

    steps = np.diff(truth.centres[:, :observed], axis=1)
    speed = np.linalg.norm(steps, axis=-1).sum(axis=1)
    first, second = np.argsort(speed)[:-3:-1]
    clear = of_all and speed[first] >= FASTER * speed[second]
    fastest = truth.shapes[first] if clear else NOT_ASKED

    touching = truth.touching()[np.ix_(named, named)]
    touch = touching[..., :observed].any(axis=-1)
    will = touching[..., observed:].any(axis=-1)
    in_front = named[:, None] > named

    last = truth.centres[named, observed - 1]
    velocity = last - truth.centres[named, observed - 2]
    then = truth.centres[named, -1]
    line = _quarter(last + (frames - observed) * velocity, height, width)
    quarter = _quarter(then, height, width)
    changes = quarter != _quarter(last, height, width)
    quarter = of_shapes(quarter + len(_QUARTERS) * changes, ~truth.gone()[named, -1])

    groups = {
        "count": count,
        "exists": exists,
        "covers": of_shapes(in_front, touch)[_PAIRS],
        "fastest": [fastest],
        "touch": of_shapes(touch)[_PAIRS],
        "will_touch": of_shapes(will, ~touching[..., observed - 1])[_PAIRS],
        "quarter": quarter,
    }
    return np.concatenate([groups[kind] for kind in KINDS]).astype(np.int8), of_shapes(line)


def _quarter(centres: Float[np.ndarray, "n 2"], height: int, width: int) -> Int[np.ndarray, " n"]:
    """Return the places in `_QUARTERS` of these points; outside the frame, those of its sides."""
    right, below = centres[:, 0] > (width - 1) / 2, centres[:, 1] > (height - 1) / 2
    return 2 * below + right


@functools.lru_cache(maxsize=8)
def _facts(observed: int, options: tuple[tuple[str, Any], ...]) -> Facts:
    """Compute the facts of all clips of `Sprites` with these options, in about 2 ms each."""
    clips = Sprites(**dict(options))
    found = []
    for index in range(len(clips)):
        truth = truth_of(clips.scene(index), clips.num_frames, clips.height, clips.width)
        found.append(facts_of(truth, observed))
    return Facts(*(np.stack(columns, axis=1) for columns in zip(*found, strict=True)))


class Question(NamedTuple):
    """A drawn question."""

    column: int  # its template and mentions
    group: int  # of its answer
    clip: int


class SpriteQuestions:
    """A random-access source of questions about clips of `Sprites`.

    The clips are those of `Sprites` with the same settings. Question j depends on (seed, split, j)
    and on these settings only. Making the source computes the facts of all its clips, in about
    10 s for 4,096 of them; a second source of the same clips shares them.

    Mentions are used if each answer fits at least one clip, so that answers do not depend on them.
    Otherwise others are drawn, or another template, if none of its mentions fit; `redrawn` counts
    these draws.

    Args:
        image_size, max_objects, min_objects, seed, palette_size, crowding, shared_colours,
            jitter, lighting: see `Sprites`.
        num_frames: frames per clip, observed ones and those of the future.
        observed: how many frames are observed, P.
        split: "train", "validation" or "test".
        num_samples: number of questions; default: `NUM_QUESTIONS` of the split.
        num_clips: number of clips that they are about; default: `NUM_CLIPS` of the split.
        num_slots, boxes, background_box: of `observed_clips`, see `Sprites`.

    Attributes:
        words: the vocabulary; word 0 is padding.
        answers: the list of answers of all templates.
        kinds: names of the templates.
        balanced: no answer of a template is more frequent than another.
        rules: names of simple rules that answer some of the questions, see `by_rules`.
        clips: the source of the clips.
        observed_clips: the same of the observed frames alone, as a slot model sees them.
        redrawn: how many mentions and templates were drawn anew.

    Raises:
        UserError: an option is out of range, or there are too few clips for any question.
    """

    words, answers, kinds = WORDS, ANSWERS, KINDS
    balanced, rules = True, RULES

    def __init__(
        self,
        image_size: int | tuple[int, int] = 60,
        num_frames: int = 12,
        observed: int = 6,
        max_objects: int = MAX_OBJECTS,
        min_objects: int = 2,
        split: str = "train",
        num_samples: int | None = None,
        num_clips: int | None = None,
        seed: int = 0,
        palette_size: int = 4,
        crowding: float = 0.0,
        shared_colours: float = 0.0,
        jitter: float = 0.0,
        lighting: float = 0.0,
        num_slots: int | None = None,
        boxes: bool = True,
        background_box: bool = True,
    ):
        if not 2 <= observed < num_frames:
            raise UserError(
                f"data.observed is {observed} and data.num_frames {num_frames}; questions need 2 "
                "observed frames or more, and frames after them: choose 2 <= observed < num_frames"
            )
        if num_clips is None:
            num_clips = NUM_CLIPS.get(split, 1)
        if num_clips < 1:
            raise UserError(f"data.num_clips is {num_clips}; it needs at least 1")
        options = {
            "image_size": image_size if isinstance(image_size, int) else tuple(image_size),
            "num_frames": num_frames,
            "max_objects": max_objects,
            "min_objects": min_objects,
            "split": split,
            "num_samples": num_clips,
            "seed": seed,
            "palette_size": palette_size,
            "crowding": crowding,
            "shared_colours": shared_colours,
            "jitter": jitter,
            "lighting": lighting,
        }
        self.clips = Sprites(**options)
        of_model = {"num_slots": num_slots, "boxes": boxes, "background_box": background_box}
        self.observed_clips = Sprites(**{**options, "num_frames": observed}, **of_model)
        if num_samples is None:
            num_samples = NUM_QUESTIONS[split]
        if num_samples < 1:
            raise UserError(f"data.num_samples is {num_samples}; it needs at least 1")
        self.observed, self.num_objects = observed, max_objects
        self.facts = _facts(observed, tuple(options.items()))
        self._seed = (seed, SPLITS[split])
        self._fits = self._mentions_that_fit()
        self.redrawn = 0
        self.drawn = [self._draw(j) for j in range(num_samples)]

    def _mentions_that_fit(self) -> Bool[np.ndarray, " columns"]:
        fits = [
            len(np.unique(row[row >= 0])) == TEMPLATES[kind].num_groups
            for row, (kind, _) in zip(self.facts.groups, _COLUMNS, strict=True)
        ]
        if not any(fits):
            raise UserError(
                f"data.num_clips is {len(self.clips)}, of which no question has every answer; set "
                "more clips, such as 64"
            )
        return np.array(fits)

    def _draw(self, j: int) -> Question:
        rng = np.random.default_rng([*self._seed, j, _OF_QUESTIONS])
        start = rng.integers(len(self.clips))
        for kind in rng.permutation(len(KINDS)):
            for column in rng.permutation(_COLUMNS_OF[KINDS[kind]]):
                if self._fits[column]:
                    group = int(rng.integers(TEMPLATES[KINDS[kind]].num_groups))
                    fitting = np.flatnonzero(self.facts.groups[column] == group)
                    place = np.searchsorted(fitting, start) % len(fitting)
                    return Question(int(column), group, int(fitting[place]))
                self.redrawn += 1
        raise AssertionError("some mentions fit")

    def __len__(self) -> int:
        return len(self.drawn)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Question `index`.

        Returns:
            "question" (3,) int32, words; "answer" () int32, a place in `answers`; "allowed" (A,)
            bool, the answers of its template; "kind" () int32, a place in `kinds`; "clip" () int32.
        """
        column, _, clip = self._drawn(index)
        kind = KINDS.index(_COLUMNS[column][0])
        return {
            "question": _WORD_IDS[column].copy(),
            "answer": np.array(self._answer(index), np.int32),
            "allowed": _ALLOWED[kind].copy(),
            "kind": np.array(kind, np.int32),
            "clip": np.array(clip, np.int32),
        }

    def _drawn(self, index: int) -> Question:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        return self.drawn[index]

    def _answer(self, index: int) -> int:
        column, group, _ = self._drawn(index)
        answers = TEMPLATES[_COLUMNS[column][0]].answers
        return ANSWERS.index(answers[group % len(answers)])

    def text(self, index: int) -> str:
        """Return question `index` as a sentence."""
        kind, mention = _COLUMNS[self._drawn(index).column]
        return TEMPLATES[kind].text.format(*mention)

    def changes(self, index: int) -> bool:
        """Whether question `index` asks for the quarter of an object that changes it."""
        column, group, _ = self._drawn(index)
        return _COLUMNS[column][0] == "quarter" and group >= len(_QUARTERS)

    def line(self, index: int) -> int:
        """Return the answer to a question on quarters if the object kept its last velocity.

        Returns:
            A place in `answers`; -1: the question has another template. The velocity is that
            between the true centers in the last two observed frames.
        """
        column, _, clip = self._drawn(index)
        kind, mention = _COLUMNS[column]
        if kind != "quarter":
            return -1
        return ANSWERS.index(_QUARTERS[self.facts.line[_SHAPE_NAMES.index(mention[0]), clip]])

    def present(self, index: int) -> tuple[int, ...]:
        """Return the places in `answers` of the shapes in the clip of question `index`."""
        shapes = dict.fromkeys(self.clips.scene(self._drawn(index).clip).shapes)
        return tuple(ANSWERS.index(name) for name in shapes)

    def by_rules(self, index: int) -> Float[np.ndarray, " rules"]:
        """Return how probably each of `rules` answers question `index` right; NaN: it does not.

        * Constant velocity: objects go on at their true velocity between the last two observed
          frames. It answers in which quarter an object will be, and whether two will touch.
        * A shape that is there, any one: it answers what shape is the fastest.
        * Nearness in the last observed frame: two objects will touch if their amodal masks are
          nearer there than `NEAR`.
        """
        column, _, clip = self._drawn(index)
        (kind, mention), answer = _COLUMNS[column], self._answer(index)
        found = dict.fromkeys(RULES, np.nan)
        if kind == "quarter":
            found[CONSTANT_VELOCITY] = float(self.line(index) == answer)
        elif kind == "fastest":
            found[PRESENT] = 1.0 / len(self.present(index))
        elif kind == "will_touch":
            said = self._touch_later(clip, *map(_SHAPE_NAMES.index, mention))
            found |= {rule: float(_YES_NO[yes] == ANSWERS[answer]) for rule, yes in said.items()}
        return np.array([found[rule] for rule in RULES], np.float32)

    def _touch_later(self, clip: int, first: int, second: int) -> dict[str, bool]:
        """Return whether two shapes of a clip will touch, by each rule that tells it."""
        truth = self.truth(clip)
        pair = [int(np.flatnonzero(truth.shapes == shape)[0]) for shape in (first, second)]
        last = self.observed - 1
        masks = truth.amodal[pair, last]
        velocities = truth.centres[pair, last] - truth.centres[pair, last - 1]
        steps = np.arange(1, len(truth.labels) - last)
        moved = np.rint(steps[:, None] * (velocities[1] - velocities[0])).astype(int)  # x, y
        places = np.argwhere(masks[1]) + moved[:, None, ::-1]  # (steps, pixels, 2), as y, x
        inside = ((places >= 0) & (places < masks.shape[1:])).all(axis=-1)
        places = places[inside]
        side = min(masks.shape[1:])
        gap = distance_transform_edt(~masks[0])[masks[1]].min(initial=np.inf)
        return {
            CONSTANT_VELOCITY: bool(masks[0][places[:, 0], places[:, 1]].any()),
            NEARNESS: bool(gap < NEAR * side),
        }

    def truth(self, clip: int) -> Truth:
        """Return the truth of a clip, all frames of it."""
        clips = self.clips
        return truth_of(clips.scene(clip), clips.num_frames, clips.height, clips.width)

    @staticmethod
    def state_shape_of(settings: Mapping[str, Any]) -> tuple[int, int]:
        """Return the numbers of objects N and of features F of `state`, from the settings."""
        return settings.get("max_objects", MAX_OBJECTS), STATE_SIZE

    @property
    def state_size(self) -> int:
        """The number of features F of `state`."""
        return STATE_SIZE

    def state(
        self, clip: int, num_frames: int | None = None
    ) -> tuple[Float[np.ndarray, "T N F"], Bool[np.ndarray, " N"]]:
        """Return the true state of each object of a clip, in place of its slots.

        As `unscaled_state`, but every feature has about mean 0 and deviation 1, as slots have: the
        radius alone would else be hard to see beside the rest.
        """
        state, there = self.unscaled_state(clip, num_frames)
        return np.where(there[:, None], (state - STATE_MEAN) / STATE_SCALE, np.float32(0)), there

    def unscaled_state(
        self, clip: int, num_frames: int | None = None
    ) -> tuple[Float[np.ndarray, "T N F"], Bool[np.ndarray, " N"]]:
        """Return where the objects of a clip are, and what they look like.

        Args:
            clip: index of the clip.
            num_frames: how many frames; default: those that are observed.

        Returns:
            For each of N = max_objects: its center x, y, in parts of the frame, and its radius, in
            parts of the smaller side; one-hot shape; one-hot colors, two of them 1; one-hot
            texture; and its place in depth, 0 at the back, of up to 1 at the front. Then which of
            the N exist; the others are 0.
        """
        frames = self.observed if num_frames is None else num_frames
        scene, height, width = self.clips.scene(clip), self.clips.height, self.clips.width
        centres, _, radii = paths(scene.motion, frames, height, width)
        centres = centres + camera_shift(scene, frames)
        shapes, textures, colours = looks(scene)
        count = len(shapes)
        kept = [
            np.eye(len(SHAPES))[shapes],
            np.eye(len(COLOUR_NAMES))[colours].sum(axis=1),
            np.eye(len(TEXTURES))[textures],
            (np.arange(count) / (count - 1))[:, None],
        ]
        size = np.array([width, height])
        moved = [centres / size, (radii / min(height, width))[..., None]]  # (n, T, ...)
        constant = np.concatenate(kept, axis=1)[:, None].repeat(frames, axis=1)
        state = np.zeros((frames, self.num_objects, self.state_size), np.float32)
        state[:, :count] = np.concatenate([*moved, constant], axis=2).swapaxes(0, 1)
        return state, np.arange(self.num_objects) < count
