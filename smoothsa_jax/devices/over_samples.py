"""Running a function in which samples do not see each other: on every device its own samples, in parts.

That is all of the model. The losses come after it, on the outputs of the whole batch, so those that compare samples or count over
them need no care.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from smoothsa_jax.devices.mesh import AXES, persistent_sharding


def over_samples(
    function: Callable[[Any, Any], Any], mesh: Mesh, num_parts: int, arrays: Any, inputs: Any
) -> Any:
    """`function(arrays, inputs)`, where inputs and outputs are trees of (B, ...) and the samples are spread over the mesh.

    Each device gathers the arrays and runs its own samples; nothing else moves. Backwards their gradients are summed over the
    devices once, at the end, not in every turn of a loop inside, and only the part of them that a device keeps goes back to it.

    With `num_parts` intermediate values need memory for B / num_parts samples: each part is computed again on the way back, and
    goes down the gradient of its outputs (as in GradCache, Gao et al. 2021). That costs one more run of the function.

    Args:
        arrays: parameters and the like, the same for all samples, cut as `mesh.persistent_sharding` says.
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
    # In numbers, as -1 has no meaning where an array is empty: what images draw for the frames behind the first.
    cut = lambda x: x.reshape(num_parts, len(x) // num_parts, *x.shape[1:])  # noqa: E731
    join = lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])  # noqa: E731
    # prevent_cse: the loop keeps the two runs of a part apart already.
    part = jax.checkpoint(lambda inputs: function(arrays, inputs), prevent_cse=False)
    return jax.tree.map(join, jax.lax.map(part, jax.tree.map(cut, inputs)))
