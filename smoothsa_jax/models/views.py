"""The target of new views: which views of a scene are seen, and which rays are rendered."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from smoothsa_jax.errors import UserError
from smoothsa_jax.models.encoders.pixels import normalize
from smoothsa_jax.models.interfaces import Draws, Encoder, Sizes
from smoothsa_jax.models.layers.rays import pixel_rays
from smoothsa_jax.parts import check_one_of, check_whole

PATH = "model.target"
TARGETS = ("others", "all")
ORDERS = ("drawn", "given")


class Rays(nnx.Module):
    """Colours of rays of a scene's target views (SRT, arXiv 2111.13152; OSRT, arXiv 2206.06922).

    In training, rays are drawn without replacement from all pixels of all target views of a scene.
    At evaluation these are all pixels, the first views are the input, and nothing is random.

    Args:
        encoder: unused.
        image_size: (H, W) of the views, in pixels.
        input_views: V, how many views of a scene the encoder sees.
        targets: the target views: the "others", or "all" views, the input too.
        order: in training, whether the input views are "drawn", or the first ones as "given".
        rays: R, how many rays of a scene a training step renders.
    """

    batch_reads = ("cameras",)
    width = 3
    of_rays = True
    pixels = "unit"

    def __init__(
        self,
        encoder: Encoder,
        image_size: tuple[int, int],
        *,
        input_views: int,
        targets: str,
        order: str,
        rays: int,
        rngs: nnx.Rngs,
    ):
        del encoder, rngs
        check_whole(f"{PATH}.input_views", input_views)
        check_one_of(f"{PATH}.targets", targets, TARGETS)
        check_one_of(f"{PATH}.order", order, ORDERS)
        check_whole(f"{PATH}.rays", rays)
        self.input_views, self.targets = input_views, targets
        self.drawn, self.rays, self.image_size = order == "drawn", rays, tuple(image_size)

    def places(self, num_views: int) -> tuple[range, range]:
        """Return the places, in the order of a scene's views, of the input and the target views."""
        first = 0 if self.targets == "all" else self.input_views
        return range(self.input_views), range(first, num_views)

    def check_views(self, num_views: int) -> None:
        """Refuse scenes with too few views, or with fewer pixels than rays are drawn.

        Raises:
            UserError: there are too few.
        """
        others = self.targets == "others"
        if num_views < self.input_views + others:
            raise UserError(
                f"scenes have {num_views} views, expected at least {self.input_views + others}: "
                f"{PATH}.input_views is {self.input_views}"
                f"{', and there has to be another to render' if others else ''}; lower "
                f"--config.{PATH}.input_views, or raise data.num_frames"
            )
        targets, (height, width) = len(self.places(num_views)[1]), self.image_size
        if self.rays > (pixels := targets * height * width):
            raise UserError(
                f"{PATH}.rays is {self.rays}, but {targets} target views of {height}x{width} "
                f"pixels have {pixels} rays, which are drawn without replacement; lower "
                f"--config.{PATH}.rays"
            )

    def draw(self, keys: Sequence[Array], sizes: Sizes, training: bool) -> Draws:
        """Return the `order` (B,T) of the views, and `pixels` (B,R) of all target views."""
        self.check_views(sizes.frames)
        if not training:
            return None
        of_order, of_pixels = jax.random.split(keys[0])
        order = _given(sizes.batch, sizes.frames)
        if self.drawn:
            order = jax.random.permutation(of_order, order, axis=1, independent=True)
        height, width = self.image_size
        count = len(self.places(sizes.frames)[1]) * height * width
        draw = lambda key: jax.random.choice(key, count, (self.rays,), replace=False)  # noqa: E731
        return {"order": order, "pixels": jax.vmap(draw)(jax.random.split(of_pixels, sizes.batch))}

    def seen(
        self, batch: Mapping[str, Array], draws: Draws
    ) -> tuple[Array, Float[Array, "B V 4 3"]]:
        """Return pixels (B,V,H,W,3) and cameras of the input views."""
        views = _order(batch, draws)[:, : self.input_views]
        return _views_of(batch["video"], views), _views_of(batch["cameras"], views)

    def __call__(
        self, batch: Mapping[str, Array], constants: Mapping[str, Array], draws: Draws
    ) -> dict[str, Float[Array, "B 1 R 3"]]:
        """Return `target`, the colours from 0 to 1, and the `positions` and `rays` they belong to.

        Rays are those drawn, or else all of the target views: view by view, row by row.
        """
        del constants
        order, (height, width) = _order(batch, draws), self.image_size
        places = self.places(order.shape[1])[1]
        if draws is None:
            pixels = _given(len(order), len(places) * height * width)
        else:
            pixels = draws["pixels"]
        place, at = pixels // (height * width), pixels % (height * width)
        rows, columns = at // width, at % width
        view = jnp.take_along_axis(order[:, places.start :], place, axis=1)
        pick = jax.vmap(lambda video, *index: video[index])
        colours = normalize(pick(batch["video"], view, rows, columns), self)
        cameras = jax.vmap(lambda cameras, view: cameras[view])(batch["cameras"], view)
        positions, rays = pixel_rays(cameras, rows, columns, self.image_size)
        found = {"target": colours, "positions": positions, "rays": rays}
        return {name: jax.lax.stop_gradient(x)[:, None] for name, x in found.items()}


def _given(batch: int, length: int) -> Int[Array, "B L"]:
    """Return 0, 1, ... for each sample."""
    return jnp.broadcast_to(jnp.arange(length), (batch, length))


def _order(batch: Mapping[str, Array], draws: Draws) -> Int[Array, "B T"]:
    """Return the numbers of a scene's views in their order: inputs first."""
    return _given(*batch["video"].shape[:2]) if draws is None else draws["order"]


def _views_of(x: Array, views: Int[Array, "B V"]) -> Array:
    return jax.vmap(lambda x, views: x[views])(x, views)
