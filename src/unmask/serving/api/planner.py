"""From the body of a request to checked jobs: which model, which canvases, which part of them is the answer."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from unmask.canvas import NO_MASK
from unmask.decoding.infill import Template, make_template, parse_template
from unmask.decoding.request import Prepared
from unmask.errors import UnmaskError
from unmask.lm import DiffusionLM
from unmask.prompts import encode, encode_text
from unmask.serving.api.errors import MISSING, APIError
from unmask.serving.api.options import alternatives, check_stream, decoding_options, refuse, stop_list
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
from unmask.serving.api.structure import StructureLimits, Structure, structure_of
from unmask.serving.api.tool_calls import form_of
from unmask.serving.api.writer import Region
from unmask.structured.tool_calls import CallForm

CHAT_TOKENS, COMPLETION_TOKENS, GAP_TOKENS = 1024, 16, 64  # where the client does not say, and as far as they fit

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for."""

    n: int = 8
    prompt_tokens: int = 1 << 20  # the model's own length is a bound too
    candidates: int = 32  # lengths tried of one gap
    rules: StructureLimits = field(default_factory=StructureLimits)  # what structured output may cost


@dataclass
class Plan:
    """A checked request. A filling plan settles the lengths of its gaps first, and gets its regions then."""

    name: str  # of the model, as the client calls it
    lm: DiffusionLM
    seed: int
    prepared: Prepared | None = None
    regions: list[Region] = field(default_factory=list)
    prompt_tokens: int = 0
    logprobs: int | None = None
    filling: Filling | None = None
    lengths: list[int] = field(default_factory=list)  # of the gaps, once settled
    taken: bool = False  # the engine has already worked for it
    wrap: Callable[[str], str] = lambda text: text  # what is made of the answer's text
    stops: tuple[str, ...] = ()  # of a filling plan: where the text of its gap is cut
    calls: CallForm | None = None  # how the text holds calls of tools


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

    def __init__(self, models: Models, bounds: RequestLimits | None = None) -> None:
        self.models, self.bounds = models, bounds or RequestLimits()

    def chat(self, body: ChatRequest) -> Plan:
        return self.dialogue(body, alternatives(body))

    def dialogue(self, body: Dialogue, logprobs: int | None = None) -> Plan:
        """A plan of messages to answer."""
        name, lm = self.models.find(body.model)
        if not can_chat(lm):
            hint = self.models.which(can_chat)
            raise APIError(400, f"model '{name}' has no chat template and cannot chat; {hint}", param="model")
        tools, structure = None, None
        if isinstance(body, ChatRequest):
            structure = structure_of(body, lm, self.bounds.rules)
            if body.tools and body.tool_choice != "none":
                tools = [tool.model_dump(exclude_none=True) for tool in body.tools]
        messages = [_plain(message, lm) for message in body.messages]
        ids = lm.encode_chat(messages, tools)
        most = self._max_tokens(body)
        return self._written(name, lm, [ids], most, CHAT_TOKENS, body, logprobs, structure)

    @staticmethod
    def _max_tokens(body: Dialogue) -> int | None:
        one, other = body.max_tokens, body.max_completion_tokens
        if one is not None and other is not None and one != other:
            raise refuse("max_tokens", "and max_completion_tokens are two names of one thing and must agree")
        return one if one is not None else other

    def completion(self, body: CompletionRequest, default: int = COMPLETION_TOKENS) -> Plan:
        """A plan of text to continue, or with a suffix of the gap before it."""
        name, lm = self.models.find(body.model)
        structure = structure_of(body, lm, self.bounds.rules)
        if body.suffix is not None:
            if structure is not None:
                raise refuse(structure.field, "cannot be honoured with a suffix; leave out one of them")
            return self._suffix(body)
        rows = _rows(body.prompt, lm)
        return self._written(name, lm, rows, body.max_tokens, default, body, alternatives(body), structure)

    def _suffix(self, body: CompletionRequest) -> Plan:
        if not isinstance(body.prompt, str):
            raise refuse("prompt", "must be one text where there is a suffix")
        for given in ("block_length", "mode"):
            if getattr(body, given) is not None and (given, body.mode) != ("mode", "diffusion"):
                raise refuse(given, "cannot be honoured with a suffix: the gap is filled as a whole")
        _, lm = self._filler(body)
        assert body.suffix is not None
        around = sum(len(_ids(text, lm)) for text in (body.prompt, body.suffix))
        most = max(1, min(body.max_tokens or GAP_TOKENS, lm.config.max_length - around))
        ladder = sorted({*(2**i for i in range(1, most.bit_length()) if 2**i < most), most})
        template = make_template([body.prompt, body.suffix], [ladder], _tokenizer(lm))
        return replace(self._filled(template, body, body.logprobs, suffix=True), stops=tuple(stop_list(body)))

    def infill(self, body: InfillRequest) -> Plan:
        """A plan of a template with gaps."""
        _, lm = self._filler(body)
        if (body.segments is None) == (body.template is None):
            raise APIError(400, "a template is given by one of the fields segments and template", param="segments")
        if body.template is not None:
            template = parse_template(body.template, _tokenizer(lm))
        else:
            template = _of_segments(body.segments or [], lm)
        tried = max(map(len, template.choices))
        if tried > self.bounds.candidates:
            field = "template" if body.segments is None else "segments"
            raise refuse(field, f"has a gap of {tried} lengths; at most {self.bounds.candidates} are tried")
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
        for unread in ("mode", "stop", "block_length"):
            options.pop(unread, None)
        seed, n = self._seed(options.pop("seed")), self._n(body, 1)
        prepare = lm.prepare_fill(template, **options, seed=seed)
        given = sum(map(len, template.segments))
        self._check_prompt(given)
        filling = Filling(template, prepare, suffix, n)
        return Plan(name, lm, seed, None, [], given, logprobs, filling)

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
        calls = None if structure is None else structure.calls
        if structure is not None:
            options["grammar"] = structure.grammar(lm, self.bounds.rules)
        if calls is not None and body.diffusing:
            raise refuse("diffusing", "sends whole texts, and calls of tools are sent in parts; leave out one of them")
        n = self._n(body, len(rows))
        self._check_prompt(max(map(len, rows)))
        if most is None:
            most = max(1, min(default, lm.room(max(map(len, rows)))))
        seed = self._seed(options.pop("seed"))
        prepared = lm.prepare([row for row in rows for _ in range(n)], most, seed=seed, **options)
        requests = [replace(request, logprobs=logprobs) for request in prepared.requests]
        stops = tuple(stop_list(body))
        regions = []
        for request in requests:
            start = request.given.index(False)
            end = min(len(request.ids), start + (request.wanted or len(request.ids)))
            complete = structure is not None and not structure.free
            regions.append(Region(start, end, mask_of(lm), prepared.eos_ids, stops, complete))
        tokens = sum(len(row) for row in rows)
        return Plan(name, lm, seed, replace(prepared, requests=requests), regions, tokens, logprobs, calls=calls)

    def _n(self, body: Steering, rows: int) -> int:
        n = body.n or 1
        if n * rows > self.bounds.n:
            what = "n" if rows == 1 else "n times the number of prompts"
            raise APIError(400, f"{what} is {n * rows}, and one request may ask for {self.bounds.n}", param="n")
        return n

    def _check_prompt(self, tokens: int) -> None:
        if tokens > self.bounds.prompt_tokens:
            raise UnmaskError(
                f"the prompt is {tokens} tokens, and this server reads {self.bounds.prompt_tokens} at most"
            )

    @staticmethod
    def _seed(seed: int | None) -> int:
        return secrets.randbits(31) if seed is None else seed


def _plain(message: Message, lm: DiffusionLM) -> dict[str, Any]:
    """A message as templates read it."""
    content = message.content
    text = "".join(part.text for part in content) if isinstance(content, list) else content
    plain: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": text or ""}
    if (message.tool_calls is not None or message.role == "tool") and form_of(lm.chat_template) is None:
        raise refuse("messages", f"hold tool calls, which the chat template of model '{lm.name}' does not render")
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
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise refuse("messages", f"hold a call of '{call.function.name}' whose arguments are not a JSON object")
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _rows(prompt: Any, lm: DiffusionLM) -> list[list[int]]:
    if isinstance(prompt, list) and not prompt:
        raise refuse("prompt", "is an empty list")
    if isinstance(prompt, list) and isinstance(prompt[0], list) and not all(prompt):
        raise refuse("prompt", "holds an empty list of token ids")
    return encode(prompt, lm.tokenizer, None, lm.config, lm.name)


def _ids(text: str, lm: DiffusionLM) -> list[int]:
    return encode_text(text, lm.tokenizer, lm.config, lm.name)


def _tokenizer(lm: DiffusionLM) -> Tokenizer:
    assert lm.tokenizer is not None  # no model is served without
    return lm.tokenizer


def _of_segments(segments: list[str | Gap], lm: DiffusionLM) -> Template:
    pieces, choices = [""], list[Sequence[int]]()
    for segment in segments:
        if isinstance(segment, str):
            pieces[-1] += segment
            continue
        bounds = (segment.mask, segment.mask) if isinstance(segment.mask, int) else (segment.mask.min, segment.mask.max)
        low, high = bounds
        if high < low:
            raise refuse("segments", f"hold a gap of {low} to {high} tokens, which is no range")
        choices.append(range(low, high + 1))
        pieces.append("")
    if not choices:
        raise refuse("segments", 'hold no gap; write {"mask": 4} or {"mask": {"min": 1, "max": 3}} where one is')
    return make_template(pieces, choices, _tokenizer(lm))
