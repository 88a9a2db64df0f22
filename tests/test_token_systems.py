"""Systems whose slots explain tokens: what is computed, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import tiny_batch

from smoothsa_jax.config.load import load_config
from smoothsa_jax.errors import UserError
from smoothsa_jax.losses.reconstruction import Reconstruction
from smoothsa_jax.models.decoders import causal_transformer
from smoothsa_jax.models.decoders.causal_transformer import CausalTransformerDecoder
from smoothsa_jax.models.layers.quantize import chosen
from smoothsa_jax.training.step import build_training

GRID, TOKENS, VOCABULARY, SIZE, SLOTS, BATCH = (3, 4), 12, 10, 8, 3, 4
SETTINGS = {"num_layers": 2, "num_heads": 2, "embed": "codes"}
ORIGINAL = {
    **SETTINGS,
    "embed": "table",
    "token_size": 6,
    "project_slots": True,
    "biases": "all_but_attention",
    "activation": "relu",
    "final_norm": True,
    "dropout_rate": 0.1,
    "start": "xavier",
}


def decoder_of(**settings) -> CausalTransformerDecoder:
    return CausalTransformerDecoder(GRID, VOCABULARY, SIZE, **settings, rngs=nnx.Rngs(0))


def inputs(seed: int = 0) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "slots": jax.random.normal(keys[0], (BATCH, SLOTS, SIZE)),
        "tokens": jax.random.randint(keys[1], (BATCH, TOKENS), 0, VOCABULARY),
        "codes": jax.random.normal(keys[2], (VOCABULARY, SIZE)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 2**40])
def test_the_token_loss_is_the_cross_entropy_of_the_logits(monkeypatch, most):
    """Sample by sample or all at once, values and gradients are those of all logits."""
    monkeypatch.setattr(causal_transformer, "AT_ONCE", most)
    x = inputs()
    definition, weights = nnx.split(decoder_of(**SETTINGS))

    def run(weights, slots, whole):
        given = {"codes": x["codes"][x["tokens"]], "tokens": x["tokens"]}
        found, _ = nnx.merge(definition, weights)(slots, None, given, None)
        if whole:
            logits = found["prediction"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, x["tokens"]).mean()
        return found["token_loss"].mean()

    values = [
        jax.jit(jax.value_and_grad(lambda *a, w=whole: run(*a, w), argnums=(0, 1)))(
            weights, x["slots"]
        )
        for whole in (False, True)
    ]
    for one, two in zip(*map(jax.tree.leaves, values), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.more
@pytest.mark.parametrize(
    "settings", [pytest.param(SETTINGS, marks=pytest.mark.slow), ORIGINAL], ids=["codes", "table"]
)
def test_generated_tokens_are_the_largest_logits_given_the_ones_before(settings):
    """With a masked slot, as with any values of it; and the cache gives the same logits."""
    x, model = inputs(), decoder_of(**settings)
    is_table = settings["embed"] == "table"
    embed = None if is_table else lambda tokens: x["codes"][tokens]
    mask = jnp.array([[True, True, False]] * BATCH)
    other = jnp.where(mask[..., None], x["slots"], 7.0)
    run = jax.jit(lambda slots: model.generate_with_logits(slots, mask, embed))
    (tokens, logits), (again, _) = run(x["slots"]), run(other)
    np.testing.assert_array_equal(tokens, again)
    found, _ = model(x["slots"], mask, {"codes": x["codes"][tokens], "tokens": tokens}, None)
    np.testing.assert_array_equal(tokens, found["prediction"].argmax(axis=-1))
    np.testing.assert_allclose(logits, found["prediction"], atol=1e-5)


def test_a_start_in_the_table_is_its_first_row():
    """The same model as with a start vector of its own, which has that row."""
    x, apart = inputs(), decoder_of(**ORIGINAL)
    joined = decoder_of(**ORIGINAL, start_in_table=True)
    weights = nnx.to_pure_dict(nnx.state(apart))
    weights["table"] = jnp.concatenate([weights.pop("first")[0], weights["table"]])
    nnx.update(joined, weights)
    assert joined.table[...].shape == (VOCABULARY + 1, 6)

    @nnx.jit
    def run(model):
        found, _ = model(x["slots"], None, {"tokens": x["tokens"]}, None)
        return found["prediction"], model.generate(x["slots"], None)

    for one, two in zip(run(joined), run(apart), strict=True):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(UserError, match="has no table"):
        decoder_of(**SETTINGS, start_in_table=True)


def test_a_projection_with_a_bias_and_no_spare_position():
    """With the bias, the same as without it on slots that are moved by what it stands for."""
    x, plain = inputs(), decoder_of(**ORIGINAL)
    more = {"project_bias": True, "spare_position": False, "outer_start": "torch"}
    moved = decoder_of(**ORIGINAL, **more)
    weights = nnx.to_pure_dict(nnx.state(plain))
    assert weights["position"].shape == (1, TOKENS + 1, 6)
    weights["position"] = weights["position"][:, :-1]
    move = jnp.arange(1.0, SIZE + 1)
    kernel = weights["project_slots"]["kernel"]
    weights["project_slots"]["bias"] = move @ kernel
    bound = SIZE**-0.5  # of torch's start; Xavier's is sqrt(6 / (D + E))
    drawn = nnx.to_pure_dict(nnx.state(moved))["project_slots"]
    assert all(np.abs(value).max() <= bound for value in drawn.values())
    assert np.abs(kernel).max() > bound
    nnx.update(moved, weights)

    @nnx.jit
    def run(model, slots):
        found, _ = model(slots, None, {"tokens": x["tokens"]}, None)
        return found["prediction"], model.generate(slots, None)

    logits, tokens = run(plain, x["slots"] + move)
    found = run(moved, x["slots"])
    np.testing.assert_allclose(found[0], logits, atol=1e-5)
    np.testing.assert_array_equal(found[1], tokens)
    with pytest.raises(UserError, match="project_bias is True, but no layer takes the slots in"):
        decoder_of(**SETTINGS, project_bias=True)


def test_a_token_sees_those_before_it_alone():
    x, model = inputs(), decoder_of(**SETTINGS)
    run = jax.jit(lambda tokens: model(x["slots"], None, {"codes": x["codes"][tokens]}, None)[0])
    place = 5
    changed = x["tokens"].at[:, place].set((x["tokens"][:, place] + 1) % VOCABULARY)
    one, two = (np.asarray(run(tokens)["prediction"]) for tokens in (x["tokens"], changed))
    np.testing.assert_array_equal(one[:, : place + 1], two[:, : place + 1])
    assert (np.abs(one - two)[:, place + 1 :].max(axis=(0, 2)) > 0).all()


def test_dropout_is_of_training_alone():
    x, model = inputs(), decoder_of(**ORIGINAL)
    sizes = causal_transformer.Sizes(BATCH, 1, SLOTS)
    assert model.draw([jax.random.key(0)], sizes, False) is None
    draws = model.draw([jax.random.key(0)], sizes, True)[:, 0]

    @jax.jit
    def run(draws):
        return model(x["slots"], None, {"tokens": x["tokens"]}, draws)[0]["prediction"]

    assert np.abs(run(draws) - run(None)).max() > 1e-3
    np.testing.assert_array_equal(run(draws), run(draws))


def test_logits_are_no_prediction_of_tokens():
    outputs = {"prediction": jnp.zeros((2, 1, 3, 5)), "target": jnp.zeros((2, 1, 3), jnp.int32)}
    with pytest.raises(UserError, match=r"\[2, 1, 3, 5\] with target \[2, 1, 3\].*losses.token"):
        Reconstruction()(outputs, {}, {})


def test_the_gradient_of_codes_is_that_of_looking_rows_up():
    table, tokens = jax.random.normal(jax.random.key(0), (5, 3)), jnp.array([[0, 1, 1], [4, 1, 0]])
    weights = jax.random.normal(jax.random.key(1), (2, 3, 3))
    total = lambda look_up: jax.grad(lambda x: jnp.sum(weights * look_up(x, tokens)))(table)  # noqa: E731
    plain = total(lambda table, tokens: table[tokens])
    np.testing.assert_allclose(total(chosen), plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"token_size": 4}, "slots are 8 wide and enter as they are; set --config.model.decoder"),
        ({"embed": "rows"}, "model.decoder.embed is 'rows'"),
        ({"num_heads": 3}, "model.decoder.num_heads"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, line):
    with pytest.raises(UserError, match="(?s).*".join(line.split(" ... "))):
        decoder_of(**{**SETTINGS, **changes})


def test_codes_of_another_width_are_refused():
    x = inputs()
    with pytest.raises(UserError, match="codes are 5 wide, but model.decoder takes codes of 8"):
        decoder_of(**SETTINGS)(x["slots"], None, {"codes": jnp.zeros((BATCH, TOKENS, 5))}, None)


def flop(config, program: str) -> float:
    """FLOP of a compiled program of a second stage."""
    training = build_training(config, shapes_only=True)
    batch = tiny_batch(config)
    arguments = training.state.params, training.frozen, batch, jax.random.key(0)
    lowered = getattr(training, f"{program}_on").lower(training.mesh, *arguments, *(
        (False,) if program == "predict" else ()
    ))  # fmt: skip
    return lowered.compile().cost_analysis()["flops"]


def test_masks_need_neither_tokenizer_nor_decoder():
    """The compiled program of masks has the same FLOP whatever these two are."""
    small = load_config("configs/sprites.py:image,slate,smoke").copy_and_resolve_references()
    with small.unlocked():
        small.train.batch_size = 2
    large = small.copy_and_resolve_references()
    with large.unlocked():
        large.model.decoder.num_layers += 2
        large.companions.tokenizer.model.tokenizer.layer_width *= 2
    masks = flop(small, "predict")
    assert flop(large, "predict") == masks
    assert flop(small, "losses") > 1.5 * masks
