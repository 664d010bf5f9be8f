"""Stochastic samplers (MDLM, DUO, BD3-LM, SEDD) against recorded runs, fed the uniform draws of the recording."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from conformance.checks.outcome import Trace
from unmask.backends.torch import TorchBackend
from unmask.canvas import Array
from unmask.decoding.loop import Decoder
from unmask.decoding.methods import DecodingDefaults, sample
from unmask.decoding.request import Asked, Request
from unmask.errors import UnmaskError
from unmask.layout import Layout
from unmask.lm import DiffusionLM
from unmask.models.config import ModelConfig, build
from unmask.noise import NetworkSchedule

RECORD = {"name", "sampler", "forward_passes", "canvas_before_each_forward", "final_ids"}
MDLM = RECORD | {
    "batch", "length", "steps", "eps", "mask_id", "noise_removal", "time_conditioning", "uniform_noise_tensor",
}  # fmt: skip
DUO = RECORD | {
    "noise", "steps", "eps", "use_float64", "noise_removal", "predictor", "psi_kappa", "initial_ids",
    "uniform_noise_tensors",
}  # fmt: skip
SEDD = RECORD | {"graph", "tokens", "steps", "eps", "denoise", "initial_ids", "uniform_noise_tensors"}
BD3 = RECORD | {
    "num_strides", "block_size", "num_steps", "first_hitting", "nucleus_p", "kv_cache", "mask_id", "bos_id",
    "np_uniforms", "randint_draws", "uniform_noise_tensor", "sampling_steps_reported",
}  # fmt: skip
DIVIDED = (
    "at the last step of a block they divide by the time, which is 0, and take the first token whose chance is then "
    "infinite or no number; we draw from the network's distribution, and take theirs here only to go on alike"
)

DUO_NOISE: dict[str, NetworkSchedule] = {"LogLinear": "log_linear", "Cosine": "cosine"}


def race(weights_NV: Array, u_NV: Array) -> Array:
    """Tokens [N] drawn with chances in proportion to weights, by uniform draws for every token: the first of
    exponential arrivals wins. The references' sampler, with their guards against logarithms of 0."""
    return (weights_NV / (1e-10 - np.log(u_NV + 1e-10))).argmax(-1)


@dataclass
class RecordedDraws:
    """The draws of one row of a recording: exponential races by uniforms [n, V], one array for each update.

    Block diffusion's reference reaches time 0 in the last of its `steps` and divides by it: all chances are
    infinite, or not a number outside the nucleus, and the first such token wins. `divided` says that this came up.
    """

    uniforms: list[Array]
    hits: list[float] = field(default_factory=list)
    picks: list[int] = field(default_factory=list)
    steps: int = 0  # of a block that ends at time 0
    mask_id: int | None = None
    divided: bool = False
    began: dict[int, int] = field(default_factory=dict)  # first update of each block

    def tokens(self, weights_NV: Array, update: int, position_N: Array) -> Array:
        u_LV = self.uniforms[update]  # of a block only, in block diffusion; without the mask at SEDD's last step
        if len(position_N) and self.steps > 1:
            first = self.began.setdefault(int(position_N[0]) // len(u_LV), update)
            if update == first + self.steps - 1:
                self.divided = True
                lost = (weights_NV == 0) & (np.arange(weights_NV.shape[1]) != self.mask_id)
                return np.where(lost.any(1), lost.argmax(1), (weights_NV > 0).argmax(1))
        return race(weights_NV[:, : u_LV.shape[1]], u_LV[position_N % len(u_LV)])

    def leaving(self, chance: float, update: int, position_N: Array) -> None:
        """A race is between the mask and all tokens."""

    def hit(self, update: int) -> float:
        return self.hits[update]

    def pick(self, update: int, count: int) -> int:
        return self.picks[update]


def decode(lm: DiffusionLM, case: dict[str, Any], noise: dict[str, Array]) -> tuple[Trace, Trace, str]:
    """One case by the sampler that its fields say; raises UnmaskError for fields that are not known here."""
    try:
        if "num_strides" in case:
            return _blocks(lm, case, noise)
        return _canvas(lm, case, noise)
    except KeyError as missing:
        raise UnmaskError(f"case '{case.get('name')}': {missing} is missing") from None


def _canvas(lm: DiffusionLM, case: dict[str, Any], noise: dict[str, Array]) -> tuple[Trace, Trace, str]:
    """Whole canvases (MDLM, DUO, SEDD)."""
    name, kappa, schedule = "analytic", 1.0, lm.config.noise_schedule
    if "graph" in case:
        _check(case, SEDD)
        removal = "ancestral" if case["denoise"] else "none"
    elif "predictor" in case:
        _check(case, DUO)
        name, removal = case["predictor"], case["noise_removal"]
        kappa = kappa if case["psi_kappa"] is None else case["psi_kappa"]
        said = str(case["noise"]).split()[0]
        if said not in DUO_NOISE:
            raise UnmaskError(f"case '{case['name']}': noise '{case['noise']}' is not understood")
        schedule = DUO_NOISE[said]
    else:
        _check(case, MDLM)
        name = str(case["sampler"]).partition("predictor=")[2]
        removal = "none" if not case["noise_removal"] else "ancestral" if name == "analytic" else "greedy"
    # the references compute times in float32, and go on where nothing is left to write; `use_float64` is about
    # rounding alone, and probabilities here are float64 throughout
    how = {"psi_kappa": kappa, "steps": case["steps"], "eps": case["eps"], "dtype": "float32", "whole": True}
    options = cast(sample.Options, build(sample.Options, {"name": name, "noise_removal": removal, **how}, case["name"]))
    names = case.get("uniform_noise_tensors")
    drawn = list(noise[case["uniform_noise_tensor"]]) if names is None else [noise[n] for n in names]
    first = case["initial_ids"] if "initial_ids" in case else [[case["mask_id"]] * case["length"]] * case["batch"]
    requests = [
        Request(row, [False] * len(row), temperature=1.0, method=options, draws=RecordedDraws([u[b] for u in drawn]))
        for b, row in enumerate(first)
    ]
    recorded = Trace(case["canvas_before_each_forward"], case["final_ids"], case["forward_passes"])
    return _run(lm, case, requests, Layout("bidirectional"), schedule), recorded, ""


def _blocks(lm: DiffusionLM, case: dict[str, Any], noise: dict[str, Array]) -> tuple[Trace, Trace, str]:
    """Block after block (BD3-LM), with exact keys and values of the blocks before."""
    _check(case, BD3)
    drawn, block, mask_id = noise[case["uniform_noise_tensor"]], case["block_size"], case["mask_id"]
    if drawn.shape[1] != 1:
        raise UnmaskError(f"case '{case['name']}': only one text at a time is compared")
    hits, steps = case["first_hitting"], case["num_steps"]
    options = sample.Options(
        "first_hitting" if hits else "ddpm_cache", steps, nucleus_p=case["nucleus_p"], dtype="float32"
    )
    picks = [pick[0] for pick in case["randint_draws"]]
    draws = RecordedDraws(list(drawn[:, 0]), case["np_uniforms"], picks, 0 if hits else steps, mask_id)
    ids = [case["bos_id"]] + [mask_id] * (case["num_strides"] * block - 1)
    given = [True] + [False] * (len(ids) - 1)
    request = Request(ids, given, temperature=1.0, block_length=block, method=options, draws=draws)
    ours = _run(lm, case, [request], Layout("block_causal", block), lm.config.noise_schedule)
    recorded = Trace(case["canvas_before_each_forward"], case["final_ids"], case["forward_passes"])
    recorded = _whole(recorded, mask_id) if case["kv_cache"] else recorded
    # they lengthen the canvas by a block at a time
    both = zip(ours.canvases or [], recorded.canvases or [], strict=False)
    ours = replace(ours, canvases=[[row[: len(theirs[0])] for row in canvas] for canvas, theirs in both])
    return ours, recorded, DIVIDED if draws.divided else ""


def _whole(recorded: Trace, mask_id: int) -> Trace:
    """A run with kv_cache on whole canvases: it read the last block alone, and a finished one once more to store it."""
    text, canvases = list[int](), list[list[list[int]]]()
    for (block,) in recorded.canvases or []:
        if mask_id in block:
            canvases.append([text + block])
        else:
            text = text + block
    return replace(recorded, canvases=canvases, forwards=len(canvases))


def _check(case: dict[str, Any], known: set[str]) -> None:
    """Refuses a case that says more than is read here."""
    if unknown := sorted(case.keys() - known):
        raise UnmaskError(f"case '{case.get('name')}': field '{unknown[0]}' is not understood")


def _check_suits(request: Request, layout: Layout, config: ModelConfig) -> None:
    """Raises UnmaskError where the model cannot be decoded by the request's sampler."""
    own = cast(sample.Options, request.method)
    options = DecodingDefaults(
        sampler=own.name,
        noise_removal=own.noise_removal,
        nucleus_p=own.nucleus_p,
        temperature=request.temperature,
        block_length=request.block_length,
        max_denoising_steps=request.max_denoising_steps,
    )
    reason = sample.Options.suits(Asked("recorded", config, layout.kind, "diffusion", options))
    if reason is not None:
        raise UnmaskError(reason)


def _run(
    lm: DiffusionLM, case: dict[str, Any], requests: list[Request], layout: Layout, schedule: NetworkSchedule
) -> Trace:
    """Decodes the rows of a case together, noting the canvas that every forward reads."""
    config = lm.config
    if case.get("mask_id", config.mask_token_id) != config.mask_token_id:
        raise UnmaskError(f"case '{case['name']}': its mask_id {case['mask_id']} is not the model's")
    backend = TorchBackend(lm.model)
    told = case.get("time_conditioning", config.time_conditioned)
    backend.config = config = replace(config, time_conditioned=told, noise_schedule=schedule)
    for request in requests:
        _check_suits(request, layout, config)
    decoder = Decoder(backend, layout, requests)
    seen: list[dict[int, list[int]]] = [{0: list(request.ids)} for request in requests]  # by updates before a forward
    while decoder.busy:
        for row, scheme in decoder.active:
            assert isinstance(scheme, sample.Sampling)
            seen[row.number][scheme.updates] = row.canvas.ids[0].tolist()
        decoder.step()
    # they read all rows as soon as one has changed
    moments = sorted(set().union(*seen))
    canvases = [[own[max(m for m in own if m <= moment)] for own in seen] for moment in moments]
    return Trace(canvases, [row.canvas.ids[0].tolist() for row in decoder.rows.values()], len(moments))
