"""A network as an OpenVINO graph: int8 weights, keys and values handed over as one array, logits of chosen rows.

Written for small passes on a CPU: projections that read the same input are one product, an adapter's lower
half rides on the base's product, and heads that share keys are one product too, so nothing is repeated.

Shape letters: B requests, W columns, S cache slots, L layers, G key/value heads, R query heads of each, K head
width, D hidden size, N scored rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset15 as op

from unmask.canvas import Array
from unmask.models.config import ModelConfig

Weight = Callable[[str], Array]  # a parameter of the network by name, float32


def quantise(weight: Array) -> tuple[Array, Array]:
    """int8 rows and their float32 scales [rows, 1], symmetric: weight is near rows * scales."""
    scale = np.maximum(np.abs(weight).max(1, keepdims=True), 1e-12) / 127
    return np.clip(np.rint(weight / scale), -127, 127).astype(np.int8), scale.astype(np.float32)


def _ints(*values: int) -> Any:
    return op.constant(np.array(values, np.int64))


def _indices(name: str) -> Any:
    out = op.parameter([-1], np.int32)
    out.set_friendly_name(name)
    out.output(0).set_names({name})
    return out


def _linear(x: Any, weight: Array) -> Any:
    """x @ weight.T with int8 weights, as the CPU plugin recognises it."""
    rows, scale = quantise(weight)
    return op.matmul(x, op.multiply(op.convert(op.constant(rows), np.float32), op.constant(scale)), False, True)


def _split(x: Any, sizes: list[int], axis: int = 2) -> list[Any]:
    parts = op.variadic_split(x, op.constant(np.int64(axis)), _ints(*sizes))
    return [parts.output(i) for i in range(len(sizes))]


class GraphBuilder:
    """Builds the graph of a Llama-shaped network; with slots, its adapter acts where `gate` is 1."""

    def __init__(self, config: ModelConfig, weight: Weight, slots: bool) -> None:
        self.config = config
        self.weight = weight
        self.slots = slots
        self.gate: Any = None

    def build(self, draft_vocabulary: Array | None) -> ov.Model:
        """Inputs: ids, position int32 [B, W]; mask float32 [B, 1, W, S + W], added to scores; cache float32
        [2L, B, G, S, K]; rows int32 [N]; with slots also gate float32 [B, W, 1], draft_rows and slot_rows int32 [M].
        Outputs: logits [N, V], keys and values [2L, B, G, W, K], with slots draft logits [M, V'] and the final states
        [.., D] of rows and of slot_rows."""
        c = self.config
        layers = c.num_layers
        ids = op.parameter([-1, -1], np.int32, name="ids")
        position = op.parameter([-1, -1], np.int32, name="position")
        mask = op.parameter([-1, 1, -1, -1], np.float32, name="mask")
        cache = op.parameter([2 * layers, -1, c.num_kv_heads, -1, c.head_dim], np.float32, name="cache")
        rows = op.parameter([-1], np.int32, name="rows")
        inputs = [ids, position, mask, cache, rows]
        x = self._embed(ids)
        if self.slots:
            self.gate = op.parameter([-1, -1, 1], np.float32, name="gate")
            draft_rows = _indices("draft_rows")
            slot_rows = _indices("slot_rows")
            inputs += [self.gate, draft_rows, slot_rows]
            masked = op.convert(op.equal(ids, op.constant(np.array(c.mask_token_id, np.int32))), np.float32)
            drafted = op.multiply(op.unsqueeze(masked, _ints(2)), self.gate)
            learned = op.constant(self.weight("mask_embedding").reshape(1, 1, -1))
            x = op.add(x, op.multiply(drafted, op.subtract(learned, x)))
        rope = self._rope(position)
        tiled = op.concat([mask] * (c.num_heads // c.num_kv_heads), 2)
        earlier = op.split(cache, op.constant(np.int64(0)), 2 * layers)
        made = []
        for i in range(layers):
            keys, values = (op.squeeze(earlier.output(2 * i + j), _ints(0)) for j in range(2))
            x, new = self._block(x, i, rope, tiled, keys, values)
            made += [op.unsqueeze(part, _ints(0)) for part in new]
        flat = op.reshape(x, _ints(-1, c.hidden_size), False)
        head = self.weight("embedding.weight")

        def state(index: Any) -> Any:
            return self._norm(op.gather(flat, index, op.constant(np.int64(0))), "norm.weight")

        states = state(rows)
        outputs = [op.result(_linear(states, head)), op.result(op.concat(made, 0))]
        if draft_vocabulary is not None:
            drafts = _linear(state(draft_rows), head[draft_vocabulary])
            outputs += [op.result(drafts), op.result(states), op.result(state(slot_rows))]
        return ov.Model(outputs, inputs, "unmask")

    def build_draft_head(self, draft_vocabulary: Array) -> ov.Model:
        """Inputs: state, before float32 [N, D]; token int32 [N]. Outputs: the state once the token is known [N, D] and
        its logits [N, V']."""
        size = self.config.hidden_size
        state, before = (op.parameter([-1, size], np.float32, name=name) for name in ("state", "before"))
        token = op.parameter([-1], np.int32, name="token")
        after = state
        if self.config.chain_width:
            x = op.concat([self._unit(part) for part in (state, before, self._embed(token))], 1)
            gate, inner = (_linear(x, self.weight(f"chain.{name}")) for name in ("gate", "inner"))
            after = op.add(state, _linear(op.multiply(op.swish(gate), inner), self.weight("chain.out")))
        logits = _linear(after, self.weight("embedding.weight")[draft_vocabulary])
        return ov.Model([op.result(after), op.result(logits)], [state, before, token], "draft_head")

    def _embed(self, ids: Any) -> Any:
        rows, scale = quantise(self.weight("embedding.weight"))
        axis = op.constant(np.int64(0))
        values = op.convert(op.gather(op.constant(rows), ids, axis), np.float32)
        return op.multiply(values, op.gather(op.constant(scale), ids, axis))

    def _rope(self, position: Any) -> tuple[Any, Any]:
        size = self.config.head_dim
        frequency = (self.config.rope_theta ** (-np.arange(0, size, 2) / size)).astype(np.float32)
        place = op.unsqueeze(op.convert(position, np.float32), _ints(2))
        angle = op.multiply(place, op.constant(frequency.reshape(1, 1, -1)))
        cos, sin = (op.unsqueeze(f(angle), _ints(2)) for f in (op.cos, op.sin))
        return op.concat([cos, cos], -1), op.concat([sin, sin], -1)

    def _rotate(self, x: Any, rope: tuple[Any, Any]) -> Any:
        half = self.config.head_dim // 2
        a, b = _split(x, [half, half], 3)
        turned = op.concat([op.multiply(b, op.constant(np.float32(-1))), a], -1)
        return op.add(op.multiply(x, rope[0]), op.multiply(turned, rope[1]))

    def _norm(self, x: Any, name: str) -> Any:
        return op.multiply(self._unit(x, self.config.norm_eps), op.constant(self.weight(name)))

    def _unit(self, x: Any, eps: float = 1e-6) -> Any:
        """At unit root mean square."""
        mean = op.reduce_mean(op.power(x, op.constant(np.float32(2))), _ints(-1), True)
        scale = op.divide(op.constant(np.float32(1)), op.sqrt(op.add(mean, op.constant(np.float32(eps)))))
        return op.multiply(x, scale)

    def _project(self, x: Any, names: list[str], beside: list[Array] | None = None) -> list[Any]:
        """The outputs of projections that read one input, low-rank adapters included, then of the matrices
        `beside` them."""
        bases = [*(self.weight(f"{name}.weight") for name in names), *(beside or [])]
        sizes = [len(base) for base in bases]
        if not (self.slots and self.config.adapter_rank):
            y = _linear(x, np.concatenate(bases))
        else:
            downs, ups = ([self.weight(f"{name}.{part}") for name in names] for part in ("down", "up"))
            low = [len(down) for down in downs]
            wide = _split(_linear(x, np.concatenate([*bases, *downs])), [sum(sizes), sum(low)])
            joined = np.zeros((sum(sizes), sum(low)), np.float32)  # block-diagonal: each adapter to its own output
            for n, up in enumerate(ups):
                rows = sum(sizes[:n])
                columns = sum(low[:n])
                joined[rows : rows + sizes[n], columns : columns + low[n]] = up
            y = op.add(wide[0], _linear(op.multiply(wide[1], self.gate), joined))
        return _split(y, sizes) if len(sizes) > 1 else [y]

    def _block(self, x: Any, i: int, rope: tuple[Any, Any], mask: Any, keys: Any, values: Any) -> tuple[Any, list[Any]]:
        name = f"blocks.{i}."
        h = self._norm(x, name + "norm1.weight")
        q, k, v = self._project(h, [f"{name}mixer.{part}_proj" for part in "qkv"])
        mixed, new = self._attend(q, k, v, rope, mask, keys, values)
        x = op.add(x, self._project(mixed, [name + "mixer.o_proj"])[0])
        h = self._norm(x, name + "norm2.weight")
        wide = self.slots and self.config.adapter_width
        beside = [self.weight(name + "adapter.down")] if wide else []
        gate, up, *low = self._project(h, [name + "mlp.gate_proj", name + "mlp.up_proj"], beside)
        x = op.add(x, self._project(op.multiply(op.swish(gate), up), [name + "mlp.down_proj"])[0])
        for part in low:
            acting = op.multiply(op.swish(part), self.gate)
            x = op.add(x, _linear(acting, self.weight(name + "adapter.up")))
        return x, new

    def _attend(
        self, q: Any, k: Any, v: Any, rope: tuple[Any, Any], mask: Any, keys: Any, values: Any
    ) -> tuple[Any, list[Any]]:
        c = self.config
        order = _ints(0, 2, 1, 3)

        def heads(t: Any) -> Any:
            return op.reshape(t, _ints(0, 0, -1, c.head_dim), True)

        k = op.transpose(self._rotate(heads(k), rope), order)
        v = op.transpose(heads(v), order)
        q = op.transpose(self._rotate(heads(q), rope), order)  # [B, G * R, W, K], and R * W rows to each of G
        q = op.multiply(q, op.constant(np.float32(c.head_dim**-0.5)))
        q = op.reshape(q, _ints(0, c.num_kv_heads, -1, c.head_dim), True)
        scores = op.matmul(q, op.concat([keys, k], 2), False, True)
        p = op.softmax(op.add(scores, mask), -1)
        out = op.matmul(p, op.concat([values, v], 2), False, False)
        out = op.reshape(out, _ints(0, c.num_heads, -1, c.head_dim), True)
        return op.reshape(op.transpose(out, order), _ints(0, 0, c.num_heads * c.head_dim), True), [k, v]
