"""From the body of a request to checked jobs: which model, which canvases, which part of them is the answer."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tokenizers import Tokenizer

from unmask.canvas import NO_MASK
from unmask.decoding.infill import Template, make_template, parse_template
from unmask.decoding.request import Prepared
from unmask.errors import UnmaskError
from unmask.layout import BEHIND_TEXT
from unmask.lm import DiffusionLM
from unmask.prompts import encode, encode_text
from unmask.serving.api.errors import MISSING, APIError, refuse
from unmask.serving.api.options import alternatives, check_stream, decoding_options, max_tokens, stop_list
from unmask.serving.api.schema import (
    ChatRequest,
    CompletionRequest,
    Dialogue,
    Gap,
    InfillRequest,
    Message,
    Steering,
    Structured,
    TokenizeRequest,
    ToolCall,
    text_of,
)
from unmask.serving.api.settings import Settings
from unmask.serving.api.structure import Structure, structure_of
from unmask.serving.api.tool_calls import as_plain_messages, renders_tools
from unmask.serving.api.writer import Region
from unmask.structured.tool_calls import CallForm

CHAT_TOKENS = 1024  # where the client does not say, and as far as they fit
COMPLETION_TOKENS = 16
GAP_TOKENS = 64
LONGEST_TOKEN = 1024  # characters


@dataclass
class Plan:
    """A checked request. A filling plan settles the lengths of its gaps first, and gets its regions then."""

    name: str  # of the model, as the client calls it
    lm: DiffusionLM
    seed: int
    prepared: Prepared
    regions: list[Region] = field(default_factory=list)
    prompt_tokens: int = 0
    logprobs: int | None = None
    filling: Filling | None = None
    lengths: list[int] = field(default_factory=list)  # of the gaps, once settled
    taken: bool = False  # the engine has already worked for it
    wrap: Callable[[str], str] | None = None  # what is made of the answer's whole text
    stops: tuple[str, ...] = ()  # of a filling plan: where the text of its gap is cut
    calls: CallForm | None = None  # how the text holds calls of tools
    echo: tuple[str, ...] = ()  # prompts that the texts begin with

    @property
    def tokenizer(self) -> Tokenizer:
        return tokenizer_of(self.lm)


@dataclass(frozen=True)
class Filling:
    """Gaps to fill. `suffix`: only the one gap is the answer, not the whole template."""

    template: Template
    prepare: Callable[[list[list[int]]], Prepared]
    suffix: bool
    n: int


class Models:
    """The models being served, by the names that clients use."""

    def __init__(self, models: Mapping[str, DiffusionLM]) -> None:
        self.models = dict(models)

    def find(self, name: str | None) -> tuple[str, DiffusionLM]:
        chosen = next(iter(self.models)) if name is None else name
        if chosen not in self.models:
            known = ", ".join(self.models)
            message = f"model '{chosen}' is not served here; there is {known}"
            raise APIError(404, message, MISSING, "model", "model_not_found")
        return chosen, self.models[chosen]

    def need(self, name: str | None, holds: Callable[[DiffusionLM], bool], lacks: str) -> tuple[str, DiffusionLM]:
        """A model that can do something; the error for another one says which can."""
        chosen, lm = self.find(name)
        if not holds(lm):
            able = [other for other, model in self.models.items() if holds(model)]
            hint = f"of the models served here {', '.join(able)} can" if able else "no model served here can"
            raise APIError(400, f"model '{chosen}' {lacks}; {hint}", param="model")
        return chosen, lm


def can_fill(lm: DiffusionLM) -> bool:
    """Whether a model sees the text behind a gap."""
    return lm.config.layout == "bidirectional" and lm.config.mask_token_id is not None


def can_chat(lm: DiffusionLM) -> bool:
    return lm.chat_template is not None


def scores_prompts(lm: DiffusionLM) -> bool:
    """Whether a token of a prompt is scored by those before it alone."""
    return lm.config.shift and lm.config.layout in ("causal", "drafts", *BEHIND_TEXT)


def mask_of(lm: DiffusionLM) -> int:
    mask = lm.config.mask_token_id
    return NO_MASK if mask is None else mask


class Planner:
    """Makes plans of bodies; whatever cannot be done as asked raises APIError or UnmaskError."""

    def __init__(self, models: Models, limits: Settings | None = None) -> None:
        self.models = models
        self.limits = limits or Settings()

    def structure(self, body: Any) -> Structure | None:
        """What the text of a request has to match."""
        if not isinstance(body, Structured):
            return None
        return structure_of(body, self.models.find(body.model)[1], self.limits)

    def dialogue(self, body: Dialogue) -> Plan:
        """A plan of messages to answer."""
        structure = self.structure(body)
        return self._written(body, [self.prompt_of(body, structure)], max_tokens(body), CHAT_TOKENS, structure)

    def prompt_of(self, body: Dialogue | TokenizeRequest, structure: Structure | None = None) -> list[int]:
        """Token ids of a dialogue, as the model's template writes it."""
        _, lm = self.models.need(body.model, can_chat, "has no chat template and cannot chat")
        messages = [plain(message) for message in body.messages or ()]
        tools = []
        variables: dict[str, Any] = {}
        if isinstance(body, ChatRequest):
            variables = body.chat_template_kwargs or {}
            if body.tools and structure is not None and structure.calls is not None:
                tools = [tool.model_dump(exclude_none=True) for tool in body.tools]
        if not renders_tools(lm.templates):
            messages = as_plain_messages(messages, tools if lm.answer_schema is None else [])
            tools = []
        for given in variables.keys() & {"messages", "tools", "special_tokens"}:
            raise refuse("chat_template_kwargs", f"cannot hold '{given}', which has a field of its own")
        return self.ids(lm.render_chat(messages, tools or None, **variables), lm)

    def ids(self, text: str, lm: DiffusionLM) -> list[int]:
        """Token ids of a text."""
        check_characters(text, lm)
        return encode_text(text, lm.tokenizer, lm.config, lm.name)

    def completion(self, body: CompletionRequest, default: int = COMPLETION_TOKENS) -> Plan:
        """A plan of text to continue, or with a suffix of the gap before it."""
        structure = self.structure(body)
        if body.suffix is not None:
            if structure is not None:
                raise refuse(structure.field, "cannot be honoured with a suffix; leave out one of them")
            return self._suffix(body, body.suffix)
        if body.max_tokens == 0 and not body.echo:
            raise refuse("max_tokens", "must be at least 1 without echo")
        _, lm = self.models.find(body.model)
        plan = self._written(body, self._rows(body.prompt, lm), body.max_tokens, default, structure)
        return self._echoed(body, plan) if body.echo else plan

    def _echoed(self, body: CompletionRequest, plan: Plan) -> Plan:
        """A plan whose texts begin with the prompts, and whose log-probabilities too."""
        if body.diffusing or body.stream:
            raise refuse("echo", "cannot be honoured in a stream; leave out one of them")
        prompt = body.prompt
        single = isinstance(prompt, str) or isinstance(prompt[0], int)
        rows = [prompt] if single else prompt
        texts = [row if isinstance(row, str) else plan.tokenizer.decode(row) for row in rows]
        plan = replace(plan, echo=tuple(text for text in texts for _ in range(body.n or 1)))
        if body.logprobs is None:
            return plan
        self.models.need(body.model, scores_prompts, "sees what follows a token, so it cannot score a prompt's (echo)")
        requests = [replace(request, scores_prompt=True) for request in plan.prepared.requests]
        if requests[0].guidance:
            raise refuse("echo", "with logprobs cannot be honoured together with guidance; leave out one of them")
        return replace(plan, prepared=replace(plan.prepared, requests=requests))

    def fim(self, body: CompletionRequest) -> Plan:
        """A plan of a gap, as Mercury's clients ask."""
        return self.completion(body, GAP_TOKENS)

    def _suffix(self, body: CompletionRequest, suffix: str) -> Plan:
        if not isinstance(body.prompt, str):
            raise refuse("prompt", "must be one text where there is a suffix")
        if body.echo:
            raise refuse("echo", "cannot be honoured with a suffix; leave out one of them")
        name, lm = self._filler(body, "diffusion")
        around = sum(len(self.ids(text, lm)) for text in (body.prompt, suffix))
        room = lm.config.max_length - around
        if room < 1:
            raise UnmaskError(
                f"prompt and suffix are {around} tokens, and model '{name}' reads {lm.config.max_length} with the gap; "
                "shorten them"
            )
        most = min(body.max_tokens or GAP_TOKENS, room)
        ladder = sorted({*(2**i for i in range(1, most.bit_length()) if 2**i < most), most})
        template = make_template([body.prompt, suffix], [ladder], tokenizer_of(lm))
        return replace(self._filled(template, body, suffix=True), stops=tuple(stop_list(body)))

    def infill(self, body: InfillRequest) -> Plan:
        """A plan of a template with gaps."""
        _, lm = self._filler(body, None)
        if (body.segments is None) == (body.template is None):
            raise APIError(400, "a template is given by one of the fields segments and template", param="segments")
        if body.template is not None:
            field = "template"
            check_characters(body.template, lm)
            template = parse_template(body.template, tokenizer_of(lm))
        else:
            field = "segments"
            check_characters("".join(text for text in body.segments or [] if isinstance(text, str)), lm)
            template = _of_segments(body.segments or [], lm)
        tried = max(map(len, template.choices))
        if tried > self.limits.candidates:
            raise refuse(field, f"has a gap of {tried} lengths; at most {self.limits.candidates} are tried")
        ranged = sum(len(lengths) > 1 for lengths in template.choices)
        if ranged > self.limits.ranged_gaps:
            raise refuse(field, f"has {ranged} gaps of several lengths; at most {self.limits.ranged_gaps} are tried")
        return self._filled(template, body, suffix=False)

    def _filler(self, body: Steering, mode: str | None) -> tuple[str, DiffusionLM]:
        """A model that fills; `mode`: the one that may be named."""
        for given, taken in (("mode", mode), ("block_length", None)):
            if getattr(body, given) not in (None, taken):
                raise refuse(given, "cannot be honoured: gaps are filled as a whole")
        return self.models.need(body.model, can_fill, "writes from left to right and cannot fill gaps")

    def _filled(self, template: Template, body: CompletionRequest | InfillRequest, suffix: bool) -> Plan:
        name, lm = self.models.find(body.model)
        check_stream(body)
        options = decoding_options(body, lm)
        options.pop("mode", None)
        seed = _seed(body)
        n = self._n(body, 1)
        prepare = lm.prepare_fill(template, **options, seed=seed)
        given = sum(map(len, template.segments))
        self.check_prompt(given)
        filling = Filling(template, prepare, suffix, n)
        none = prepare([])
        return Plan(name, lm, seed, prepared=none, prompt_tokens=given, logprobs=body.logprobs, filling=filling)

    def _written(
        self, body: Any, rows: list[list[int]], most: int | None, default: int, structure: Structure | None
    ) -> Plan:
        name, lm = self.models.find(body.model)
        check_stream(body)
        options = decoding_options(body, lm)
        stops = stop_list(body)
        logprobs = alternatives(body)
        calls = None if structure is None else structure.calls
        if structure is not None:
            options["grammar"] = structure.grammar(lm, self.limits)
        if calls is not None and body.diffusing:
            raise refuse("diffusing", "sends whole texts, and calls of tools are sent in parts; leave out one of them")
        n = self._n(body, len(rows))
        longest = max(map(len, rows))
        self.check_prompt(longest)
        if most is None:
            most = max(1, min(default, lm.room(longest)))
        seed = _seed(body)
        prepared = lm.prepare([row for row in rows for _ in range(n)], most or 1, seed=seed, stop=stops, **options)
        requests = [replace(request, logprobs=logprobs) for request in prepared.requests]
        complete = structure is not None and not structure.free
        regions = []
        for request in requests:
            start = request.given.index(False)
            end = start if most == 0 else min(len(request.ids), start + (request.wanted or len(request.ids)))
            regions.append(Region(start, end, mask_of(lm), prepared.eos_ids, tuple(stops), complete))
        return Plan(
            name,
            lm,
            seed,
            prepared=replace(prepared, requests=requests),
            regions=regions,
            prompt_tokens=sum(map(len, rows)),
            logprobs=logprobs,
            calls=calls,
        )

    def _n(self, body: Steering, rows: int) -> int:
        n: int = body.n or 1
        if n * rows > self.limits.n:
            what = "n" if rows == 1 else "n times the number of prompts"
            raise APIError(400, f"{what} is {n * rows}, and one request may ask for {self.limits.n}", param="n")
        return n

    def check_prompt(self, tokens: int) -> None:
        most = self.limits.prompt_tokens
        if tokens > most:
            raise UnmaskError(f"the prompt is {tokens} tokens, and this server reads {most} at most")

    def _rows(self, prompt: Any, lm: DiffusionLM) -> list[list[int]]:
        if isinstance(prompt, list):
            if not prompt:
                raise refuse("prompt", "is an empty list")
            if isinstance(prompt[0], list) and not all(prompt):
                raise refuse("prompt", "holds an empty list of token ids")
            if len(prompt) > self.limits.n and not isinstance(prompt[0], int):
                raise refuse("prompt", f"is {len(prompt)} prompts, and one request may ask for {self.limits.n} texts")
        for text in [prompt] if isinstance(prompt, str) else prompt:
            if isinstance(text, str):
                check_characters(text, lm)
        return encode(prompt, lm.tokenizer, None, lm.config, lm.name)


def _seed(body: Steering) -> int:
    return secrets.randbits(31) if body.seed is None else int(body.seed)


def check_characters(text: str, lm: DiffusionLM) -> None:
    """Refuses what cannot fit before it is read into tokens: no token is longer than LONGEST_TOKEN."""
    if len(text) > lm.config.max_length * LONGEST_TOKEN:
        raise UnmaskError(f"the prompt is {len(text)} characters, more than fit the model's length; shorten it")


def plain(message: Message) -> dict[str, Any]:
    """A message as templates read it."""
    role = "system" if message.role == "developer" else message.role
    plain: dict[str, Any] = {"role": role, "content": text_of(message.content)}
    if message.name is not None:
        plain["name"] = message.name
    if message.role == "assistant" and (message.reasoning_content or message.reasoning):
        plain["reasoning_content"] = message.reasoning_content or message.reasoning
    if (message.tool_call_id is not None) != (message.role == "tool"):
        raise refuse("messages", "need a tool_call_id where the role is tool, and nowhere else")
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        if message.role != "assistant":
            raise refuse("messages", f"hold tool_calls of role {message.role}; only an assistant makes them")
        plain["tool_calls"] = [_called(call) for call in message.tool_calls]
    elif message.content is None:
        raise refuse("messages", "hold one without content")
    return plain


def _called(call: ToolCall) -> dict[str, Any]:
    """A call as templates read it: its arguments are an object."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
        arguments = {} if arguments is None else arguments
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise refuse("messages", f"hold a call of '{call.function.name}' whose arguments are not a JSON object")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def tokenizer_of(lm: DiffusionLM) -> Tokenizer:
    if lm.tokenizer is None:
        raise UnmaskError(f"model '{lm.name}' has no tokenizer.json, so it cannot be served")
    return lm.tokenizer


def _of_segments(segments: list[str | Gap], lm: DiffusionLM) -> Template:
    pieces = [""]
    choices = list[Sequence[int]]()
    for segment in segments:
        if isinstance(segment, str):
            pieces[-1] += segment
            continue
        mask = segment.mask
        low, high = (mask, mask) if isinstance(mask, int) else (mask.min, mask.max)
        if high < low:
            raise refuse("segments", f"hold a gap of {low} to {high} tokens, which is no range")
        choices.append(range(low, high + 1))
        pieces.append("")
    if not choices:
        raise refuse("segments", 'hold no gap; write {"mask": 4} or {"mask": {"min": 1, "max": 3}} where one is')
    return make_template(pieces, choices, tokenizer_of(lm))
