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
    ToolCall,
)
from unmask.serving.api.structure import Structure, StructureLimits, structure_of
from unmask.serving.api.tool_calls import as_plain_messages, renders_tools
from unmask.serving.api.writer import Region
from unmask.structured.tool_calls import CallForm

CHAT_TOKENS = 1024  # where the client does not say, and as far as they fit
COMPLETION_TOKENS = 16
GAP_TOKENS = 64
LONGEST_TOKEN = 1024  # characters
UNREAD_WHEN_FILLING = ("mode", "stop", "block_length")


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for."""

    n: int = 8
    prompt_tokens: int = 1 << 20  # the model's own length is a bound too
    candidates: int = 32  # lengths tried of one gap
    ranged_gaps: int = 64  # gaps of which several lengths are tried
    structure: StructureLimits = field(default_factory=StructureLimits)  # what structured output may cost


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
        return _tokenizer(self.lm)


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

    def which(self, holds: Callable[[DiffusionLM], bool]) -> str:
        names = [name for name, lm in self.models.items() if holds(lm)]
        return f"of the models served here {', '.join(names)} can" if names else "no model served here can"


def can_fill(lm: DiffusionLM) -> bool:
    """Whether a model sees the text behind a gap."""
    return lm.config.layout == "bidirectional" and lm.config.mask_token_id is not None


def can_chat(lm: DiffusionLM) -> bool:
    return lm.chat_template is not None


def mask_of(lm: DiffusionLM) -> int:
    mask = lm.config.mask_token_id
    return NO_MASK if mask is None else mask


class Planner:
    """Makes plans of bodies; whatever cannot be done as asked raises APIError or UnmaskError."""

    def __init__(self, models: Models, limits: RequestLimits | None = None) -> None:
        self.models = models
        self.limits = limits or RequestLimits()

    def structure(self, body: Any) -> Structure | None:
        """What the text of a request has to match."""
        if not isinstance(body, ChatRequest | CompletionRequest):
            return None
        return structure_of(body, self.models.find(body.model)[1], self.limits.structure)

    def chat(self, body: ChatRequest) -> Plan:
        """A plan of a dialogue to answer."""
        return self.dialogue(body, body, alternatives(body))

    def dialogue(self, body: Dialogue, chat: ChatRequest | None = None, logprobs: int | None = None) -> Plan:
        """A plan of messages to answer. chat: the same body, where it may have tools and a structure."""
        name, lm = self.models.find(body.model)
        structure = self.structure(chat)
        return self._written(
            name=name,
            lm=lm,
            rows=[self.prompt_of(body, chat, structure)],
            most=max_tokens(body),
            default=CHAT_TOKENS,
            body=body,
            logprobs=logprobs,
            structure=structure,
        )

    def prompt_of(self, body: Any, chat: ChatRequest | None = None, structure: Structure | None = None) -> list[int]:
        """Token ids of a dialogue, as the model's template writes it."""
        name, lm = self.models.find(body.model)
        if not can_chat(lm):
            hint = self.models.which(can_chat)
            raise APIError(400, f"model '{name}' has no chat template and cannot chat; {hint}", param="model")
        messages = [_plain(message) for message in body.messages]
        tools = []
        if chat is not None and chat.tools and structure is not None and structure.calls is not None:
            tools = [tool.model_dump(exclude_none=True) for tool in chat.tools]
        if not renders_tools(lm.templates):
            messages = as_plain_messages(messages, tools)
            tools = []
        variables = (chat.chat_template_kwargs if chat is not None else None) or {}
        for given in variables.keys() & {"messages", "tools", "special_tokens"}:
            raise refuse("chat_template_kwargs", f"cannot hold '{given}', which has a field of its own")
        return self.ids(lm.render_chat(messages, tools or None, **variables), lm)

    def ids(self, text: str, lm: DiffusionLM) -> list[int]:
        """Token ids of a text."""
        self._check_characters(text, lm)
        return encode_text(text, lm.tokenizer, lm.config, lm.name)

    def completion(self, body: CompletionRequest, default: int = COMPLETION_TOKENS) -> Plan:
        """A plan of text to continue, or with a suffix of the gap before it."""
        name, lm = self.models.find(body.model)
        structure = self.structure(body)
        if body.suffix is not None:
            if structure is not None:
                raise refuse(structure.field, "cannot be honoured with a suffix; leave out one of them")
            return self._suffix(body)
        if body.max_tokens == 0:
            raise refuse("max_tokens", "must be at least 1")
        plan = self._written(
            name=name,
            lm=lm,
            rows=self._rows(body.prompt, lm),
            most=body.max_tokens,
            default=default,
            body=body,
            logprobs=alternatives(body),
            structure=structure,
        )
        return replace(plan, echo=self._echoed(body, lm)) if body.echo else plan

    def fim(self, body: CompletionRequest) -> Plan:
        """A plan of a gap, as Mercury's clients ask."""
        return self.completion(body, GAP_TOKENS)

    def _echoed(self, body: CompletionRequest, lm: DiffusionLM) -> tuple[str, ...]:
        """The prompts' texts, once for each text that is asked for."""
        if body.logprobs is not None or body.diffusing or body.stream:
            raise refuse("echo", "cannot be honoured with logprobs or in a stream; leave out one of them")
        prompt = body.prompt
        single = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
        rows = [prompt] if single else prompt
        texts = [row if isinstance(row, str) else _tokenizer(lm).decode(row) for row in rows]
        return tuple(text for text in texts for _ in range(body.n or 1))

    def _suffix(self, body: CompletionRequest) -> Plan:
        if not isinstance(body.prompt, str):
            raise refuse("prompt", "must be one text where there is a suffix")
        if body.echo:
            raise refuse("echo", "cannot be honoured with a suffix; leave out one of them")
        for given in ("block_length", "mode"):
            if getattr(body, given) is not None and (given, body.mode) != ("mode", "diffusion"):
                raise refuse(given, "cannot be honoured with a suffix: the gap is filled as a whole")
        name, lm = self._filler(body)
        around = sum(len(self.ids(text, lm)) for text in (body.prompt, body.suffix or ""))
        room = lm.config.max_length - around
        if room < 1:
            raise UnmaskError(
                f"prompt and suffix are {around} tokens, and model '{name}' reads {lm.config.max_length} with the gap; "
                "shorten them"
            )
        most = min(body.max_tokens or GAP_TOKENS, room)
        ladder = sorted({*(2**i for i in range(1, most.bit_length()) if 2**i < most), most})
        template = make_template([body.prompt, body.suffix or ""], [ladder], _tokenizer(lm))
        return replace(self._filled(template, body, body.logprobs, suffix=True), stops=tuple(stop_list(body)))

    def infill(self, body: InfillRequest) -> Plan:
        """A plan of a template with gaps."""
        _, lm = self._filler(body)
        for given in ("mode", "block_length"):
            if getattr(body, given) is not None:
                raise refuse(given, "cannot be honoured here: gaps are filled as a whole")
        if (body.segments is None) == (body.template is None):
            raise APIError(400, "a template is given by one of the fields segments and template", param="segments")
        if body.template is not None:
            self._check_characters(body.template, lm)
            template = parse_template(body.template, _tokenizer(lm))
        else:
            self._check_characters("".join(text for text in body.segments or [] if isinstance(text, str)), lm)
            template = _of_segments(body.segments or [], lm)
        field = "template" if body.segments is None else "segments"
        tried = max(map(len, template.choices))
        if tried > self.limits.candidates:
            raise refuse(field, f"has a gap of {tried} lengths; at most {self.limits.candidates} are tried")
        ranged = sum(len(lengths) > 1 for lengths in template.choices)
        if ranged > self.limits.ranged_gaps:
            raise refuse(field, f"has {ranged} gaps of several lengths; at most {self.limits.ranged_gaps} are tried")
        return self._filled(template, body, body.logprobs, suffix=False)

    def _filler(self, body: Steering) -> tuple[str, DiffusionLM]:
        name, lm = self.models.find(body.model)
        if not can_fill(lm):
            hint = self.models.which(can_fill)
            message = f"model '{name}' writes from left to right and cannot fill gaps; {hint}"
            raise APIError(400, message, param="model")
        return name, lm

    def _filled(self, template: Template, body: Steering, logprobs: int | None, suffix: bool) -> Plan:
        name, lm = self.models.find(body.model)
        check_stream(body)
        options = decoding_options(body, lm)
        for unread in UNREAD_WHEN_FILLING:
            options.pop(unread, None)
        seed = self._seed(body)
        n = self._n(body, 1)
        prepare = lm.prepare_fill(template, **options, seed=seed)
        given = sum(map(len, template.segments))
        self._check_prompt(given)
        filling = Filling(template, prepare, suffix, n)
        none = prepare([])
        return Plan(name, lm, seed, prepared=none, prompt_tokens=given, logprobs=logprobs, filling=filling)

    def _written(
        self,
        name: str,
        lm: DiffusionLM,
        rows: list[list[int]],
        most: int | None,
        default: int,
        body: Any,
        logprobs: int | None,
        structure: Structure | None = None,
    ) -> Plan:
        check_stream(body)
        options = decoding_options(body, lm)
        stops = stop_list(body)
        calls = None if structure is None else structure.calls
        if structure is not None:
            options["grammar"] = structure.grammar(lm, self.limits.structure)
        if calls is not None and body.diffusing:
            raise refuse("diffusing", "sends whole texts, and calls of tools are sent in parts; leave out one of them")
        n = self._n(body, len(rows))
        longest = max(map(len, rows))
        self._check_prompt(longest)
        if most is None:
            most = max(1, min(default, lm.room(longest)))
        seed = self._seed(body)
        prepared = lm.prepare([row for row in rows for _ in range(n)], most, seed=seed, stop=stops, **options)
        requests = [replace(request, logprobs=logprobs) for request in prepared.requests]
        regions = []
        for request in requests:
            start = request.given.index(False)
            end = min(len(request.ids), start + (request.wanted or len(request.ids)))
            complete = structure is not None and not structure.free
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

    def _check_prompt(self, tokens: int) -> None:
        most = self.limits.prompt_tokens
        if tokens > most:
            raise UnmaskError(f"the prompt is {tokens} tokens, and this server reads {most} at most")

    def _check_characters(self, text: str, lm: DiffusionLM) -> None:
        """Refuses what cannot fit before it is read into tokens: no token is longer than LONGEST_TOKEN."""
        most = lm.config.max_length * LONGEST_TOKEN
        if len(text) > most:
            raise UnmaskError(f"the prompt is {len(text)} characters, more than fit the model's length; shorten it")

    def _rows(self, prompt: Any, lm: DiffusionLM) -> list[list[int]]:
        if isinstance(prompt, list) and not prompt:
            raise refuse("prompt", "is an empty list")
        if isinstance(prompt, list) and isinstance(prompt[0], list) and not all(prompt):
            raise refuse("prompt", "holds an empty list of token ids")
        if isinstance(prompt, list) and len(prompt) > self.limits.n and not isinstance(prompt[0], int):
            raise refuse("prompt", f"is {len(prompt)} prompts, and one request may ask for {self.limits.n} texts")
        for text in [prompt] if isinstance(prompt, str) else prompt:
            if isinstance(text, str):
                self._check_characters(text, lm)
        return encode(prompt, lm.tokenizer, None, lm.config, lm.name)

    @staticmethod
    def _seed(body: Steering) -> int:
        seed: int | None = body.seed
        return secrets.randbits(31) if seed is None else seed


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates read it."""
    content = message.content
    text = "".join(part.text for part in content) if isinstance(content, list) else content
    plain: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": text or ""}
    if message.name is not None:
        plain["name"] = message.name
    if (message.tool_call_id is not None) != (message.role == "tool"):
        raise refuse("messages", "need a tool_call_id where the role is tool, and nowhere else")
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        if message.role != "assistant":
            raise refuse("messages", f"hold tool_calls of role {message.role}; only an assistant makes them")
        plain["tool_calls"] = [_called(call) for call in message.tool_calls]
    elif text is None:
        raise refuse("messages", "hold one without content")
    return plain


def _called(call: ToolCall) -> dict[str, Any]:
    """A call as templates read it: its arguments are an object."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise refuse("messages", f"hold a call of '{call.function.name}' whose arguments are not a JSON object")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _tokenizer(lm: DiffusionLM) -> Tokenizer:
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
        low = segment.mask if isinstance(segment.mask, int) else segment.mask.min
        high = segment.mask if isinstance(segment.mask, int) else segment.mask.max
        if high < low:
            raise refuse("segments", f"hold a gap of {low} to {high} tokens, which is no range")
        choices.append(range(low, high + 1))
        pieces.append("")
    if not choices:
        raise refuse("segments", 'hold no gap; write {"mask": 4} or {"mask": {"min": 1, "max": 3}} where one is')
    return make_template(pieces, choices, _tokenizer(lm))
