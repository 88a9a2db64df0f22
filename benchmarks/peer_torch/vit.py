"""The frozen encoder: DINOv2 with registers, with timm's keys (docs/design.md, section 4)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

MEAN = (123.675, 116.28, 103.53)  # of pixels in 0..255
STD = (58.395, 57.12, 57.375)


class Scale(nn.Module):
    """LayerScale."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class SelfAttention(nn.Module):
    """Fused attention with one biased projection to query, key and value."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        mixed = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, num_heads)
        self.ls1 = Scale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width)
        self.ls2 = Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """Images (B,3,S,S), with sides that patches divide -> patch tokens (B,M,C) before the last
    LayerNorm."""

    def __init__(
        self, width: int, depth: int, num_heads: int, patch: int, registers: int, num_tokens: int
    ):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.reg_token = nn.Parameter(0.02 * torch.randn(1, registers, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, num_tokens, width))
        self.blocks = nn.ModuleList([Block(width, num_heads) for _ in range(depth)])

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2) + self.pos_embed
        prefix = torch.cat([self.cls_token, self.reg_token], 1).expand(len(x), -1, -1)
        x = torch.cat([prefix, x], 1)
        for block in self.blocks:
            x = block(x)
        return x[:, prefix.shape[1] :]


class Resize(nn.Module):
    """Bicubic, coefficient -0.75, no antialias."""

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        return functional.interpolate(images, self.size, mode="bicubic", align_corners=False)


def normalize(pixels: Tensor) -> Tensor:
    """Return uint8 pixels (...,3) as ImageNet-normalized floats; floats are normalized already."""
    if pixels.is_floating_point():
        return pixels
    mean, std = pixels.new_tensor((MEAN, STD), dtype=torch.float32)
    return (pixels - mean) / std
