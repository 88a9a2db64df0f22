"""The backend is static: which forms it selects, and that all forms agree."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from recipes import quick, recipe, recipes
from tiny import tiny_batch, tiny_config

from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.devices.mesh import AXES
from smoothsa_jax.models.backend import CPU, Backend, backend_of
from smoothsa_jax.models.encoders.vit import resized
from smoothsa_jax.models.layers import attention
from smoothsa_jax.models.layers import basic as layers
from smoothsa_jax.models.layers.basic import LayerNorm, gelu
from smoothsa_jax.tasks.task import MODEL, run_task, sizes_of
from smoothsa_jax.training.step import build_training

H100 = Backend("cuda", 9.0, has_cudnn=True)
TPU = Backend("tpu")
OTHERS = {"tpu": TPU, "cuda": Backend("cuda", 9.0, has_cudnn=False), "rocm": Backend("rocm")}


def programs(config, backend: Backend):
    """The traced training step and prediction of a config, on shapes."""
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), AXES)
    training = build_training(config, mesh, backend, shapes_only=True)
    slots = training.task.slot_model.num_slots
    frames, size = config.data.num_frames, image_size_of(config)
    shape = lambda dtype, *sizes: jax.ShapeDtypeStruct((2, *sizes), dtype)  # noqa: E731
    batch = {
        "video": shape(jnp.uint8, frames, *size, 3),
        "boxes": shape(jnp.float32, frames, slots, 4),
        "slot_mask": shape(jnp.bool_, slots),
    }
    if config.task == "recognition":
        batch["segmentations"] = shape(jnp.uint8, frames, *size)
        batch["categories"] = shape(jnp.int32, config.data.max_objects)
    key = jax.random.key(0)
    yield training.train_step.trace(training.state, training.cast_frozen, batch, key)
    params = training.cast(training.state.params)
    inputs = params, training.cast_frozen, batch, key, False
    yield training.predict_on.trace(training.mesh, *inputs)


@pytest.mark.more
@pytest.mark.parametrize("name", quick(recipes(), "coco"))
def test_cudnn_gets_no_odd_length_under_a_gradient(name, monkeypatch):
    """On a GPU, cuDNN refuses these while tracing: 7 slots, 23, 11, and 261 encoder tokens."""
    original, calls = attention.takes_cudnn, []

    def spy(backend, dtype, head_size, lengths, masked, differentiated):
        taken = original(backend, dtype, head_size, lengths, masked, differentiated)
        calls.append((lengths, differentiated, taken))
        return False  # what cuDNN is called with cannot be traced without its plugin

    monkeypatch.setattr(attention, "takes_cudnn", spy)
    step, prediction = programs(recipe(name), H100)
    assert step and prediction
    assert ((261, 261), False, True) in calls  # the frozen encoder
    if "recognition" not in name:
        assert ((256, 256), True, True) in calls  # the decoder's self-attention, trained
    for (queries, keys), differentiated, taken in calls:
        if taken:
            assert queries >= 64
            assert not differentiated or (queries % 2 == 0 and keys % 2 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [H100, TPU, CPU], ids=lambda backend: backend.platform)
def test_no_device_is_asked_for_while_tracing(backend, monkeypatch):
    config = recipe("coco", "float32")
    traced = programs(config, backend)
    mesh = jax.devices()[:1]  # the generator asks once, before anything is traced

    def refuse(*ignored):
        raise AssertionError("a device was asked for while tracing")

    monkeypatch.setattr(jax, "devices", lambda: mesh)
    for name in ("default_backend", "local_devices"):
        monkeypatch.setattr(jax, name, refuse)
    assert len(list(traced)) == 2


@pytest.mark.parametrize("name", quick(["coco", "movi_c", "coco:recognition"], "coco"))
def test_programs_lower_for_a_tpu_that_is_not_there(name):
    for traced in programs(recipe(name), TPU):
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
        assert "stablehlo.dot_general" in text and "stablehlo.convolution" in text


def with_vit(num_frames: int, dtype: str = "float32"):
    config = tiny_config(num_frames=num_frames)
    config.dtype = dtype
    vit = {"name": "vit", "width": 12, "depth": 2, "num_heads": 2}
    config.model.encoder = {**vit, "patch": 4, "registers": 1, "swiglu": False, "resize": 0.5}
    config.data.image_size = 32
    return config


def outputs_of(training, params, frozen, batch):
    """All outputs of an evaluation forward, not only those that are scored."""

    @jax.jit
    def forward(params, frozen, batch, key):
        models = {MODEL: training.definitions[MODEL].merge(params, frozen, differentiated=False)}
        draws = training.task.draw(models, key, sizes_of(batch), False)
        outputs = run_task(training.task, models, batch, draws)
        return {name: x.astype(jnp.float32) for name, x in outputs.items()}

    return forward(params, frozen, batch, jax.random.key(0))


@pytest.mark.parametrize("kind", quick([*OTHERS, "tpu, in turns"]))
@pytest.mark.parametrize("num_frames", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_all_backends_compute_the_same(kind, num_frames, monkeypatch):
    """A training step and a prediction in float32, on the CPU in the form of another backend."""
    config = with_vit(num_frames)
    if "in turns" in kind:  # each frame on its own, where attention's weights are large
        monkeypatch.setattr(attention, "ON_CHIP", 1)
        monkeypatch.setattr(layers, "FEW_ROWS", 1)  # and products apart

    def run(backend):
        training = build_training(config, backend=backend)
        batch = training.place(tiny_batch(config))
        key = jax.random.key(0)
        arrays = training.state.params, training.frozen
        outputs = outputs_of(training, *arrays, batch)
        outputs["scored"] = training.predict(*arrays, batch, key)["masks"]
        state, metrics = training.train_step(training.state, training.frozen, batch, key)
        return jax.device_get((outputs, metrics, state.opt_state))

    expected, found = run(CPU), run(OTHERS[kind.split(",")[0]])
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max() + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_sixteen_bits_of_all_backends_are_those_of_float32_rounded(kind):
    config = with_vit(3)

    def run(dtype, backend):
        config.dtype = dtype
        training = build_training(config, backend=backend)
        batch = training.place(tiny_batch(config))
        params = training.cast(training.state.params)
        return jax.device_get(outputs_of(training, params, training.cast_frozen, batch))

    expected, found = run("float32", CPU), run("bfloat16", OTHERS[kind])
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=3e-2 * np.abs(array).max())


def test_the_gelu_of_a_tpu_is_exact_up_to_a_rounding_of_bfloat16():
    x = jnp.concatenate([jnp.linspace(-12, 12, 40001), jnp.array([-1e4, -50.0, 50.0, 1e4])])
    x = x.astype(jnp.bfloat16)
    exact = jax.nn.gelu(x.astype(jnp.float32), approximate=False)
    found = gelu(x, TPU)
    assert found.dtype == jnp.bfloat16
    error = jnp.abs(found.astype(jnp.float32) - exact)
    assert (error <= jnp.abs(exact) * 2.0**-7 + 1e-4).all()
    slope = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=False)))(x.astype(jnp.float32))
    found = jax.vmap(jax.grad(lambda x: gelu(x, TPU).astype(jnp.float32)))(x)
    np.testing.assert_allclose(found.astype(jnp.float32), slope, atol=1e-2)
    wide = jnp.linspace(-6, 6, 1001)
    np.testing.assert_allclose(gelu(wide, TPU), jax.nn.gelu(wide, approximate=False), atol=2e-6)


@pytest.mark.parametrize("backend", [CPU, TPU, H100], ids=lambda backend: backend.platform)
def test_layer_norm_is_that_of_flax(backend):
    rng = np.random.default_rng(0)
    norm = LayerNorm(24, epsilon=1e-5, rngs=nnx.Rngs(0))
    norm.scale[...] = jnp.asarray(rng.normal(size=24), jnp.float32)
    norm.bias[...] = jnp.asarray(rng.normal(size=24), jnp.float32)
    norm.backend = backend
    x = jnp.asarray(rng.normal(3.0, 2.0, size=(5, 24)), jnp.float32)

    def plain(x):
        centred = x - x.mean(-1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
        return centred * scale * norm.scale[...] + norm.bias[...]

    weights = jnp.asarray(rng.normal(size=(5, 24)), jnp.float32)
    for form in (lambda f: f(x), lambda f: jax.grad(lambda x: (f(x) * weights).sum())(x)):
        np.testing.assert_allclose(form(norm), form(plain), rtol=1e-5, atol=1e-5)
    rounded = norm(x.astype(jnp.bfloat16)).astype(jnp.float32)
    np.testing.assert_allclose(rounded, plain(x), atol=0.05)


@pytest.mark.parametrize(("old", "new"), [((256, 256), (224, 224)), ((20, 32), (14, 48))])
def test_resizing_is_bicubic_as_in_pytorch(old, new):
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, *old, 3)), jnp.float32)
    expected = jax.image.resize(
        images, (2, *new, 3), "cubic-pytorch", antialias=False, precision="highest"
    )
    np.testing.assert_allclose(resized(images, new, jnp.float32), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("cpu", None, CPU),
        ("tpu", None, TPU),
        ("gpu", "gfx942", Backend("rocm")),
        ("gpu", None, Backend("rocm")),
    ],
)
def test_the_backend_of_a_device(platform, capability, expected):
    attributes = {} if capability is None else {"compute_capability": capability}
    assert backend_of(types.SimpleNamespace(platform=platform, **attributes)) == expected


@pytest.mark.parametrize("installed", [True, False])
def test_cudnn_needs_its_plugin(installed, monkeypatch):
    monkeypatch.setattr("smoothsa_jax.models.backend._cuda_plugin_is_installed", lambda: installed)
    device = types.SimpleNamespace(platform="gpu", compute_capability="9.0")
    assert backend_of(device) == Backend("cuda", 9.0, installed)
