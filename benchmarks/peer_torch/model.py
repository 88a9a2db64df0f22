"""The whole model: pixels -> features -> slots -> reconstruction -> losses or masks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from peer_torch.parts import (
    Initializer,
    RandomARDecoder,
    SlotAttention,
    Transition,
    draw_order,
    slot_contrast,
)
from peer_torch.vit import Resize, ViT, normalize


class Sequence(nn.Sequential):
    """Modules in sequence; `torch.compile` ignores torch's own class at the top level."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
        return x


class SmoothSA(nn.Module):
    """Clips (B,T,H,W,3), an image being a clip of one frame.

    Args:
        config: the `model` part of one of our configs, with a ViT and a warmer.
        image_size: H, W of the frames.
    """

    def __init__(self, config: Mapping[str, Any], image_size: tuple[int, int]):
        super().__init__()
        vit, aggregator, initializer = (
            config[name] for name in ("encoder", "aggregator", "initializer")
        )
        decoder, transition = config["decoder"], config["transition"]
        size = tuple(round(side * vit["resize"]) for side in image_size)
        self.grid = tuple(side // vit["patch"] for side in size)
        num_tokens = self.grid[0] * self.grid[1]
        width, slot_size = vit["width"], config["slot_size"]
        self.slot_size = slot_size
        self.iterations = aggregator["first"], aggregator["later"]
        names = ("width", "depth", "num_heads", "patch", "registers")
        backbone = ViT(*(vit[name] for name in names), num_tokens)
        self.encode_backbone = Sequence(Resize(size), backbone).requires_grad_(False)
        self.encode_project = Sequence(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.initializ = Initializer(
            width,
            slot_size,
            initializer["num_heads"],
            initializer["cold"]["name"] == "boxes",
        )
        self.aggregat = SlotAttention(width, slot_size)
        if transition["name"] != "none":
            self.transit = Transition(
                width,
                slot_size,
                transition["num_heads"],
                transition["history"],
                transition["dropout_rate"],
            )
        self.decode = RandomARDecoder(
            width, slot_size, num_tokens, decoder["num_layers"], decoder["num_heads"]
        )

    def compile_parts(self, **options: Any) -> None:
        """Compile each part, one program for all frames; the loop over frames stays Python's."""
        for part in self.children():
            part.compile(fullgraph=True, dynamic=False, **options)

    @torch.no_grad()
    def extract(self, video: Tensor) -> Tensor:
        """Return features (B,T,M,C) of (B,T,H,W,3), uint8 or normalized floats, in one batch."""
        images = normalize(video.flatten(0, 1)).permute(0, 3, 1, 2)
        return self.encode_backbone(images).unflatten(0, video.shape[:2])

    def find_slots(
        self, features: Tensor, noise: Tensor, boxes: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return warm queries (B,N,D), slots (B,T,N,D) and attention (B,T,N,M)."""
        encoded = self.encode_project(features)
        warm, queries = self.initializ(encoded[:, 0], noise, boxes)
        first, later = self.iterations
        slots, attention = self.aggregat(encoded[:, 0], queries, first)
        found, maps = [slots], [attention]
        for frame in range(1, encoded.shape[1]):
            queries = self.transit(*self.transit.choose(found, encoded[:, : frame + 1]))
            slots, attention = self.aggregat(encoded[:, frame], queries, later)
            found.append(slots)
            maps.append(attention)
        return warm, torch.stack(found, 1), torch.stack(maps, 1)

    def forward(
        self, video: Tensor, noise: Tensor, boxes: Tensor | None = None, weights: bool = True
    ) -> dict[str, Tensor]:
        """Return named outputs. In training mode everything random is drawn.

        Args:
            noise: (B,N,D) of the cold queries.
            boxes: (B,N,4) of the first frame.
            weights: whether to return the decoder's attention.
        """
        features = self.extract(video)
        warm, slots, attention = self.find_slots(features, noise, boxes)
        flat, drawn = features.flatten(0, 1), (None, None)
        if self.training:
            drawn = draw_order(*flat.shape[:2], flat.device)
        reconstruction, decoder_attention = self.decode(
            flat, slots.flatten(0, 1), *drawn, weights=weights
        )
        outputs = {
            "features": features,
            "warm": warm,
            "slots": slots,
            "attention": attention,
            "reconstruction": reconstruction.unflatten(0, slots.shape[:2]),
        }
        if weights:
            outputs["decoder_attention"] = decoder_attention.unflatten(0, slots.shape[:2])
        return outputs

    def masks(self, video: Tensor, noise: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Return the slot of each pixel (B,T,H,W), at the size of the frames."""
        attention = self(video, noise, boxes)["decoder_attention"]
        return self._segments(attention, video)

    def follow(self, video: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slots and the segments (B,1,H,W) of one further frame (B,1,H,W,3)."""
        features = self.extract(video)
        encoded = self.encode_project(features)
        queries = self.transit(*self.transit.choose([slots], encoded))
        slots, _ = self.aggregat(encoded[:, 0], queries, self.iterations[1])
        _, attention = self.decode(features[:, 0], slots)
        return slots, self._segments(attention[:, None], video)

    def _segments(self, attention: Tensor, video: Tensor) -> Tensor:
        maps = attention.flatten(0, 1).float().unflatten(2, self.grid)
        large = functional.interpolate(maps, video.shape[2:4], mode="bilinear", align_corners=False)
        return large.argmax(1).to(torch.uint8).unflatten(0, video.shape[:2])


def losses(
    outputs: Mapping[str, Tensor], terms: Mapping[str, Mapping[str, float]]
) -> dict[str, Tensor]:
    """Return the terms of a config's `losses`, each times its weight."""
    target, slots = outputs["features"].detach(), outputs["slots"]
    found = {
        "reconstruction": functional.mse_loss(outputs["reconstruction"], target),
        "distillation": functional.mse_loss(outputs["warm"], slots[:, 0].detach()),
    }
    if "slot_contrast" in terms:
        found["slot_contrast"] = slot_contrast(slots)
    return {name: terms[name]["weight"] * loss for name, loss in found.items()}
