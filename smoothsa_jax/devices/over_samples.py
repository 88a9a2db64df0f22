"""Run a function with independent samples: every device runs its own samples, in parts.

The whole model is such a function. The losses follow on the outputs of the whole batch, so losses
that compare or count samples need no special care.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from smoothsa_jax.devices.mesh import AXES, persistent_sharding


def over_samples(
    function: Callable[[Any, Any], Any], mesh: Mesh, num_parts: int, arrays: Any, inputs: Any
) -> Any:
    """Compute `function(arrays, inputs)` with samples spread over the mesh.

    Each device gathers the arrays and runs its own samples; nothing else is communicated. In the
    backward pass, gradients are summed over devices once, at the end, rather than in every
    iteration of an inner loop, and each device receives only the part that it stores.

    With `num_parts`, intermediate values need memory for only B / num_parts samples. Each part is
    recomputed in the backward pass, which then applies the gradient of its outputs (as in
    GradCache, Gao et al. 2021). That costs one more run of the function.

    Args:
        function: maps arrays and inputs to outputs; samples do not interact.
        mesh: the devices.
        num_parts: number of parts per device.
        arrays: parameters and the like, the same for all samples, sharded by
            `mesh.persistent_sharding`.
        inputs: a tree of (B, ...).

    Returns:
        A tree of (B, ...).
    """
    if mesh.size == 1:
        return _in_parts(function, num_parts, arrays, inputs)
    specs = jax.tree.map(lambda sharding: sharding.spec, persistent_sharding(mesh, arrays))

    def on_a_device(arrays: Any, inputs: Any) -> Any:
        return _in_parts(function, num_parts, jax.tree.map(_gather, arrays, specs), inputs)

    samples = PartitionSpec(AXES)
    run = jax.shard_map(
        on_a_device, mesh=mesh, in_specs=(specs, samples), out_specs=samples, check_vma=False
    )
    return run(arrays, inputs)


def _gather(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    if "fsdp" not in spec:
        return x
    return jax.lax.all_gather(x, "fsdp", axis=spec.index("fsdp"), tiled=True)


def _in_parts(function: Callable, num_parts: int, arrays: Any, inputs: Any) -> Any:
    if num_parts == 1:
        return function(arrays, inputs)
    # An explicit length, since -1 is undefined for empty arrays: images draw nothing for later
    # frames.
    cut = lambda x: x.reshape(num_parts, len(x) // num_parts, *x.shape[1:])  # noqa: E731
    join = lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])  # noqa: E731
    # prevent_cse: the loop already keeps the two runs of a part apart.
    part = jax.checkpoint(lambda inputs: function(arrays, inputs), prevent_cse=False)
    return jax.tree.map(join, jax.lax.map(part, jax.tree.map(cut, inputs)))
