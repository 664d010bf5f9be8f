"""One network: a pre-norm transformer with the options that the public families need.

Shape letters: B batch, T tokens, D hidden size, H heads, G key/value heads, K head width, V vocabulary,
C width of the time condition.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.attention import AttentionMask
from unmask.errors import UnmaskError
from unmask.models.config import ModelConfig
from unmask.models.grid import GridBias
from unmask.models.layers import MLP, Bottleneck, DraftHead, MixtureOfExperts, Norm
from unmask.models.mamba2 import Mamba2, runs
from unmask.models.mixers import MIXERS, Cache, Context


def rotary_tables(config: ModelConfig, length: int, local: bool = False) -> tuple[Tensor, Tensor]:
    """cos and sin [length, rotary_size / 2], float32 (RoPE, arXiv 2104.09864; half-split pairs); those of all layers
    but the local ones, or theirs."""
    size = config.rotary_size
    frequency = (config.local_theta if local else config.rope_theta) ** (
        -torch.arange(0, size, 2, dtype=torch.float64) / max(size, 1)
    )
    if config.rope_factors and not local:
        frequency = frequency / torch.tensor(config.rope_factors, dtype=torch.float64)
    cos = torch.empty(length, size // 2)
    sin = torch.empty(length, size // 2)
    for start in range(0, length, 8192):  # in pieces: the angles' float64 is twice as large as both tables
        position = torch.arange(start, min(start + 8192, length), dtype=torch.float64)
        angle = position[:, None] * frequency
        scale = 1.0 if local else config.rope_scale
        cos[start : start + 8192] = angle.cos() * scale
        sin[start : start + 8192] = angle.sin() * scale
    return cos, sin


class TimeEmbedding(nn.Module):
    """Noise level [B] to condition [B, C]: sinusoids of 256 features, then a two-layer MLP (DiT)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.up = nn.Linear(256, size)
        self.down = nn.Linear(size, size)

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
        size = config.hidden_size
        self.norm1 = Norm(config, size)
        self.mixer = MIXERS[config.layer_mixers[layer]](config, layer)
        self.mixer_norm = Norm(config, size) if config.output_norms else None
        self.norm2 = Norm(config, size)
        self.mlp_norm = Norm(config, size) if config.output_norms else None
        self.is_local = layer in config.local_layers
        experts = config.num_experts and layer >= config.first_dense_layers
        self.mlp = MixtureOfExperts(config) if experts else MLP(config, config.intermediate_size)
        self.adapter = Bottleneck(size, config.adapter_width) if config.adapter_width else None
        condition = config.time_condition_size
        self.modulation = nn.Linear(condition, 6 * size) if condition else None

    def forward(self, x: Tensor, context: Context, condition_BC: Tensor | None) -> Tensor:
        gate = context.gate_BT1
        if self.is_local and context.local_rope is not None:
            context = replace(context, rope=context.local_rope)
        if self.modulation is None or condition_BC is None:
            mixed = self.mixer(self.norm1(x), context)
            x = x + (mixed if self.mixer_norm is None else self.mixer_norm(mixed))
            h = self.norm2(x)
            fed = self.mlp(h) if gate is None else self.mlp(h, gate)
            x = x + (fed if self.mlp_norm is None else self.mlp_norm(fed))
            return x if self.adapter is None or gate is None else x + self.adapter(h, gate)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition_BC)[:, None].chunk(6, -1)
        x = x + gate1 * self.mixer(self.norm1(x) * (1 + scale1) + shift1, replace(context, gate_BT1=None))
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class MixerBlock(nn.Module):
    """A block without an MLP (Mamba)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = Norm(config, config.hidden_size)
        self.mixer = MIXERS[config.layer_mixers[layer]](config, layer)

    def forward(self, x: Tensor, context: Context, condition_BC: Tensor | None) -> Tensor:
        mixed: Tensor = self.mixer(self.norm1(x), context)
        return x + mixed


class Head(nn.Linear):
    """Logits; where the config has a cap they are float32 and bent into -cap .. cap."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.cap = config.logit_softcap

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.tanh(logits.float() / self.cap) * self.cap if self.cap else logits


class Transformer(nn.Module):
    """The denoiser: a canvas in, logits out, logits[:, i] scoring position i."""

    rope_cos: Tensor
    rope_sin: Tensor
    local_cos: Tensor
    local_sin: Tensor
    draft_vocabulary: Tensor | None  # the tokens that an adapter's slots can propose, ascending ids [V']

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(self.make_block(i) for i in range(config.num_layers))
        self.norm = Norm(config, config.hidden_size)
        self.head: nn.Linear = Head(config)
        self.position_embedding = (
            nn.Embedding(config.max_length, config.hidden_size) if config.learned_positions else None
        )
        size = config.time_condition_size
        self.time_embedding = TimeEmbedding(size) if size else None
        self.final_modulation = nn.Linear(size, 2 * config.hidden_size) if size else None
        self.mask_embedding = nn.Parameter(torch.zeros(config.hidden_size)) if config.adapted else None
        self.grid_bias = GridBias(config.grid, config.num_heads) if config.grid else None
        self.chain = DraftHead(config.hidden_size, config.chain_width) if config.chain_width else None
        self.register_buffer("draft_vocabulary", None, persistent=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        if not self.embedding.weight.is_meta:  # whoever fills such a network makes them then
            self.make_rotary_tables()

    def make_block(self, layer: int) -> nn.Module:
        return Block(self.config, layer) if self.config.intermediate_size else MixerBlock(self.config, layer)

    def make_rotary_tables(self) -> None:
        """Makes cos and sin for every position; again after a network was built on the meta device."""
        for name in ("rope", "local") if self.config.local_layers else ("rope",):
            cos, sin = rotary_tables(self.config, self.config.max_length, local=name == "local")
            self.register_buffer(f"{name}_cos", cos, persistent=False)
            self.register_buffer(f"{name}_sin", sin, persistent=False)

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
        if self.grid_bias is not None:
            self.grid_bias.initialise()
        for module in self.modules():
            if isinstance(module, Mamba2):
                module.initialise(generator)
        return self

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        mask: AttentionMask = None,
        cache: Cache | None = None,
        time_B: Tensor | None = None,
        gate_BT: Tensor | None = None,
        every_loop: bool = False,
    ) -> Tensor:
        """Final hidden states [B, T, D], before any un-shift and before the head; of every loop with every_loop,
        [loops * B, T, D], the first loop's rows first.

        ids_BT may be floats [B, T, V]: shares of tokens, whose embeddings are mixed.
        positions_BT defaults to 0..T-1; with a cache the mask covers the cache's slots; time_B is the
        noise level that an adaLN network is conditioned on, and is ignored by others; gate_BT (bool) says
        at which positions an adapter acts, None for nowhere.
        """
        at: Any = (None, slice(ids_BT.shape[1])) if positions_BT is None else positions_BT
        rope = (self.rope_cos[at], self.rope_sin[at])
        local = (self.local_cos[at], self.local_sin[at]) if self.config.local_layers else None
        condition = None
        if self.time_embedding is not None:
            zeros = torch.zeros(ids_BT.shape[0], device=ids_BT.device)
            condition = self.time_embedding(zeros if time_B is None else time_B)
        x = ids_BT @ self.embedding.weight if ids_BT.is_floating_point() else self.embedding(ids_BT)
        if self.config.embedding_scale != 1:
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype)
        gate = None
        if self.position_embedding is not None:
            where = torch.arange(ids_BT.shape[1], device=ids_BT.device) if positions_BT is None else positions_BT
            x = x + self.position_embedding(where)
        if gate_BT is not None and self.mask_embedding is not None:
            drafted = gate_BT & (ids_BT == self.config.mask_token_id)
            x = torch.where(drafted[..., None], self.mask_embedding.to(x.dtype), x)
            gate = gate_BT[..., None].to(x.dtype)
        if self.grid_bias is not None:
            mask = self._grid_mask(self.grid_bias, ids_BT.shape[1], mask, x.dtype)
        query = None
        if self.config.query_beta:
            where = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None] if positions_BT is None else positions_BT
            query = 1 + self.config.query_beta * torch.log1p((where // self.config.query_length).float())
        run = runs(positions_BT) if positions_BT is not None and self.config.recurrent else None
        context = Context(rope, mask, cache, gate, query, local, run)
        given = x
        states: list[Tensor] = []
        for loop in range(self.config.loops):
            x = given if loop == 0 else x + given
            for block in self.blocks:
                x = block(x, context, condition)
            if every_loop:
                states.append(x)
        x = self.norm(torch.cat(states) if every_loop else x)
        if self.final_modulation is not None and condition is not None:
            shift, scale = self.final_modulation(condition)[:, None].chunk(2, -1)
            x = x * (1 + scale) + shift
        return x

    def _grid_mask(self, grid: GridBias, length: int, mask: AttentionMask, dtype: torch.dtype) -> Tensor:
        """The bias of the grid's relations, minus infinity where the mask forbids; raises UnmaskError for other
        canvases than whole grids."""
        if length != grid.size or not (mask is None or isinstance(mask, Tensor)):
            raise UnmaskError(f"a network of a grid reads whole canvases of {grid.size} cells, not {length}")
        bias: Tensor = grid(dtype)
        return bias if mask is None else bias.masked_fill(~mask, -torch.inf)

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
        cache: Cache | None = None,
        time_B: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] in the weights' dtype, or log scores where the config says so; arguments as for `hidden`."""
        logits = self.head(self.unshift(self.hidden(ids_BT, positions_BT, mask, cache, time_B), positions_BT))
        if self.config.output == "log_score":
            return log_scores(logits, ids_BT, time_B, self.config.score_scaled)
        return logits

    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())
