"""The trained parts: initializer, slot attention, transition, random autoregressive decoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional


def decoder_layer(
    width: int, num_heads: int, norm_first: bool, dropout: float = 0.0
) -> nn.TransformerDecoderLayer:
    """torch's layer, whose attention is fused if its weights are not returned."""
    return nn.TransformerDecoderLayer(
        width,
        num_heads,
        4 * width,
        dropout,
        activation="gelu",
        batch_first=True,
        norm_first=norm_first,
        bias=False,
    )


class WarmerLayer(nn.TransformerDecoderLayer):
    """Cross-attention without a LayerNorm before it, then self-attention and MLP with one."""

    def __init__(self, width: int, num_heads: int):
        super().__init__(
            width, num_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True, bias=False
        )
        self.norm2 = nn.Identity()

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self._mha_block(x, memory, None, None)
        x = x + self._sa_block(self.norm1(x), None, None)
        return x + self._ff_block(self.norm3(x))


class Initializer(nn.Module):
    """Cold samples from one Gaussian or from boxes, and the warmer on top of them."""

    def __init__(self, feature_size: int, slot_size: int, num_heads: int, boxes: bool):
        super().__init__()
        if boxes:
            self.mlp = nn.Sequential(
                nn.Linear(4, slot_size),
                nn.GELU(),
                nn.Linear(slot_size, slot_size),
                nn.LayerNorm(slot_size),
            )
        else:
            self.mean = nn.Parameter(torch.zeros(1, 1, slot_size))
        self.from_boxes = boxes
        self.logstd = nn.Parameter(torch.zeros(1, 1, slot_size))
        self.logstd2 = nn.Parameter(torch.zeros(1, 1, slot_size))
        self.qproj_kv = nn.Linear(feature_size, slot_size)
        self.qinit = WarmerLayer(slot_size, num_heads)
        self.register_buffer("detach_flag", torch.tensor(True))  # theirs; `detach` is what counts
        self.detach = True

    def forward(
        self, encoded: Tensor, noise: Tensor, boxes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return warm queries and queries, both (B,N,D), from encoded features (B,M,C), cold noise
        (B,N,D) and boxes (B,N,4)."""
        mean = self.mlp(boxes) if self.from_boxes else self.mean
        cold = mean + self.logstd.exp() * noise
        memory = self.qproj_kv(encoded.detach() if self.detach else encoded)
        warm = self.qinit(cold, memory)
        queries = warm.detach()
        if self.training:
            queries = queries + self.logstd2.exp() * torch.randn_like(noise)
        return warm, queries


class SlotAttention(nn.Module):
    """Bi-level truncated slot attention (docs/design.md, section 1.1)."""

    def __init__(self, feature_size: int, slot_size: int):
        super().__init__()
        self.norm1q = nn.LayerNorm(slot_size)
        self.norm1kv = nn.LayerNorm(feature_size)
        self.proj_q = nn.Linear(slot_size, slot_size, bias=False)
        self.proj_k = nn.Linear(feature_size, slot_size, bias=False)
        self.proj_v = nn.Linear(feature_size, slot_size, bias=False)
        self.rnn = nn.GRUCell(slot_size, slot_size)
        self.norm2 = nn.LayerNorm(slot_size)
        self.ffn = nn.Sequential(
            nn.Linear(slot_size, 4 * slot_size), nn.GELU(), nn.Linear(4 * slot_size, slot_size)
        )

    def forward(self, encoded: Tensor, queries: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
        """(B,M,C), (B,N,D) -> slots (B,N,D), attention (B,N,M)."""
        normed = self.norm1kv(encoded)
        keys, values = self.proj_k(normed), self.proj_v(normed)
        slots = queries
        for iteration in range(iterations):
            if iteration == iterations - 1:
                slots = slots.detach() + (queries - queries.detach())
            query = self.proj_q(self.norm1q(slots)) * slots.shape[-1] ** -0.5
            attention = torch.einsum("bnd,bmd->bnm", query, keys).softmax(1)
            weights = attention / (attention.sum(2, keepdim=True) + 1e-5)
            update = torch.einsum("bnm,bmd->bnd", weights, values)
            slots = self.rnn(update.flatten(0, 1), slots.flatten(0, 1)).view_as(update)
            slots = slots + self.ffn(self.norm2(slots))
        return slots, attention


class Transition(nn.Module):
    """From slots and features of past frames to queries (docs/design.md, section 2.1)."""

    def __init__(
        self, feature_size: int, slot_size: int, num_heads: int, history: int, dropout: float
    ):
        super().__init__()
        self.te = nn.Embedding(history, slot_size)
        self.proji = nn.Linear(feature_size, slot_size)
        self.transit = decoder_layer(slot_size, num_heads, norm_first=False, dropout=dropout)

    def choose(self, slots: list[Tensor], encoded: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the inputs of `forward`, from the slots of all past frames and the encoded
        features (B,i+1,M,C) up to the current frame."""
        batch, past = len(encoded), min(len(slots), self.te.num_embeddings - 1)
        if self.training and past > 1:
            slot_time = torch.randint(past, (batch,), device=encoded.device)
            feature_time = torch.randint(1, past + 1, (batch,), device=encoded.device)
            sample = torch.arange(batch, device=encoded.device)
            chosen = torch.stack(slots[-past:], 1)[sample, slot_time]
            features = encoded[:, -past - 1 :][sample, feature_time]
            return chosen, features, past - slot_time, past - feature_time
        one = torch.ones(1, dtype=torch.long, device=encoded.device)
        return slots[-1], encoded[:, -1], one, 0 * one

    def forward(
        self, slots: Tensor, features: Tensor, slot_offset: Tensor, feature_offset: Tensor
    ) -> Tensor:
        """(B,N,D), (B,M,C) and how many frames ago each of them was -> the next queries (B,N,D)."""
        memory = self.proji(features.detach()) + self.te(feature_offset)[:, None]
        return self.transit(slots.detach() + self.te(slot_offset)[:, None], memory)


class Positions(nn.Module):
    def __init__(self, num_tokens: int, width: int):
        super().__init__()
        self._pe = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, num_tokens, width)))


class RandomARDecoder(nn.Module):
    """The random autoregressive decoder (docs/design.md, section 1.3)."""

    def __init__(
        self, feature_size: int, slot_size: int, num_tokens: int, num_layers: int, num_heads: int
    ):
        super().__init__()
        width = feature_size
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.posit_embed = Positions(num_tokens, width)
        self.project1 = nn.Sequential(nn.Linear(width, width, bias=False), nn.LayerNorm(width))
        self.project2 = nn.Sequential(nn.Linear(slot_size, width, bias=False), nn.LayerNorm(width))
        self.norm0 = nn.LayerNorm(width, bias=False)
        layer = decoder_layer(width, num_heads, norm_first=True)
        self.backbone = nn.TransformerDecoder(layer, num_layers)
        self.backbone.layers[0].norm1 = nn.Identity()

    def forward(
        self,
        features: Tensor,
        slots: Tensor,
        order: Tensor | None = None,
        num_visible: Tensor | None = None,
        weights: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """(B,M,C), (B,N,D) -> reconstruction (B,M,C), attention (B,N,M).

        Args:
            order: permutations (B,M) of the tokens, of which the first `num_visible` (B,) are
                seen. None: all, in grid order.
            weights: whether to return the attention; then the last cross-attention is not
                fused.
        """
        x, position = self.project1(features), self.posit_embed._pe.expand_as(features)
        if order is not None:
            gather = order[..., None].expand_as(features)
            x, position = x.gather(1, gather), position.gather(1, gather)
            seen = torch.arange(x.shape[1], device=x.device) < num_visible[:, None]
            x = torch.where(seen[..., None], x, self.mask_token.to(x.dtype))
        x, memory = self.norm0(x + position), self.project2(slots)
        *layers, last = self.backbone.layers
        for layer in layers:
            x = layer(x, memory)
        x = x + last._sa_block(last.norm1(x), None, None)
        update, attention = last.multihead_attn(last.norm2(x), memory, memory, need_weights=weights)
        x = x + update
        x = x + last._ff_block(last.norm3(x))
        if attention is not None:
            attention = attention.transpose(1, 2)
        if order is not None:
            back = order.argsort(1)
            x = x.gather(1, back[..., None].expand_as(x))
            if attention is not None:
                attention = attention.gather(2, back[:, None].expand_as(attention))
        return x, attention


def draw_order(batch: int, num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A permutation and a number of visible tokens for each sample."""
    order = torch.rand(batch, num_tokens, device=device).argsort(1)
    uniform = torch.randint(num_tokens - 1, (batch,), device=device)
    fixed = max(int(0.1 * num_tokens) - 1, 0)
    coin = torch.rand(batch, device=device) < 0.5
    return order, torch.where(coin, uniform, torch.full_like(uniform, fixed))


def slot_contrast(slots: Tensor, temperature: float = 0.1) -> Tensor:
    """(B,T,N,D) -> the slot contrast loss (docs/design.md, section 2.2)."""
    unit = functional.normalize(slots.transpose(0, 1).flatten(1, 2), dim=-1)
    logits = torch.einsum("tid,tjd->tij", unit[:-1], unit[1:]) / temperature
    identity = torch.arange(logits.shape[1], device=slots.device).expand(len(logits), -1)
    return functional.cross_entropy(logits, identity)  # the classes are axis 1, the earlier slots
