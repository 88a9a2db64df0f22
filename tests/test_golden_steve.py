"""The original STEVE against the numbers of its program.

GOLDEN_DIR names another folder of the same layout, with other numbers and other sizes.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import (
    FORWARD,
    GRADIENT,
    LOSS,
    TRAINED,
    Golden,
    compare_gradients,
    compare_norms,
    golden,
    inner,
    write_report,
)
from ml_collections import ConfigDict
from tiny import tiny_config

from smoothsa_jax.config.load import load_config
from smoothsa_jax.devices.mesh import replicated
from smoothsa_jax.interop.steve import DVAE as DVAE_ROWS
from smoothsa_jax.interop.steve import STEVE, dvae_rows
from smoothsa_jax.interop.table import KeyTable
from smoothsa_jax.losses.build import build_losses
from smoothsa_jax.models.aggregators.slot_attention import SlotAttention
from smoothsa_jax.models.initializers import Gaussian
from smoothsa_jax.models.parameters import split
from smoothsa_jax.models.slot_model import KEYS
from smoothsa_jax.models.tokenizers.dvae import DVAE
from smoothsa_jax.models.transitions import Transformer
from smoothsa_jax.tasks.build import build_task
from smoothsa_jax.tasks.task import run_task
from smoothsa_jax.training.step import build_training

CONFIG = Path(__file__).parent.parent / "configs" / "movi_d.py"
FILES = [
    "tokeniser_dvae",
    "slot_attention_steve",
    "model_steve_original",
    "trajectory_steve_original",
    "model_slate_original",  # its tokenizer alone
]
LOSSES = {"cross_entropy": "token", "mse": "tokenizer"}
# What the files do not tell: of the trajectory, the steps of the warm-up, of the halving and of the
# cosine of the temperature.
WARMUP, HALF_LIFE, COOLING = 3, 5, 4
RATES = {
    "dvae": "learning_rate/tokenizer",
    "steve_encoder": "learning_rate/slots",
    "steve_decoder": "learning_rate",
}
RUNS, MAGNIFIED = 3, 3  # own runs one rounding away, and how much further the recorded one may be
HEADS, ITERATIONS = 4, 2
ATTENTION = {
    "first": ITERATIONS,
    "later": ITERATIONS,
    "gradient": "full",
    "epsilon": 1e-8,
    "epsilon_in": "weights",
    "activation": "relu",
    "start": "xavier",
    "last_mlp": False,
}
PREDICTOR = {
    "num_heads": HEADS,
    "norm": "pre",
    "activation": "relu",
    "bias": True,
    "attention_bias": False,
    "norm_stream": True,
    "final_norm": True,
    "attention_start": "xavier",
    "start": "xavier",
}


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    write_report()


def numbers(keys, start: str) -> int:
    """How many numbers follow `start` in these keys."""
    return len({key[len(start) :].split(".")[0] for key in keys if key.startswith(start)})


def compare_recorded(file: Golden, gradients: dict, recorded: dict) -> None:
    """Compare those that are recorded in full."""
    compare_gradients(
        file,
        {name: gradients[name] for name in recorded},
        recorded,
        null=lambda name: name.endswith("norm_slots.bias"),  # it shifts all logits alike
        largest=max(np.abs(x).max() for x in gradients.values()),
    )


def grid_last(x: np.ndarray) -> np.ndarray:
    """(B,V,h,w) -> (B,M,V)."""
    return np.moveaxis(x, 1, -1).reshape(len(x), -1, x.shape[1])


def test_dvae():
    """Log-probabilities, relaxed sample, reconstruction, loss and gradients."""
    table = KeyTable(DVAE_ROWS)
    with golden("tokeniser_dvae") as file:
        theirs = file.group("param/")
        arrays = {}
        for key, x in theirs.items():
            name, transform = table.ours(key)
            arrays[name] = jnp.asarray(transform.to_ours(x))
        image = np.moveaxis(file["inp/image"], 1, -1)
        vocabulary, hidden = theirs["encoder.7.weight"].shape[:2]
        sizes = image.shape[1:3], None, None
        settings = {"vocabulary": vocabulary, "hidden_size": hidden}
        make = lambda: DVAE(*sizes, **settings, rngs=nnx.Rngs(0))  # noqa: E731
        definition, expected, _ = split(nnx.eval_shape(make))
        assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}
        noise = jnp.asarray(grid_last(file["inp/gumbel"]))
        scheduled = {"tau": file["inp/tau"]}

        def run(arrays):
            model = definition.merge(arrays)
            latents = model.encode(image)
            found = model.quantize(latents, {"soft": noise, "hard": noise}, scheduled)
            recon = model.decode(found.mixed)
            loss = jnp.sum((recon - image) ** 2) / len(image)
            return loss, (latents, found.tokens, found.mixed, recon)

        (loss, (latents, tokens, mixed, recon)), gradients = jax.jit(
            jax.value_and_grad(run, has_aux=True)
        )(arrays)
        file.compare("out/log_probability", jnp.moveaxis(latents, -1, 1), FORWARD)
        file.compare("out/soft", mixed, FORWARD, change=grid_last)
        file.compare("out/recon", jnp.moveaxis(recon, -1, 1), FORWARD)
        file.compare("loss/mse", loss, LOSS)
        np.testing.assert_array_equal(tokens, np.argmax(mixed, axis=-1))
        recorded = {}
        for key, x in file.group("grad/").items():
            name, transform = table.ours(key)
            recorded[name] = transform.to_ours(x)
        compare_recorded(file, gradients, recorded)
        compare_norms(file, lambda key: gradients[table.ours(key)[0]])


def test_dvae_of_slate():
    """With a GroupNorm in place of biases: tokens, reconstruction and loss. SLATE is not built."""
    table = KeyTable(dvae_rows(normed=True))
    with golden("model_slate_original", parts=()) as file:
        theirs = file.group("param/dvae.")
        arrays = {}
        for key, x in theirs.items():
            name, transform = table.ours(key)
            arrays[name] = jnp.asarray(transform.to_ours(x))
        image = np.moveaxis(file["inp/image"], 1, -1)
        vocabulary, hidden = theirs["encoder.7.weight"].shape[:2]
        sizes = image.shape[1:3], None, None
        settings = {"vocabulary": vocabulary, "hidden_size": hidden, "group_norm": True}
        make = lambda: DVAE(*sizes, **settings, rngs=nnx.Rngs(0))  # noqa: E731
        definition, expected, _ = split(nnx.eval_shape(make))
        assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}
        draws = {kind: grid_last(file[f"inp/gumbel_{kind}"]) for kind in ("soft", "hard")}

        @jax.jit
        def run(arrays):
            model = definition.merge(arrays)
            found = model.quantize(model.encode(image), draws, {"tau": file["inp/tau"]})
            return found.tokens, model.decode(found.mixed)

        tokens, recon = run(arrays)
        np.testing.assert_array_equal(tokens.reshape(file["out/tokens"].shape), file["out/tokens"])
        file.compare("out/recon_clamped", np.moveaxis(np.clip(recon, 0.0, 1.0), -1, 1), FORWARD)
        file.compare("loss/mse", jnp.sum((recon - image) ** 2) / len(image), LOSS)


class Recurrence(nnx.Module):
    """Slots of a clip of tokens."""

    def __init__(self, width: int, slot_size: int, mlp_size: int, num_layers: int):
        rngs = nnx.Rngs(0)
        gaussian = {"log_std": None, "mean": "xavier"}
        self.initializer = Gaussian(width, slot_size, 1, **gaussian, rngs=rngs)
        self.aggregator = SlotAttention(width, slot_size, **ATTENTION, mlp_size=mlp_size, rngs=rngs)
        self.transition = Transformer(
            width, slot_size, **PREDICTOR, num_layers=num_layers, rngs=rngs
        )

    def __call__(self, tokens, noise):
        queries, _ = self.initializer(tokens[:, 0], None, None, noise, {})
        slots, attentions = [], []
        for frame in range(tokens.shape[1]):
            found = self.aggregator(self.aggregator.prepare(tokens[:, frame]), queries)
            slots.append(found.slots)
            attentions.append(found.attention[-1])
            queries, _ = self.transition(found.slots, None, None)
        return jnp.stack(slots, axis=1), jnp.stack(attentions, axis=1)


@pytest.mark.slow
def test_slot_attention():
    """Slots, attention and gradients over a clip."""
    with golden("slot_attention_steve") as file:
        theirs = {f"steve_encoder.savi.{k}": x for k, x in file.group("param/").items()}
        of = lambda key: theirs[f"steve_encoder.savi.{key}"].shape  # noqa: E731
        sizes = of("project_k.weight")[1], of("project_q.weight")[0], of("mlp.0.weight")[0]
        layers = numbers(theirs, "steve_encoder.savi.predictor.blocks.")
        definition, expected, _ = split(nnx.eval_shape(lambda: Recurrence(*sizes, layers)))
        convert = lambda found: STEVE.to_ours(found, expected)  # noqa: E731
        arrays = {k: jnp.asarray(x) for k, x in convert(theirs).items()}
        assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}
        tokens, noise = file["inp/tokens"], file["inp/noise"]
        cotangents = file["inp/cotangent_slots"], file["inp/cotangent_attention"].swapaxes(2, 3)

        @jax.jit
        def run(arrays):
            def total(arrays):
                outputs = definition.merge(arrays)(tokens, noise)
                return inner(list(zip(outputs, cotangents, strict=True))), outputs

            return jax.value_and_grad(total, has_aux=True)(arrays)

        (_, (slots, attention)), gradients = run(arrays)
        file.compare("out/slots", slots, FORWARD)
        file.compare("out/attention", attention.swapaxes(2, 3), FORWARD)
        recorded = {f"steve_encoder.savi.{k}": x for k, x in file.group("grad/").items()}
        compare_recorded(file, gradients, convert(recorded))


class Recorded:
    """The gallery's STEVE at the size of a file, with its arrays.

    Args:
        file: `model_steve_original`.
        dvae: `tokeniser_dvae`, whose weights the model has.
    """

    def __init__(self, file: Golden, dvae: Golden):
        theirs = {f"dvae.{key}": x for key, x in dvae.group("param/").items()}
        theirs |= file.group("param/")
        of = lambda key: theirs[key].shape  # noqa: E731
        self.file, self.theirs = file, theirs
        video = file["inp/video"]
        self.video = np.moveaxis(video, 2, -1)
        self.size = video.shape[-2:]
        self.num_slots = file["inp/noise"].shape[1]
        savi, decoder = "steve_encoder.savi.", "steve_decoder."
        slot_size = of(f"{savi}project_q.weight")[0]
        vocabulary, hidden = of("dvae.encoder.7.weight")[:2]
        layers = numbers(theirs, "steve_encoder.cnn.")
        stride = self.size[0] // of("steve_encoder.pos.pe")[2]
        blocks = numbers(theirs, f"{savi}predictor.blocks.")
        config = tiny_config(video.shape[1])
        gallery = load_config(f"{CONFIG}:steve,original")
        with config.unlocked(), gallery.unlocked():
            model = gallery.model
            config.model, config.losses = model, gallery.losses
            config.optimizer, config.weights = gallery.optimizer, ConfigDict()
            config.eval.masks = gallery.eval.masks
            config.data.boxes = False
            with config.data.ignore_type():
                config.data.image_size = self.size
            model.update(num_slots=self.num_slots, slot_size=slot_size)
            model.encoder.update(
                width=of("steve_encoder.cnn.0.m.weight")[0],
                out_width=of(f"steve_encoder.cnn.{layers - 1}.weight")[0],
                kernel_size=of("steve_encoder.cnn.0.m.weight")[2],
                strides=(stride, *(1,) * (layers - 1)),
            )
            model.projection.hidden_size = of("steve_encoder.mlp.0.weight")[0]
            model.aggregator.mlp_size = of(f"{savi}mlp.0.weight")[0]
            model.transition.num_layers = blocks
            model.decoder.update(
                token_size=of(f"{decoder}bos")[-1],
                num_layers=numbers(theirs, f"{decoder}tf.blocks."),
                dropout_rate=0.0,
            )
            model.tokenizer.update(vocabulary=vocabulary, hidden_size=hidden)
            model.target.update(
                vocabulary=vocabulary,
                width=vocabulary,
                grid=tuple(x // 4 for x in self.size),
            )
        self.config = config

    def batch(self) -> dict[str, np.ndarray]:
        return {"video": self.video, "slot_mask": np.ones((len(self.video), self.num_slots), bool)}

    def draws(self, steps: bool = False) -> dict:
        found = dict.fromkeys(KEYS)
        lead = self.video.shape[:2]
        noise = lambda key: grid_last(self.file[key]).reshape(*lead, -1, self.vocabulary)  # noqa: E731
        own = {"soft": noise("inp/gumbel_soft"), "hard": noise("inp/gumbel_hard")}
        return {**found, "initializer": self.file["inp/noise"], "tokenizer": own}

    @property
    def vocabulary(self) -> int:
        return self.config.model.tokenizer.vocabulary

    def to_ours(self, arrays: dict, names) -> dict:
        return STEVE.to_ours(arrays, names)


@pytest.mark.slow
def test_model():
    """Outputs, losses, gradients, and pictures generated from slots."""
    with golden("model_steve_original") as file, golden("tokeniser_dvae", parts=()) as dvae:
        case = Recorded(file, dvae)
        task, losses = build_task(case.config), build_losses(case.config.losses)
        definition, expected, _ = split(task.build(shapes_only=True))
        arrays = {k: jnp.asarray(x) for k, x in case.to_ours(case.theirs, expected).items()}
        assert {k: x.shape for k, x in arrays.items()} == {k: x.shape for k, x in expected.items()}
        scheduled = {"tokenizer": {"tau": jnp.asarray(file["inp/tau"])}}
        draws = jax.tree.map(jnp.asarray, case.draws())

        @jax.jit
        def run(arrays):
            def total(arrays):
                model = definition.merge(arrays)
                outputs = run_task(task, {"model": model}, case.batch(), draws, scheduled=scheduled)
                terms = losses(outputs, {}, losses.schedules)
                return sum(terms.values()), (outputs, terms)

            return jax.value_and_grad(total, has_aux=True)(arrays)

        (_, (outputs, terms)), gradients = run(arrays)
        first = lambda x: jnp.moveaxis(x, -1, 2)  # noqa: E731
        recon = jnp.clip(outputs["tokenizer.prediction"], 0.0, 1.0)
        file.compare("out/recon_clamped", first(recon), FORWARD)
        file.compare("out/slots", outputs["slots"], FORWARD)
        attention = outputs["attention"]
        larger = case.size[0] // attention.shape[-1]
        attention = attention.repeat(larger, axis=-1).repeat(larger, axis=-2)
        file.compare("out/attention", attention, FORWARD)
        tokens = outputs["tokens"].reshape(file["out/tokens"].shape)
        np.testing.assert_array_equal(tokens, file["out/tokens"])
        for theirs, ours in LOSSES.items():
            file.compare(f"loss/{theirs}", terms[ours], LOSS)
        compare_recorded(file, gradients, case.to_ours(file.group("grad/"), expected))
        table = KeyTable(STEVE.rows(expected, {}))
        compare_norms(file, lambda key: gradients[table.ours(key)[0]])

        @jax.jit
        def generate(arrays):
            model = definition.merge(arrays)
            found = model.decoder.generate(outputs["slots"][:, 0], None)
            return model.tokenizer.decode(model.tokenizer.codes(found))

        picture = jnp.clip(generate(arrays), 0.0, 1.0)
        file.compare("out/generated_frame0", jnp.moveaxis(picture, -1, 1), FORWARD)


@pytest.mark.slow
def test_training():
    """Six steps of the train step that `main.py` calls, with the optimizer of the gallery."""
    with (
        golden("model_steve_original", parts=()) as model,
        golden("tokeniser_dvae", parts=()) as dvae,
        golden("trajectory_steve_original", parts=("traj/", "final/")) as file,
    ):
        case = Recorded(model, dvae)
        rates, tau = file["traj/learning_rates"], file["traj/tau"]
        parts = list(file["traj/parts"])
        config, steps = case.config, len(rates)
        of_part = dict(zip(parts, rates.T, strict=True))
        settings = {"warmup": WARMUP / steps, "half_life": HALF_LIFE / steps}
        slots, decoder = of_part["steve_encoder"], of_part["steve_decoder"]
        peak = lambda rates: float(rates[0]) * WARMUP  # noqa: E731
        config.optimizer.learning_rate.update(peak=peak(decoder), **settings)
        config.optimizer.rates.slots.learning_rate.update(peak=peak(slots), **settings)
        config.optimizer.rates.tokenizer.learning_rate = float(of_part["dvae"][0])
        config.model.tokenizer.tau.update(
            begin=float(tau[0]), end=float(tau[-1]), until=COOLING / steps
        )
        config.train.num_steps = steps
        setup = build_training(config)
        batch, draws = setup.place(case.batch()), jax.tree.map(jnp.asarray, case.draws())
        start = case.to_ours(case.theirs, set(setup.state.params))

        def train(arrays):
            arrays = {name: jnp.asarray(x) for name, x in arrays.items()}
            state = setup.state.replace(params=jax.device_put(arrays, replicated(setup.mesh)))
            state, found, final = jax.tree.map(jnp.copy, state), [], {}
            for step in range(steps + 1):
                state, metrics = setup.train_step(state, {}, batch, jax.random.key(step), draws)
                found.append(jax.device_get(metrics))
                if step == steps - 1:  # one more step tells the losses after the last
                    final = jax.device_get(state.params)
            return {name: np.array([m[name] for m in found]) for name in found[0]}, final

        found, final = train(start)
        # A low temperature and sums over pixels magnify rounding from step to step. How much, runs
        # tell whose weights start one rounding away.
        others = [train(moved(start, seed)) for seed in range(RUNS)]

        def compare(actual, expected, tolerance, nearby, key):
            """Each number, within the tolerance or what one rounding changes."""
            actual, expected = np.float64(actual), np.float64(expected)
            apart = np.max([np.abs(other - actual) for other in nearby], axis=0)
            bound = np.maximum(tolerance * np.abs(expected), MAGNIFIED * apart)
            assert (np.abs(actual - expected) <= bound).all(), key
            return bound / np.abs(expected)

        for part, name in RATES.items():
            expected = of_part[part]
            np.testing.assert_allclose(found[name][:steps], expected, rtol=LOSS)
        losses = file["traj/losses"]
        for number, theirs in enumerate(file["traj/terms"]):
            name = f"loss/{LOSSES[str(theirs)]}"
            nearby = [x[name] for x, _ in others]
            bounds = compare(found[name], losses[:, number], LOSS, nearby, name)
            assert (bounds[:2] < GRADIENT).all()  # the first steps are not magnified
        norms, nearby = file["traj/gradient_norms"], [x["grad_norm"][:steps] for x, _ in others]
        bounds = compare(found["grad_norm"][:steps], norms, GRADIENT, nearby, "gradient norms")
        assert (bounds[:2] < 10 * GRADIENT).all()
        for key, expected in case.to_ours(file.group("final/"), set(final)).items():
            if key.endswith("norm_slots.bias"):  # its gradient is rounding noise
                continue
            error = np.abs(final[key] - expected).max()
            apart = max(np.abs(x[key] - final[key]).max() for _, x in others)
            bound = max(TRAINED * np.abs(expected).max(), MAGNIFIED * apart)
            assert error <= bound, f"{key}: {error:.1e}, one rounding {apart:.1e}"


def moved(arrays: dict, seed: int) -> dict:
    """Arrays one rounding up or down."""
    rng = np.random.default_rng(seed)
    sign = lambda x: rng.choice(np.float32([-1, 1]), x.shape)  # noqa: E731
    return {name: np.float32(x * (1 + 1e-7 * sign(x))) for name, x in arrays.items()}
