"""One network: a pre-norm transformer with the options that the public families need.

Shape letters: B batch, T tokens, D hidden size, H heads, G key/value heads, K head width, V vocabulary,
C width of the time condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.attention import AttentionMask, attend
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.models.draft_head import Chain
from unmask.models.moe import MixtureOfExperts
from unmask.models.yarn import stretched


class KeyValueCache(Protocol):
    """What attention needs of a cache: keep this window's keys and values, return all visible ones."""

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]: ...


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """Layer norm in float32, with or without a bias."""

    def __init__(self, size: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), bias, self.eps).to(x.dtype)


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    if config.norm == "rms":
        return RMSNorm(size, config.norm_eps)
    return LayerNorm(size, config.norm_eps, config.norm_bias)


def rotary_tables(config: ModelConfig, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin [length, rotary_size / 2], float32 (RoPE, arXiv 2104.09864; half-split pairs)."""
    size = config.rotary_size
    frequency = config.rope_theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / max(size, 1))
    scale = 1.0
    if config.rope_yarn:
        *how, scale = config.rope_yarn
        frequency = stretched(frequency, config.rope_theta, *how)
    cos, sin = torch.empty(length, size // 2), torch.empty(length, size // 2)
    for start in range(0, length, 8192):  # in pieces: the angles' float64 is twice as large as both tables
        position = torch.arange(start, min(start + 8192, length), dtype=torch.float64)
        angle = position[:, None] * frequency
        cos[start : start + 8192], sin[start : start + 8192] = angle.cos() * scale, angle.sin() * scale
    return cos, sin


def rotate(x_BHTK: Tensor, cos_BTr: Tensor, sin_BTr: Tensor) -> Tensor:
    """Rotates the first 2r features of each head, pairing feature i with i + r."""
    r = cos_BTr.shape[-1]
    cos, sin = cos_BTr[:, None].to(x_BHTK.dtype), sin_BTr[:, None].to(x_BHTK.dtype)
    a, b, rest = x_BHTK[..., :r], x_BHTK[..., r : 2 * r], x_BHTK[..., 2 * r :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


class Projection(nn.Linear):
    """A linear layer with room for a low-rank adapter that acts at gated positions only.

    Where the gate is 0 the adapter's share is left out, not added as zero, so a pass without a gate is the
    base network to the bit (LoRA, arXiv 2106.09685; gated as in arXiv 2507.11851).
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, rank: int = 0) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.down = nn.Parameter(torch.empty(rank, inputs)) if rank else None
        self.up = nn.Parameter(torch.zeros(outputs, rank)) if rank else None

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """x [..., inputs]; gate [..., 1], 1 where the adapter acts, or None for nowhere."""
        y = super().forward(x)
        if gate is None or self.down is None or self.up is None:
            return y
        low = F.linear(x, self.down.to(x.dtype)) * gate
        return y + F.linear(low, self.up.to(x.dtype))


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.width = layer, config.head_dim
        heads, groups, rank = (
            config.num_heads * config.head_dim,
            config.num_kv_heads * config.head_dim,
            config.adapter_rank,
        )
        self.q_proj = Projection(config.hidden_size, heads, config.qkv_bias, rank)
        self.k_proj = Projection(config.hidden_size, groups, config.qkv_bias, rank)
        self.v_proj = Projection(config.hidden_size, groups, config.qkv_bias, rank)
        self.o_proj = Projection(heads, config.hidden_size, config.out_bias, rank)
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else None
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else None

    def forward(
        self,
        x_BTD: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: AttentionMask,
        cache: KeyValueCache | None,
        gate: Tensor | None,
    ) -> Tensor:
        batch, length, _ = x_BTD.shape
        q = self.q_proj(x_BTD, gate).view(batch, length, -1, self.width)
        k = self.k_proj(x_BTD, gate).view(batch, length, -1, self.width)
        v = self.v_proj(x_BTD, gate).view(batch, length, -1, self.width).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q.transpose(1, 2), *rope), rotate(k.transpose(1, 2), *rope)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        return self.o_proj(attend(q, k, v, mask).transpose(1, 2).reshape(batch, length, -1), gate)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, inner: int) -> None:
        super().__init__()
        size, bias, rank = config.hidden_size, config.mlp_bias, config.adapter_rank
        gated = config.activation in ("swiglu", "geglu_tanh")
        self.gate_proj = Projection(size, inner, bias, rank) if gated else None
        self.up_proj = Projection(size, inner, bias, rank)
        self.down_proj = Projection(inner, size, bias, rank)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        if self.gate_proj is not None:
            return self.down_proj(self.activation(self.gate_proj(x, gate)) * self.up_proj(x, gate), gate)
        return self.down_proj(self.activation(self.up_proj(x, gate)), gate)


class Bottleneck(nn.Module):
    """A small MLP beside a layer's own, at gated positions only (parallel adapter, arXiv 2110.04366).

    Its lower half reads what the layer's MLP reads, so a small pass computes both in one product.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.empty(width, size)), nn.Parameter(torch.zeros(size, width))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x [B, T, D]; gate [B, T, 1], 1 where it acts."""
        return F.linear(F.silu(F.linear(x, self.down.to(x.dtype))) * gate, self.up.to(x.dtype))


def make_mixer(config: ModelConfig, layer: int) -> nn.Module:
    """What mixes positions in a layer. An attention-free mixer is one more file and one line here."""
    return Attention(config, layer)


def make_mlp(config: ModelConfig, layer: int) -> nn.Module:
    """What mixes features in a layer: an MLP, or experts."""
    if config.num_experts and layer >= config.first_dense_layers:
        experts = nn.ModuleList(MLP(config, config.expert_size) for _ in range(config.num_experts))
        shared = MLP(config, config.shared_expert_size) if config.shared_expert_size else None
        return MixtureOfExperts(config, experts, shared)
    return MLP(config, config.intermediate_size)


class TimeEmbedding(nn.Module):
    """Noise level [B] to condition [B, C]: sinusoids of 256 features, then a two-layer MLP (DiT)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(256, size), nn.Linear(size, size)

    def forward(self, time_B: Tensor) -> Tensor:
        frequency = torch.exp(-math.log(10000.0) * torch.arange(128, device=time_B.device) / 128)
        angle = time_B.float()[:, None] * frequency
        sinusoids = torch.cat([angle.cos(), angle.sin()], -1).to(self.up.weight.dtype)
        return F.silu(self.down(F.silu(self.up(sinusoids))))


def log_scores(logits_BTV: Tensor, ids_BT: Tensor, time_B: Tensor | None, scaled: bool) -> Tensor:
    """Log ratios log p_t(y) / p_t(x) of every token y to the one that is there, which has 0 (SEDD, arXiv 2310.16834).

    time_B: the total noise sigma. scaled: the head leaves out the factor 1 / (expm1(sigma) (V - 1)).
    """
    if time_B is None:
        raise UnmaskError("a network that gives log scores needs a noise level (time)")
    if scaled:
        offset_B = torch.log(torch.expm1(time_B.float())) + math.log(logits_BTV.shape[-1] - 1)
        logits_BTV = logits_BTV - offset_B[:, None, None].to(logits_BTV.dtype)
    return logits_BTV.scatter(-1, ids_BT[..., None], 0.0)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm1, self.mixer = make_norm(config, config.hidden_size), make_mixer(config, layer)
        self.norm2, self.mlp = make_norm(config, config.hidden_size), make_mlp(config, layer)
        width = config.adapter_width
        self.adapter = Bottleneck(config.hidden_size, width) if width else None
        size = config.time_condition_size
        self.modulation = nn.Linear(size, 6 * config.hidden_size) if size else None

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: AttentionMask,
        cache: KeyValueCache | None,
        condition_BC: Tensor | None,
        gate: Tensor | None,
    ) -> Tensor:
        if self.modulation is None or condition_BC is None:
            x = x + self.mixer(self.norm1(x), rope, mask, cache, gate)
            if gate is None:
                return x + self.mlp(self.norm2(x))
            h = self.norm2(x)
            x = x + self.mlp(h, gate)
            return x if self.adapter is None else x + self.adapter(h, gate)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition_BC)[:, None].chunk(6, -1)
        x = x + gate1 * self.mixer(self.norm1(x) * (1 + scale1) + shift1, rope, mask, cache, None)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class SoftCappedHead(nn.Linear):
    """A head whose logits, float32, are bent into -cap .. cap."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.cap = config.logit_softcap

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x).float() / self.cap) * self.cap


class Transformer(nn.Module):
    """The denoiser: a canvas in, logits out, logits[:, i] scoring position i."""

    rope_cos: Tensor
    rope_sin: Tensor
    draft_vocabulary: Tensor | None  # the tokens that an adapter's slots can propose, ascending ids [V']

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(self.make_block(i) for i in range(config.num_layers))
        self.norm = make_norm(config, config.hidden_size)
        plain = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.head = SoftCappedHead(config) if config.logit_softcap else plain
        self.position_embedding = (
            nn.Embedding(config.max_length, config.hidden_size) if config.learned_positions else None
        )
        size = config.time_condition_size
        self.time_embedding = TimeEmbedding(size) if size else None
        self.final_modulation = nn.Linear(size, 2 * config.hidden_size) if size else None
        self.mask_embedding = nn.Parameter(torch.zeros(config.hidden_size)) if config.adapted else None
        self.chain = Chain(config.hidden_size, config.chain_width) if config.chain_width else None
        self.register_buffer("draft_vocabulary", None, persistent=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        if not self.embedding.weight.is_meta:  # whoever fills such a network makes them then
            self.make_rotary_tables()

    def make_block(self, layer: int) -> nn.Module:
        return Block(self.config, layer)

    def make_rotary_tables(self) -> None:
        """Makes cos and sin for every position; again after a network was built on the meta device."""
        cos, sin = rotary_tables(self.config, self.config.max_length)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    def initialise(self, seed: int, std: float = 0.02) -> Transformer:
        """GPT-2 initialisation: normal weights, residual outputs scaled by 1/sqrt(2 layers)."""
        generator = torch.Generator().manual_seed(seed)
        residual = std / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if "modulation" in name or name.endswith("bias"):
                nn.init.zeros_(parameter)  # adaLN-Zero: every block starts as the identity
            elif parameter.dim() == 2:
                out = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=residual if out else std, generator=generator)
        return self

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: AttentionMask = None,
        cache: KeyValueCache | None = None,
        time_B: Tensor | None = None,
        gate_BT: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, D], before any un-shift and before the head.

        positions_BT defaults to 0..T-1; with a cache the mask covers the cache's slots; time_B is the
        noise level that an adaLN network is conditioned on, and is ignored by others; gate_BT (bool) says
        at which positions an adapter acts, None for nowhere.
        """
        if positions_BT is None:
            cos, sin = self.rope_cos[None, : ids_BT.shape[1]], self.rope_sin[None, : ids_BT.shape[1]]
        else:
            cos, sin = self.rope_cos[positions_BT], self.rope_sin[positions_BT]
        condition = None
        if self.time_embedding is not None:
            zeros = torch.zeros(ids_BT.shape[0], device=ids_BT.device)
            condition = self.time_embedding(zeros if time_B is None else time_B)
        x, gate = self.embedding(ids_BT), None
        if self.position_embedding is not None:
            where = torch.arange(ids_BT.shape[1], device=ids_BT.device) if positions_BT is None else positions_BT
            x = x + self.position_embedding(where)
        if gate_BT is not None and self.mask_embedding is not None:
            drafted = gate_BT & (ids_BT == self.config.mask_token_id)
            x = torch.where(drafted[..., None], self.mask_embedding.to(x.dtype), x)
            gate = gate_BT[..., None].to(x.dtype)
        for block in self.blocks:
            x = block(x, (cos, sin), mask, cache, condition, gate)
        x = self.norm(x)
        if self.final_modulation is not None and condition is not None:
            shift, scale = self.final_modulation(condition)[:, None].chunk(2, -1)
            x = x * (1 + scale) + shift
        return x

    def unshift(self, x_BTD: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """Moves a shifted head's states one to the right, so that row i scores position i.

        The first position of a document has nothing to its left and keeps its own state (Dream).
        """
        if not self.config.shift:
            return x_BTD
        moved = torch.cat([x_BTD[:, :1], x_BTD[:, :-1]], 1)
        return moved if positions_BT is None else torch.where((positions_BT > 0)[..., None], moved, x_BTD)

    def forward(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: AttentionMask = None,
        cache: KeyValueCache | None = None,
        time_B: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] in the weights' dtype, or log scores where the config says so; arguments as for `hidden`."""
        logits = self.head(self.unshift(self.hidden(ids_BT, positions_BT, mask, cache, time_B), positions_BT))
        if self.config.output == "log_score":
            return log_scores(logits, ids_BT, time_B, self.config.score_scaled)
        return logits

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())
