"""What a network looks like: sizes, options and special tokens, as written to config.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from math import inf
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from unmask.errors import UnmaskError
from unmask.layout import BEHIND_TEXT, LAYOUT_KINDS, LayoutKind
from unmask.noise import NetworkSchedule

Norm = Literal["rms", "layer"]
Activation = Literal["swiglu", "geglu_tanh", "gelu", "gelu_tanh"]
Router = Literal["softmax", "sigmoid"]
Corruption = Literal["absorbing", "uniform"]
Scores = Literal["logits", "log_score"]
MixerName = Literal["attention", "mamba2"]  # the keys of mixers.MIXERS
# values that a field can have, at least and below
SIZES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "max_length")
OPTIONAL_SIZES = ("intermediate_size", "time_condition_size", "block_length", "num_experts", "shared_expert_size",
                  "first_dense_layers", "adapter_rank", "chain_width")  # fmt: skip
BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(SIZES, (1, 2**24)),
    **dict.fromkeys(OPTIONAL_SIZES, (0, 2**24)),
    **dict.fromkeys(("norm_eps", "logit_softcap", "router_scale"), (0, inf)),
    "loops": (1, 1000),
}
# fields of earlier versions, and the value that changes nothing
EARLIER: dict[str, Any] = {"rope_yarn": [], "mixer": "attention"}
TOKENS = [f"{role}_token_id" for role in ("mask", "eos", "bos", "pad", "delete", "insert")]


@dataclass(frozen=True)
class LayerAttention:
    """How one layer attends, in a network whose layers differ."""

    head_dim: int
    num_kv_heads: int
    rope_theta: float
    rotated_pairs: int  # of the head_dim / 2 pairs of features; the rest is not turned
    window: int = 0  # positions of text that are seen; 0: all
    keys_are_values: bool = False  # no projection of its own for values


@dataclass(frozen=True)
class StateSpace:
    """Sizes of the Mamba-2 mixers (arXiv 2405.21060). B and C, which tokens are written and read along, are shared by
    the heads of a group."""

    expand: int = 2  # width of all heads together over the hidden size
    head_dim: int = 64
    state_size: int = 128  # of B and C, and of a state for each feature of a head
    num_groups: int = 1
    conv_width: int = 4  # tokens that the short convolution before the state sees
    bias: bool = False  # of the projections
    conv_bias: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of one transformer. Widths are counts of features, lengths of tokens."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int  # 0: no MLP, where all mixers are mamba2
    num_kv_heads: int = 0  # 0: as many as heads
    head_dim: int = 0  # 0: hidden_size / num_heads
    max_length: int = 512
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    rope_theta: float = 10000.0
    rope_fraction: float = 1.0  # share of each head that is rotated
    rope_factors: tuple[float, ...] = ()  # what each pair's frequency is divided by, for longer texts; empty: by 1
    rope_scale: float = 1.0  # of cos and sin
    local_layers: tuple[int, ...] = ()  # layers that are rotated by local_theta, without rope_factors
    local_theta: float = 10000.0
    embedding_scale: float = 1.0  # what embeddings are multiplied by
    norm_offset: float = 0.0  # added to the weights of norms
    output_norms: bool = False  # what a mixer or an MLP adds is normed first
    attention_scale: float = 0.0  # of scores; 0: one over the root of head_dim
    query_beta: float = 0.0  # rotated queries are scaled by 1 + beta ln(1 + floor(position / query_length)) (Llama 4)
    query_length: int = 0  # 0 goes with a beta of 0
    grid: tuple[int, ...] = ()  # canvases are cells: rows, columns, rows and columns of a box; scores biased by them
    loops: int = 1  # times that the stack of blocks is passed, the embeddings added again each time
    learned_positions: bool = False  # a table added to the embeddings, beside or instead of rotation
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = "swiglu"
    tie_embeddings: bool = True
    head_bias: bool = False
    num_experts: int = 0  # 0: no mixture of experts, and the fields down to expert_groups_kept are not read
    experts_per_token: int = 1
    expert_size: int = 0  # intermediate size of one expert
    shared_expert_size: int = 0  # of the expert that every token passes, beside the routed ones; 0: none
    first_dense_layers: int = 0  # layers before the first with experts
    router: Router = "softmax"
    router_bias: bool = False  # a bias that takes part in choosing experts, not in weighing them
    router_normalise: bool = False  # the chosen experts' weights are made to sum to one
    router_scale: float = 1.0
    expert_groups: int = 1
    expert_groups_kept: int = 1  # experts are chosen from the best groups only
    time_condition_size: int = 0  # 0: no adaLN; else the width of the time embedding (DiT)
    time_conditioned: bool = False  # that embedding is told the noise level; else always 0
    adapter_rank: int = 0  # of low-rank adapters of all projections, acting at masked positions only; 0: none
    adapter_width: int = 0  # of a bottleneck beside each MLP, acting at masked positions only; 0: none
    chain_width: int = 0  # of the head that tells a draft the token before it; 0: none
    attention: tuple[LayerAttention, ...] = ()  # one for each layer; empty: all alike, as the fields above say
    logit_softcap: float = 0.0  # logits are bent into -cap .. cap by tanh; 0: not
    mixers: tuple[MixerName, ...] = ("attention",)  # what mixes positions in each layer, repeated over the depth
    state_space: StateSpace = StateSpace()
    shift: bool = False  # the head scores the next position; un-shifted inside the network, once
    in_place: bool = False  # but a block behind its text is scored in place (layouts causal_blocks, causal_window)
    corruption: Corruption = "absorbing"  # uniform: it writes over random tokens and has no mask
    noise_schedule: NetworkSchedule = "log_linear"  # of the total noise that the network is told
    noise_range: tuple[float, ...] = (1e-3, 1.0)  # total noise at times 0 and 1 of a geometric schedule
    output: Scores = "logits"  # log_score: log p_t(y) / p_t(x), 0 at the token that is there (SEDD)
    score_scaled: bool = False  # the head's log scores lack the share of the noise level, taken off afterwards
    layout: LayoutKind = "bidirectional"
    block_length: int = 0  # of a block-causal model, or of a canvas behind its text; 0 elsewhere
    mask_in_softmax: bool = False  # the mask has its share of the head's distribution; else it is taken out first
    mask_token_id: int | None = None
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    delete_token_id: int | None = None  # proposed to take a token out (LLaDA2.2)
    insert_token_id: int | None = None  # proposed to put a mask before a token

    def __post_init__(self) -> None:
        if self.num_heads > 0:
            object.__setattr__(self, "num_kv_heads", self.num_kv_heads or self.num_heads)
            object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // self.num_heads)
        self.check()

    def check(self) -> None:
        """Raises UnmaskError naming the first impossible value."""
        for problem in self._problems():
            raise UnmaskError(f"model config: {problem}")

    def _problems(self) -> Iterator[str]:
        """What is impossible, in the order of what depends on what: those after the first may be no problems."""
        for name, (least, end) in BOUNDS.items():
            if not least <= getattr(self, name) < end:
                yield f"{name} must be at least {least} and below {end}, got {getattr(self, name)}"
        if self.num_heads % self.num_kv_heads:
            yield f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})"
        yield from self._rope_problems()
        if self.num_experts:
            yield from self._expert_problems()
        if self.layout not in LAYOUT_KINDS or self.layout == "block_diffusion":
            yield f"layout '{self.layout}' is not one a model decodes with"
        if len(self.noise_range) != 2 or not 0 < self.noise_range[0] < self.noise_range[1] < 1e3:
            yield f"noise_range must be two rising values, got {list(self.noise_range)}"
        if self.layout in ("block_causal", "canvas", *BEHIND_TEXT) and self.block_length < 1:
            yield f"a {self.layout} model needs block_length >= 1"
        if (self.in_place or self.layout in BEHIND_TEXT) and not (self.shift and self.layout in BEHIND_TEXT):
            yield f"layout '{self.layout}' with in_place {self.in_place} and shift {self.shift} is impossible"
        yield from self._scale_problems()
        yield from self._attention_problems()
        yield from self._mixer_problems()
        if self.grid:
            yield from self._grid_problems(*[*self.grid, 0, 0, 0, 0][:4])
        for name in TOKENS:
            value = getattr(self, name)
            if value is not None and not 0 <= value < self.vocab_size:
                yield f"{name} {value} is outside the vocabulary of {self.vocab_size}"
        delete = self.delete_token_id
        insert = self.insert_token_id
        if (delete is None) != (insert is None) or (delete is not None and delete in (insert, self.mask_token_id)):
            yield f"delete_token_id {delete} and insert_token_id {insert} must be two tokens, not the mask"

    def _rope_problems(self) -> Iterator[str]:
        if not 0 < self.rope_theta < inf:
            yield f"rope_theta must be above 0, got {self.rope_theta}"
        if not 0.0 <= self.rope_fraction <= 1.0 or self.rotary_size % 2:
            yield f"rope_fraction {self.rope_fraction} of head_dim {self.head_dim} must be even and in 0..1"
        pairs = self.rotary_size // 2
        if self.rope_factors and (len(self.rope_factors) != pairs or not all(0 < f < 1e9 for f in self.rope_factors)):
            yield f"rope_factors must be {pairs} values above 0, one for each rotated pair"
        if not 0 < self.rope_scale < 1e9:
            yield f"rope_scale must be above 0, got {self.rope_scale}"
        if not 0 < self.local_theta < inf or not set(self.local_layers) <= set(range(self.num_layers)):
            yield f"local_layers {list(self.local_layers)} of {self.num_layers} with {self.local_theta} are impossible"
        if not 0 <= self.query_beta < 1e9 or self.query_length < (self.query_beta > 0):
            yield f"query_beta {self.query_beta} with query_length {self.query_length} is impossible"

    def _scale_problems(self) -> Iterator[str]:
        if not (0 < self.embedding_scale < 1e9 and 0 <= self.attention_scale < 1e9 and abs(self.norm_offset) < 1e9):
            scales = (self.embedding_scale, self.attention_scale, self.norm_offset)
            yield f"embedding_scale, attention_scale and norm_offset are impossible: {scales}"
        if self.output_norms and (self.time_condition_size or not self.intermediate_size):
            yield "output_norms go with an MLP in each layer and without time_condition_size"
        if self.layout == "canvas" and (self.local_layers or self.embedding_scale != 1 or self.output_norms):
            yield "local_layers, embedding_scale and output_norms do not go with layout canvas, which has its own"

    def _grid_problems(self, rows: int, columns: int, box_rows: int, box_columns: int) -> Iterator[str]:
        fine = len(self.grid) == 4 and rows > 0 and columns > 0
        if box_rows or box_columns:
            fine = fine and box_rows > 0 and box_columns > 0 and not rows % box_rows and not columns % box_columns
        if not fine or rows * columns != self.max_length or self.layout != "bidirectional":
            yield (
                f"grid {list(self.grid)} must be rows, columns and a box's rows and columns that divide them (0, 0 for "
                f"none), {self.max_length} cells in all (max_length), under the bidirectional layout"
            )

    def _expert_problems(self) -> Iterator[str]:
        count = self.num_experts
        used = self.experts_per_token
        if not 1 <= used <= count <= 4096 or not 1 <= self.expert_size < 2**24:
            yield f"experts_per_token {used} of num_experts {count} with expert_size {self.expert_size} is impossible"
        if self.adapted:
            yield f"num_experts {count} does not go with an adapter (adapter_rank, adapter_width)"
        groups = self.expert_groups
        kept = self.expert_groups_kept
        if not 1 <= kept <= groups or count % groups or count // groups * kept < used:
            yield f"{kept} of {groups} expert_groups cannot give {used} of {count} experts"

    def _attention_problems(self) -> Iterator[str]:
        if len(self.attention) != (self.num_layers if self.layout == "canvas" else 0):
            yield (
                f"layout '{self.layout}' with {self.num_layers} layers does not go with {len(self.attention)} layers "
                "in attention"
            )
        for number, layer in enumerate(self.attention):
            sizes = (layer.head_dim, layer.num_kv_heads)
            fine = all(1 <= size < 2**24 for size in sizes) and not layer.head_dim % 2
            fine = fine and not self.num_heads % layer.num_kv_heads and 0 < layer.rope_theta < inf
            if not fine or not 0 <= layer.rotated_pairs <= layer.head_dim // 2 or not 0 <= layer.window < 2**31:
                yield f"attention of layer {number} is impossible: {layer}"

    def _mixer_problems(self) -> Iterator[str]:
        if not self.mixers:
            yield "mixers is empty; name what mixes positions, for example [attention]"
        space = self.state_space
        sizes = (space.expand, space.head_dim, space.state_size, space.num_groups, space.conv_width)
        heads, rest = divmod(space.expand * self.hidden_size, max(space.head_dim, 1))
        impossible = not all(1 <= size < 2**16 for size in sizes) or rest or heads % space.num_groups
        if impossible and (self.recurrent or space != StateSpace()):
            yield f"state_space with hidden_size {self.hidden_size} is impossible: {space}"
        if self.recurrent and (self.layout not in ("bidirectional", "causal") or self.grid):
            yield f"mixers {list(self.mixers)} go with layout bidirectional or causal and no grid, not '{self.layout}'"
        if self.recurrent and self.layout == "causal" and self.loops > 1:
            yield f"mixers {list(self.mixers)} under layout causal keep one state a layer, so loops must be 1"
        more = self.num_experts or self.adapted or self.time_condition_size
        if not self.intermediate_size and (self.attends or more):
            yield "intermediate_size 0 (no MLP) is for mixers that are all mamba2, without experts, adapters and times"

    @property
    def layer_mixers(self) -> list[MixerName]:
        """What mixes positions, layer by layer."""
        return [self.mixers[layer % len(self.mixers)] for layer in range(self.num_layers)]

    @property
    def attends(self) -> bool:
        """Whether any layer is attention."""
        return "attention" in self.layer_mixers

    @property
    def recurrent(self) -> bool:
        """Whether any layer keeps a state in place of keys and values."""
        return "mamba2" in self.layer_mixers

    @property
    def state_values(self) -> int:
        """Numbers that the recurrent layers keep for a row, however long it is."""
        space = self.state_space
        inner = space.expand * self.hidden_size
        channels = inner + 2 * space.num_groups * space.state_size + inner // space.head_dim
        return self.layer_mixers.count("mamba2") * (inner * space.state_size + space.conv_width * channels)

    @property
    def key_shapes(self) -> list[tuple[int, int]]:
        """Key heads and their width, layer by layer; none in layers that do not attend."""
        own = [(layer.num_kv_heads, layer.head_dim) for layer in self.attention]
        each = (self.num_kv_heads, self.head_dim)
        return own or [each if mixer == "attention" else (0, 0) for mixer in self.layer_mixers]

    @property
    def windows(self) -> tuple[int, ...]:
        """The different windows of the layers; none where all layers are alike."""
        return tuple(sorted({layer.window for layer in self.attention}))

    @property
    def rotary_size(self) -> int:
        """How many features of each head are rotated."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def adapted(self) -> bool:
        """Whether an adapter acts at masked positions."""
        return bool(self.adapter_rank or self.adapter_width)

    def to_dict(self) -> dict[str, Any]:
        return {"model_type": "unmask", **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "model config") -> ModelConfig:
        """Reads a mapping; unknown or wrongly typed fields raise UnmaskError naming them."""
        own = {k: v for k, v in values.items() if k != "model_type" and (k not in EARLIER or v != EARLIER[k])}
        return build(cls, own, source)


def build(cls: type, values: dict[str, Any], source: str) -> Any:
    """Makes a flat dataclass from a mapping, refusing unknown, missing or wrongly typed fields."""
    if not isinstance(values, dict):
        raise UnmaskError(f"{source}: expected a mapping of fields, got {type(values).__name__}")
    hints = _hints(cls)
    typed: dict[str, Any] = {}
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(cls) if f.init}
    for name, value in values.items():
        if name not in known:
            raise UnmaskError(f"{source}: unknown field {name!r}; known fields: {', '.join(sorted(known))}")
        typed[name] = _typed(hints[name], value, f"{source}: {name}")
    missing = [name for name, required in known.items() if required and name not in typed]
    if missing:
        raise UnmaskError(f"{source}: lacks {', '.join(missing)}")
    return cls(**typed)


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Types of a class's fields; evaluating them takes a millisecond, and every request asks."""
    return get_type_hints(cls)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """The value, if it is of the hinted type (int passes for float; lists pass for tuples)."""
    options = get_args(hint)
    origin = get_origin(hint)
    if origin is Literal:
        if value not in options:
            raise UnmaskError(f"{where} is {value!r}; use one of {', '.join(map(str, options))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UnmaskError(f"{where} must be a list, got {value!r}")
        return tuple(_typed(options[0], item, where) for item in value)
    accepted = (origin,) if isinstance(origin, type) and origin is not UnionType else options or (hint,)
    if float in accepted and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UnmaskError(f"{where} is too large") from None
    if float in accepted and isinstance(value, str):  # YAML reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            pass
    plain = tuple(t for t in accepted if isinstance(t, type))
    if isinstance(value, dict) and len(plain) == 1 and is_dataclass(plain[0]):
        return build(plain[0], value, where)
    if (isinstance(value, bool) and bool not in plain) or (plain and not isinstance(value, plain)):
        names = " or ".join(t.__name__ for t in plain)
        raise UnmaskError(f"{where} must be {names}, got {value!r}")
    return value
