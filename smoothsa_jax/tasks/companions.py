"""The companions of a trained model: frozen models that take part in its task."""

from flax import nnx
from ml_collections import ConfigDict

from smoothsa_jax.config.values import image_size_of
from smoothsa_jax.models.backend import Backend
from smoothsa_jax.models.build import slot_model_shapes
from smoothsa_jax.models.parameters import ModelDefinition, Parameters, frozen_patterns, split
from smoothsa_jax.tasks.task import MODEL


def companion_definition(
    name: str, config: ConfigDict, backend: Backend
) -> tuple[ModelDefinition, Parameters]:
    """Return a companion's definition and the shapes of its arrays, which come from elsewhere.

    Args:
        name: its name in `config.companions`.
        config: the whole config, with the companion's architecture.
        backend: the backend to compile for.
    """
    of_model = config.companions[name].get("model") or config.model
    model = slot_model_shapes(of_model, image_size_of(config))
    # No gradient passes through it, so there is nothing to recompute.
    model.set_memory_options("none", config.train.scan_unroll)
    definition, _, arrays = split(model, config.dtype, backend, ("*",), f"{name}.")
    return definition, arrays


def definitions_for_masks(
    model: nnx.Module, config: ConfigDict, backend: Backend
) -> tuple[dict[str, ModelDefinition], Parameters]:
    """Return what finds masks: the trained model, and the companion whose features it decodes.

    Args:
        model: the trained model, with shapes.
        config: the whole config.
        backend: the backend to compile for.

    Returns:
        The definitions by name, and the shapes of all their arrays.
    """
    patterns = frozen_patterns(config.weights)
    definition, trained, frozen = split(model, config.dtype, backend, patterns)
    definitions, arrays = {MODEL: definition}, {**trained, **frozen}
    of = config.model.get("target", {}).get("of")
    if of in config.companions:
        definitions[of], more = companion_definition(of, config, backend)
        arrays |= more
    return definitions, arrays
