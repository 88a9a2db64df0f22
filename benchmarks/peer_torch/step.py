"""The training step in the authors' manner (autocast, scaled loss, clipping, Adam, schedule), and
inference."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from peer_torch.model import SmoothSA, losses


def learning_rate_factor(step: int, num_steps: int, warmup: int, final_ratio: float) -> float:
    """Rise linearly from 0, then fall as a cosine to `final_ratio`."""
    if step < warmup:
        return step / warmup
    progress = min((step - warmup) / (num_steps - warmup), 1.0)
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


class TrainStep:
    """Train the model: video, noise, boxes -> the weighted losses.

    Adam is torch's fused one: faster than the authors' default, with the same numbers.

    Args:
        config: one of our configs.
        dtype: of autocast; float32 turns it off. float16 scales the loss.
        compiled: arguments of `torch.compile`; None: eager.
    """

    def __init__(
        self,
        model: SmoothSA,
        config: Mapping[str, Any],
        dtype: torch.dtype = torch.float32,
        compiled: Mapping[str, Any] | None = None,
    ):
        rate, num_steps = config["optimizer"]["learning_rate"], config["train"]["num_steps"]
        self.model, self.config, self.step = model, config, 0
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device.type
        self.optimizer = torch.optim.Adam(self.parameters, rate["peak"], fused=True)
        warmup = round(rate["warmup"] * num_steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: learning_rate_factor(step, num_steps, warmup, rate["end_ratio"]),
        )
        self.detach_until = config["model"]["initializer"]["detach"]["at"] * num_steps
        self.dtype = dtype
        self.scaler = torch.amp.GradScaler(self.device, enabled=dtype == torch.float16)
        self.losses: Callable = self._losses
        if compiled is not None:
            self.losses = torch.compile(self._losses, fullgraph=True, dynamic=False, **compiled)

    def _losses(
        self, video: Tensor, noise: Tensor, boxes: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # Training needs no masks, so that every attention can be fused.
        outputs = self.model(video, noise, boxes, weights=False)
        terms = losses(outputs, self.config["losses"])
        return sum(terms.values()), terms

    def __call__(
        self, video: Tensor, noise: Tensor, boxes: Tensor | None = None
    ) -> dict[str, Tensor]:
        self.model.initializ.detach = self.step < self.detach_until
        self.optimizer.zero_grad(set_to_none=True)
        autocast = self.dtype != torch.float32
        with torch.autocast(self.device, self.dtype if autocast else None, enabled=autocast):
            loss, terms = self.losses(video, noise, boxes)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        clip = self.config["optimizer"]["clip_norm"]
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.step += 1
        return {"loss": loss.detach(), "grad_norm": norm} | {
            k: x.detach() for k, x in terms.items()
        }


def inference(
    function: Callable,
    device: str,
    dtype: torch.dtype = torch.float32,
    compiled: Mapping[str, Any] | None = None,
) -> Callable:
    """Return a function such as `SmoothSA.masks` without gradients; see `TrainStep`."""
    if compiled is not None:
        function = torch.compile(function, fullgraph=True, dynamic=False, **compiled)
    autocast = dtype != torch.float32

    def call(*inputs: Tensor | None) -> Any:
        with (
            torch.inference_mode(),
            torch.autocast(device, dtype if autocast else None, enabled=autocast),
        ):
            return function(*inputs)

    return call
