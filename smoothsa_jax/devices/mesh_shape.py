"""Compute the number of devices along each axis of the mesh. Does not import JAX."""

from typing import Any

from smoothsa_jax.errors import UserError


def mesh_shape(data: Any, fsdp: Any, num_devices: int) -> tuple[int, int]:
    """Return the number of devices along `mesh.data` and `mesh.fsdp`.

    Args:
        data: `mesh.data`; -1: all devices that `fsdp` leaves.
        fsdp: `mesh.fsdp`.
        num_devices: number of devices found.

    Raises:
        UserError: a value is not a valid number, or there are too few devices.
    """
    for key, value, least in (("data", data, -1), ("fsdp", fsdp, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value == 0 or value < least:
            also = "-1 (all devices that fsdp leaves) or " * (key == "data")
            raise UserError(
                f"mesh.{key} is {value!r}; expected {also}a number of devices of at least 1"
            )
    if data == -1:
        if num_devices % fsdp:
            raise UserError(
                f"mesh.fsdp is {fsdp}, which does not divide the {num_devices} devices found; "
                "choose a divisor, or set mesh.data too to leave some out"
            )
        return num_devices // fsdp, fsdp
    if data * fsdp > num_devices:
        asked = (
            f"mesh.data x mesh.fsdp asks for {data} x {fsdp}"
            if fsdp > 1
            else f"mesh.data asks for {data}"
        )
        raise UserError(
            f"{asked} devices, {num_devices} found; set --config.mesh.data=-1 to use all there are"
        )
    return data, fsdp
