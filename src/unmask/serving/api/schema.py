"""What clients may send. A field that is not here, and a value that could not be honoured, is an error."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    create_model,
    model_validator,
)

from unmask.decoding.methods import DecodingDefaults
from unmask.decoding.options import describe
from unmask.decoding.request import Mode

LARGEST = 2**31  # whole number of any option
ENTRIES = 4096  # of lists whose length nothing else bounds
LIBRARY_ONLY = frozenset({"layout", "mode", "convention", "eos_token_ids", "cache", "cache_refresh"})
BOUNDS: dict[str, dict[str, Any]] = {"temperature": {"le": 2}}  # as OpenAI has them
ABOUT = {
    "temperature": "0 takes the best token.",
    "top_k": "0 and -1 are off.",
    "rule": "Which proposals a step commits.",
    "max_denoising_steps": "Steps per block.",
    "remask_budget": "Committed tokens that may be masked again.",
    "block_length": "Tokens decoded together.",
}


@cache
def _types(model: type[BaseModel]) -> list[str]:
    """The values of a model's `type`, where it is one of a few."""
    field = model.model_fields.get("type")
    parts = () if field is None else (field.annotation, *get_args(field.annotation))
    return [value for part in parts if get_origin(part) is Literal for value in get_args(part)]


class Strict(BaseModel):
    """No unknown fields, no numbers written as text. What is null was not sent."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _sent(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind = value.get("type")
        if isinstance(kind, str) and kind not in (taken := _types(cls) or [kind]):
            raise ValueError(f"type {kind[:40]!r} is not taken here; there is {', '.join(taken)}")
        return {name: part for name, part in value.items() if part is not None} if None in value.values() else value


class Tagged(Strict):
    """A part of several types, each with fields of its own; a field of another type would be ignored."""

    NEEDS: ClassVar[dict[str, str]] = {}  # by type, the fields that it cannot do without
    TAKES: ClassVar[dict[str, str]] = {}  # by type, those that it may have
    type: Any

    @model_validator(mode="after")
    def _own(self) -> Self:
        sent = {name.rstrip("_") for name in self.model_fields_set} - {"type"}
        needed = set(self.NEEDS.get(self.type, "").split())
        if needed - sent:
            raise ValueError(f"type {self.type!r} needs {min(needed - sent)!r}")
        other = sent - needed - set(self.TAKES.get(self.type, "").split())
        if other:
            raise ValueError(f"type {self.type!r} does not take {min(other)!r}; leave it out")
        return self


def _only(*values: Any) -> AfterValidator:
    def check(value: Any) -> Any:
        if value is not None and value not in values:
            instead = f" or send {' or '.join(map(repr, values))}" if values else ""
            raise ValueError(f"this server cannot honour it; leave it out{instead}")
        return value

    return AfterValidator(check)


def _option(name: str, about: dict[str, Any]) -> tuple[Any, Any]:
    """The field of a decoding option, with the range that its declaration has."""
    names = {"minimum": "ge", "exclusiveMinimum": "gt", "maximum": "le", "exclusiveMaximum": "lt"}
    bounds = {short: about[long] for long, short in names.items() if long in about} | BOUNDS.get(name, {})
    kinds = {"integer": int, "number": float, "boolean": bool, "array": list[int], "object": dict[str, float]}
    kind: Any = Literal[tuple(about["choices"])] if "choices" in about else kinds.get(about["type"], str)
    if about["type"] == "integer":
        bounds = {"le": LARGEST, **bounds}
    elif about["type"] in ("array", "object"):
        bounds = {"max_length": ENTRIES}
    if name == "top_k":  # other servers' word for off
        kind = Annotated[int, BeforeValidator(lambda value: 0 if value == -1 else value)]
    return kind | None, Field(None, description=ABOUT.get(name), **bounds)


OPTIONS: dict[str, Any] = {
    name: about for name, about in describe(DecodingDefaults()).items() if name not in LIBRARY_ONLY
}
FIELDS: dict[str, Any] = {name: _option(name, about) for name, about in OPTIONS.items()}
DecodingFields: Any = create_model(
    "DecodingFields",
    __base__=Strict,
    __doc__="Options of decoding; each unset field is the model's own default.",
    **FIELDS,
)


def _prompt(value: Any) -> Any:
    """A prompt whose kind is looked at once, not tried entry by entry under every kind."""
    kinds = set(map(type, value)) if isinstance(value, list) else set()
    rows = kinds == {list} and all(set(map(type, row)) <= {int} for row in value)
    if not (isinstance(value, str) or (isinstance(value, list) and kinds <= {int}) or kinds == {str} or rows):
        raise ValueError("a prompt is text, a list of texts, token ids, or a list of lists of token ids")
    if kinds & {str, list} and len(value) > ENTRIES:
        raise ValueError(f"a request holds {ENTRIES} prompts at most")
    return value


Effort = Literal["none", "minimal", "instant", "low", "medium", "high"]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Stops = StopText | Annotated[list[StopText], Field(fail_fast=True, max_length=4)] | None
PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}
Prompt = Annotated[Any, PlainValidator(_prompt), WithJsonSchema(PROMPT_SCHEMA)]
Labels = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class StreamOptions(Strict):
    """What a stream carries besides text."""

    include_usage: bool = Field(default=False, description="A last chunk with the usage of the whole request.")
    include_obfuscation: Annotated[bool | None, _only(False)] = None
    frames: bool = Field(
        default=False, description="What each step did: step, positions, tokens, texts, confidences and kinds."
    )


NEUTRAL: dict[str, tuple[Any, ...]] = {  # fields of other servers, at the values that change nothing
    "add_generation_prompt": (True,), "add_special_tokens": (False,), "bad_words": ([],), "best_of": (1,),
    "cache_prompt": (True, False), "continue_final_message": (False,), "detokenize": (True,), "dry_multiplier": (0,),
    "dynatemp_range": (0,), "early_stopping": (False,), "echo": (False,), "epsilon_cutoff": (0,), "eta_cutoff": (0,),
    "function_call": ("none", "auto"), "functions": ([],), "grammar": ("",), "include_stop_str_in_output": (False,),
    "length_penalty": (1,), "metadata": ({},), "min_keep": (0,), "mirostat": (0,), "modalities": (["text"],),
    "n_probs": (0,), "no_repeat_ngram_size": (0,), "num_beams": (1,), "plugins": ([],), "priority": (0,),
    "reasoning_summary": (False,), "reasoning_summary_wait": (False,), "repeat_penalty": (1,),
    "return_token_ids": (False,), "return_tokens_as_token_ids": (False,), "separate_reasoning": (True,),
    "service_tier": ("auto", "default"), "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,),
    "store": (False,), "stream_reasoning": (True,), "tfs": (1,), "tfs_z": (1,), "top_a": (0,), "transforms": ([],),
    "typical": (1,), "typical_p": (1,), "use_beam_search": (False,), "verbosity": ("medium",), "xtc_probability": (0,),
}  # fmt: skip
NEUTRAL_FIELDS: dict[str, Any] = {name: (Annotated[Any, _only(*values)], None) for name, values in NEUTRAL.items()}
NeutralFields: Any = create_model("NeutralFields", __base__=DecodingFields, **NEUTRAL_FIELDS)


class Steering(NeutralFields):  # type: ignore[misc]
    """How to decode, and how to answer."""

    model: str | None = Field(None, max_length=256, description="One of /v1/models; the first served if left out.")
    mode: Mode | None = Field(None, description="The model's first if left out.")
    seed: int | None = Field(None, ge=-(2**53), le=2**53, description="Same seed, same text; drawn if left out.")
    n: int | None = Field(None, ge=1, le=LARGEST, description="How many texts, with seeds that follow each other.")
    reasoning_effort: Effort | None = Field(
        None, description="Sets steps and threshold relative to the model's own; `none` changes nothing."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = None
    diffusing: bool | None = Field(
        None, description="With stream: every chunk is the whole text so far, gaps and all, to replace the last one."
    )
    user: str | None = Field(None, max_length=256, description="Goes into the server's log.")
    safety_identifier: str | None = Field(None, max_length=256, description="Taken, and not read.")
    prompt_cache_key: str | None = Field(None, max_length=256, description="Taken, and not read.")
    prompt_cache_retention: str | None = Field(None, max_length=256, description="Taken, and not read.")
    realtime: bool | None = Field(None, description="Of Mercury's clients; text is always sent at once.")


class Writing(Steering):
    """Text after a prompt."""

    stop: Stops = Field(None, description="At most four texts; none of them is in the answer.")


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str
    cache_control: dict[str, str] | None = Field(None, max_length=4, description="Taken, and not read.")


def text_of(content: Any) -> str:
    """The text of a message: text, a list of parts with text, or None."""
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


class JsonSchema(Strict):
    """A schema with a name, as OpenAI's clients send it. What is written is always valid under it, `strict` or not."""

    name: str = Field(min_length=1, max_length=256)  # clients make it of a class's name, such as RootModel[list[int]]
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """What an answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("a json_schema goes with type json_schema, and with no other")
        return self


Choices = Annotated[list[Annotated[str, Field(min_length=1)]], Field(fail_fast=True, min_length=1, max_length=ENTRIES)]
Regex = Annotated[str, Field(max_length=20_000)]
Schema = dict[str, Any] | str


class StructuredOutputs(Strict):
    """vLLM's field: one of the ways to say what the whole text has to be."""

    regex: Regex | None = Field(None, description="A regular expression that the whole text matches.")
    choice: Choices | None = Field(None, description="The text is one of these.")
    json_: Schema | None = Field(None, alias="json", description="A JSON schema that the text is valid under.")
    json_object: Literal[True] | None = None

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        if len(self.model_fields_set) != 1:
            raise ValueError("give one of regex, choice, json and json_object")
        return self


class Structured(Writing):
    """Fields that hold a text to a grammar."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | None = Field(None, description="Another name of structured_outputs.json.")
    guided_regex: Regex | None = Field(None, description="Another name of structured_outputs.regex.")
    guided_choice: Choices | None = Field(None, description="Another name of structured_outputs.choice.")


FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class Function(Strict):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of type object.")
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: FunctionName


class NamedChoice(Strict):
    """The one function that has to be called."""

    type: Literal["function"]
    function: NamedFunction


class Allowed(Strict):
    """Some of the tools, and whether one of them has to be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedChoice], Field(fail_fast=True, min_length=1, max_length=128)]


class AllowedTools(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: Allowed


class CalledFunction(Strict):
    """A function that was called; `arguments` is JSON text."""

    name: FunctionName
    arguments: str


class ToolCall(Strict):
    """A call that an answer made."""

    id: str = Field(max_length=256)
    type: Literal["function"]
    function: CalledFunction
    index: int | None = Field(None, description="Of a stream's part; taken, and not read.")


class Message(Strict):
    """One turn of a dialogue."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True, max_length=ENTRIES)] | None = None
    name: str | None = Field(default=None, max_length=256, description="Of whoever speaks, for templates that read it.")
    reasoning_content: str | None = Field(default=None, description="Before an answer, for templates that read it.")
    reasoning: str | None = Field(default=None, description="Another name of reasoning_content.")
    refusal: Annotated[str | None, _only()] = None
    annotations: Annotated[list[Any] | None, _only([])] = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=128)] | None = Field(
        default=None, description="Of an assistant's message."
    )
    tool_call_id: str | None = Field(default=None, max_length=256, description="Of a tool's message: what it answers.")


class Dialogue(Writing):
    """Fields that chat, edit and apply share."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=ENTRIES)]
    max_tokens: int | None = Field(None, ge=1, le=2**20)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**20, description="Another name of max_tokens.")


class ChatRequest(Dialogue, Structured):
    """Body of /v1/chat/completions."""

    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Needs logprobs.")
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | AllowedTools | None = Field(
        None, description="auto if left out."
    )
    parallel_tool_calls: bool | None = Field(None, description="Whether one answer may hold several calls.")
    chat_template_kwargs: dict[str, bool | int | float | str | None] | None = Field(
        None, max_length=64, description="Further variables of the model's chat template."
    )


class CompletionRequest(Structured):
    """Body of /v1/completions and /v1/fim/completions."""

    prompt: Prompt = Field("", description="Text, token ids, or a list of either.")
    suffix: str | None = Field(None, description="Text that follows what is written; needs a model that fills.")
    max_tokens: int | None = Field(
        None, ge=0, le=2**20, description="With a suffix, the longest gap tried, as far as it fits."
    )
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = Field(None, description="The answer's text begins with the prompt.")


class GapLengths(Strict):
    """A gap of at least `min` and at most `max` tokens."""

    min: int = Field(ge=1, le=2**20)
    max: int = Field(ge=1, le=2**20)


class Gap(Strict):
    """A gap to fill: a number of tokens, or a range of which the length the model is surest of is taken."""

    mask: Annotated[int, Field(ge=1, le=2**20)] | GapLengths


class InfillRequest(Steering):
    """Body of /v1/infill: a template with any gaps, as segments or as text with [[mask:4]] and [[mask:1-3]]."""

    segments: Annotated[list[str | Gap], Field(fail_fast=True, max_length=ENTRIES)] | None = None
    template: str | None = None
    logprobs: int | None = Field(None, ge=0, le=5)


class EditRequest(Dialogue):
    """Body of /v1/edit/completions and /v1/apply/completions."""

    next_edit: bool | None = Field(None, alias="nextEdit", description="Taken, and not read: an edit is the next one.")


class TokenizeRequest(Strict):
    """Body of /tokenize: text, or messages as the model's template writes them."""

    model: str | None = Field(None, max_length=256)
    prompt: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=ENTRIES)] | None = None
    add_special_tokens: bool | None = Field(None, description="Taken; a prompt is fed as it would be decoded.")
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    """Body of /detokenize."""

    model: str | None = Field(None, max_length=256)
    tokens: Annotated[list[int], Field(fail_fast=True)]
