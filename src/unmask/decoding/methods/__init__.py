"""The one registry of decoding methods: what each is, which options it reads, and what a model can be decoded by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast

from unmask.decoding.convention import CONVENTIONS, Convention, convention_of, with_convention
from unmask.decoding.methods import (
    ancestral,
    behind_text,
    denoise,
    draft,
    edit,
    multi_block,
    renoise,
    sample,
    sub_blocks,
)
from unmask.decoding.methods.ancestral import SAMPLER_NAMES, SamplerName
from unmask.decoding.options import check_ranges, describe, is_off, option
from unmask.decoding.processors import read_bias
from unmask.decoding.request import MODES, Asked, CacheKind, MethodOptions, Mode, Request, RequestParameters
from unmask.decoding.rules import RULES, RuleName, RuleOptions, RuleParameters
from unmask.errors import UnmaskError
from unmask.layout import GROUPED, LayoutKind
from unmask.models.config import ModelConfig, build

# the first that claims what is asked for decodes it
METHODS: tuple[type[MethodOptions], ...] = (
    renoise.Options,
    draft.Forced,
    behind_text.SelfSpeculative,
    behind_text.Options,
    behind_text.SelfChecked,
    draft.Options,
    sample.Options,
    edit.Options,
    sub_blocks.Options,
    multi_block.Options,
    denoise.Options,
)
BLOCK = 32  # length of blocks where neither the model nor the caller says


@dataclass(frozen=True)
class DecodingDefaults(
    RuleParameters,
    RequestParameters,
    sub_blocks.Parameters,
    multi_block.Parameters,
    edit.Parameters,
    draft.Parameters,
    renoise.Parameters,
    ancestral.Parameters,
):
    """Every option of decoding, and how a model decodes where the caller does not say (its generation_config.json)."""

    rule: Literal[RuleName, "checked", "self_speculative"] = "threshold"
    sampler: Literal["none", SamplerName] = option("none", off="none")  # in place of a rule; none: a rule decides
    convention: str | Convention = "unmask"  # a preset's name, or a convention of one's own
    eos_token_ids: tuple[int, ...] = ()  # ends of text besides the config's
    stop_token_ids: tuple[int, ...] = option((), off=())  # tokens that end this text besides its ends
    ignore_eos: bool = option(False, off=False)  # an end of text does not end it
    layout: Literal["auto", "bidirectional", "block_causal"] = option("auto", off="auto")  # auto: the config's
    mode: Literal["auto", "diffusion", "ar", "verify"] = option("auto", off="auto")  # auto: the first of its layout

    @staticmethod
    def read(values: dict[str, Any], source: str) -> DecodingDefaults:
        """From a file's values. Raises UnmaskError naming `source` and what is unknown or of a wrong type."""
        own = with_convention(values)
        convention = own.pop("convention", "unmask")
        made: DecodingDefaults = build(DecodingDefaults, own, source)
        known = convention if isinstance(convention, str) else convention_of(convention)
        convention_of(known)
        return replace(made, convention=known)

    def override(self, given: dict[str, Any]) -> DecodingDefaults:
        """These with the options that are not None; one of a wrong type or out of range raises UnmaskError."""
        values = {**vars(self), **{name: value for name, value in given.items() if value is not None}}
        if given.get("rule") is not None and given.get("sampler") is None:
            values["sampler"] = "none"  # who asks for a rule gets it
        elif values["sampler"] == "first_hitting" and given.get("max_denoising_steps") and not given.get("sampler"):
            values["sampler"] = "ddpm_cache"  # and who asks for fewer steps than tokens, a sampler that has them
        convention = convention_of(values.pop("convention"))
        values["logit_bias"] = read_bias(values["logit_bias"])
        chosen: DecodingDefaults = build(DecodingDefaults, values, "option")
        check_ranges(chosen)
        return replace(chosen, convention=convention)


OPTIONS = {declared.name: declared for declared in fields(DecodingDefaults) if declared.name != "mode"}


def modes_of(config: ModelConfig, defaults: DecodingDefaults) -> list[Mode]:
    """The modes of a model, its default first. Raises UnmaskError where the default is none of its layout's."""
    modes = MODES[config.layout]
    if defaults.mode not in ("auto", *modes):
        raise UnmaskError(f"generation_config.json: mode is '{defaults.mode}'; this model has {', '.join(modes)}")
    return sorted(modes, key=lambda mode: mode != defaults.mode)


@dataclass(frozen=True)
class Way:
    """How a model decodes what was asked for: its method, and all that this one reads."""

    asked: Asked
    method: type[MethodOptions]

    @property
    def rule(self) -> str | None:
        """The commit rule that decides, where one does."""
        return self.asked.options.rule if self.method.by_rule and self.asked.mode == "diffusion" else None

    @property
    def sampler(self) -> str | None:
        """The sampler that draws what is written, where one does."""
        return self.asked.options.sampler if self.method is sample.Options else None

    @property
    def reads(self) -> set[str]:
        """Names of all options that change anything."""
        own = self.method.reads(self.asked) | {"eos_token_ids", "stop_token_ids", "ignore_eos"}
        if self.asked.mode == "diffusion" and self.asked.config.layout in ("bidirectional", "block_causal"):
            own.add("layout")
        rule = self.rule
        return own if rule is None else own | {"rule"} | set(RULES[rule].reads if rule in RULES else ())

    def check(self) -> None:
        """Raises UnmaskError where the model cannot be decoded so."""
        asked = self.asked
        config = asked.config
        cache = asked.options.cache
        if asked.options.layout != "auto" and config.layout not in ("bidirectional", "block_causal"):
            raise UnmaskError(
                f"model '{asked.name}' reads text from left to right; it has no layout '{asked.options.layout}'"
            )
        if config.mask_token_id is None and config.corruption != "uniform" and config.layout != "canvas":
            raise UnmaskError(f"model '{asked.name}' has no mask token, so it has no canvas to write on")
        reason = self.method.suits(asked)
        if reason is not None:
            raise UnmaskError(reason)
        if cache not in self.method.caches(asked):
            if cache == "exact":
                raise UnmaskError("an exact cache needs a causal or block-causal model; use cache='auto'")
            own = "has layers that keep a state" if config.recurrent else "keeps exact keys and values"
            raise UnmaskError(f"cache '{cache}' is for bidirectional models; '{asked.name}' {own}, use cache='auto'")
        for name in ("logit_bias", "stop_token_ids"):
            outside = [token for token in getattr(asked.options, name) if not 0 <= token < config.vocab_size]
            if outside:
                raise UnmaskError(
                    f"option {name} names token {outside[0]}, outside the vocabulary of {config.vocab_size}"
                )
        if asked.options.guidance > 0 and "guidance" not in self.reads:
            raise UnmaskError(
                f"guidance needs a model that denoises masks, which '{asked.name}' does not; leave it out"
            )

    def refuse_unread(self, given: dict[str, Any]) -> None:
        """Raises UnmaskError for a given option that this way does not read, unless its value changes nothing."""
        reads = self.reads
        for name, value in given.items():
            if name in OPTIONS and (value is None or name in reads or is_off(OPTIONS[name], value)):
                continue
            what = "is unknown" if name not in OPTIONS else "changes nothing"
            raise UnmaskError(f"option '{name}' {what} here; {self.name} takes {', '.join(sorted(reads))}")

    @property
    def name(self) -> str:
        """How messages call it."""
        by = f"sampler '{self.sampler}'" if self.sampler is not None else f"rule '{self.rule}'"
        chosen = f" by {by}" if self.rule is not None or self.sampler is not None else ""
        return f"model '{self.asked.name}' in mode '{self.asked.mode}'{chosen}"

    def request(self, seed: int) -> Request:
        """A request that is decoded so, without its canvas."""
        asked = self.asked
        options = asked.options
        shared = {declared.name: getattr(options, declared.name) for declared in fields(RequestParameters)}
        convention = convention_of(options.convention)
        rule = RuleOptions("sequential" if asked.mode == "ar" else "threshold", convention)
        if self.rule in RULES:
            parameters = {declared.name: getattr(options, declared.name) for declared in fields(RuleParameters)}
            rule = RuleOptions(cast(RuleName, self.rule), convention, asked.config.vocab_size, **parameters)
        if asked.mode == "ar":
            shared |= {"block_length": 1, "max_denoising_steps": None, "remask_budget": 0}
        elif asked.layout in ("block_causal", *GROUPED):
            shared["block_length"] = options.block_length or asked.config.block_length or BLOCK
        return Request(ids=[], given=[], seed=seed, method=self.method.of(asked), rule=rule, **shared)


def choose(name: str, config: ModelConfig, defaults: DecodingDefaults, mode: str | None, given: dict[str, Any]) -> Way:
    """The way of decoding that a caller's options ask of a model.

    Args:
        name: Of the model, for messages.
        mode: None is the model's default.
        given: Options by name; what is None comes from the defaults.

    Raises:
        UnmaskError: for an option that is unknown, out of range or not read, and where the model cannot decode so.
    """
    modes = modes_of(config, defaults)
    chosen = next((known for known in modes if known == (mode or modes[0])), None)
    if chosen is None:
        raise UnmaskError(f"model '{name}' decodes in mode {' or '.join(modes)}, not '{mode}'")
    known = {key: value for key, value in given.items() if key in OPTIONS}
    options = defaults.override(known)
    layout: LayoutKind = config.layout if options.layout == "auto" else options.layout
    asked = Asked(name, config, layout, chosen, options, known)
    way = Way(asked, next(method for method in METHODS if method.claims(asked)))
    way.check()
    way.refuse_unread(given)
    return way


def ways(name: str, config: ModelConfig, defaults: DecodingDefaults) -> Iterator[tuple[dict[str, Any], Way]]:
    """Every way that a model can be decoded in its own layout, with the options that choose it."""
    seen = set[tuple[Any, ...]]()
    samplers = [{"sampler": sampler} for sampler in SAMPLER_NAMES]
    rules: list[dict[str, Any]] = [{"rule": rule} for rule in (*RULES, "checked", "self_speculative")]
    parts: list[dict[str, Any]] = []
    if config.layout in ("bidirectional", "block_causal"):
        several = {
            "buffer_size": 2,
            **({} if defaults.block_length or config.block_length else {"block_length": BLOCK}),
        }
        parts = [{**rule, **several} for rule in rules]
    if config.layout == "block_causal":
        parts += [{**rule, "sub_block_length": 1} for rule in rules]
    for mode in modes_of(config, defaults):
        for selection in ({}, *rules, *parts, *samplers):
            try:
                way = choose(name, config, defaults, mode, selection)
            except UnmaskError:
                continue
            key = (mode, way.method, way.rule, way.sampler)
            if key not in seen:
                seen.add(key)
                yield selection, way


def capabilities(name: str, config: ModelConfig, defaults: DecodingDefaults) -> dict[str, Any]:
    """What a model can be asked for, as plain data; see `DiffusionLM.capabilities`."""
    convention = defaults.convention
    shown = convention if isinstance(convention, str) else asdict(convention)
    parameters = describe(defaults)
    del parameters["mode"]
    parameters["convention"] |= {"type": "string", "choices": list(CONVENTIONS), "default": shown}
    parameters["logit_bias"]["default"] = {str(token): value for token, value in defaults.logit_bias.items()}
    for name in ("eos_token_ids", "stop_token_ids"):
        parameters[name] |= {"default": list(getattr(defaults, name)), "off": []}
    found: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes_of(config, defaults)}
    for selection, way in ways(name, config, defaults):
        kinds: tuple[CacheKind, ...] = way.method.caches(way.asked)
        found[way.asked.mode].append({
            "method": way.method.method,
            "rule": way.rule,
            "sampler": way.sampler,
            "options": selection,
            "parameters": sorted(way.reads),
            "cache": list(kinds),
            "grammar": way.method.no_grammar(way.asked) is None and config.mask_token_id is not None,
        })  # fmt: skip
    return {"modes": found, "parameters": parameters}
