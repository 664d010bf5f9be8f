"""What clients may send. A field that is not here, and a value that could not be honoured, is an error."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from unmask.decoding.request import Mode
from unmask.decoding.rules import RuleName


class Strict(BaseModel):
    """No unknown fields, no numbers written as text."""

    model_config = ConfigDict(extra="forbid", strict=True)


def _only(*values: Any) -> AfterValidator:
    def check(value: Any) -> Any:
        if value is not None and value not in values:
            raise ValueError(f"this server cannot honour it; leave it out or send {' or '.join(map(repr, values))}")
        return value

    return AfterValidator(check)


Effort = Literal["instant", "low", "medium", "high"]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
Stops = StopText | Annotated[list[StopText], Field(max_length=4)] | None
Prompt = str | list[str] | list[int] | list[list[int]]
Zero = Annotated[float | None, _only(0)]


class StreamOptions(Strict):
    """What a stream carries besides text."""

    include_usage: bool = Field(default=False, description="A last chunk with the usage of the whole request.")
    include_obfuscation: Annotated[bool | None, _only(False)] = None
    frames: bool = Field(
        default=False, description="What each step did: step, positions, tokens, texts, confidences and kinds."
    )


class Steering(Strict):
    """How to decode; each unset field is the model's own default."""

    model: str | None = Field(None, max_length=256, description="One of /v1/models; the first served if left out.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the best token.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31, description="0 is off.")
    seed: int | None = Field(None, ge=-(2**53), le=2**53, description="Same seed, same text; drawn if left out.")
    n: int | None = Field(None, ge=1, description="How many texts, with seeds that follow each other.")
    rule: RuleName | None = Field(None, description="Which proposals a step commits.")
    threshold: float | None = Field(None, ge=0, le=1, description="Of rules `threshold`, `checked` and `token_edit`.")
    editing_threshold: float | None = Field(
        None, ge=0, le=1, description="Of rule `token_edit`: written tokens are replaced where another is surer."
    )
    factor: float | None = Field(None, ge=0, lt=1e6, description="Of rule `factor`.")
    entropy_bound: float | None = Field(None, ge=0, lt=1e6, description="Of rule `entropy_bound`, nats.")
    max_denoising_steps: int | None = Field(None, ge=1, le=2**20, description="Steps per block.")
    remask_budget: int | None = Field(None, ge=0, le=2**20, description="Committed tokens that may be masked again.")
    reasoning_effort: Effort | None = Field(
        None, description="Sets steps and threshold relative to the model's own; see docs/serving.md."
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    stream_options: StreamOptions | None = None
    diffusing: bool | None = Field(
        None, description="With stream: every chunk is the whole text so far, gaps and all, to replace the last one."
    )
    user: str | None = Field(None, max_length=256, description="Goes into the server's log.")
    presence_penalty: Zero = None
    frequency_penalty: Zero = None
    logit_bias: Annotated[dict[str, float] | None, _only({})] = None
    metadata: Annotated[dict[str, str] | None, _only({})] = None
    store: Annotated[bool | None, _only(False)] = None
    service_tier: Annotated[str | None, _only("auto", "default")] = None


class Writing(Steering):
    """Text after a prompt."""

    mode: Mode | None = Field(None, description="The model's first if left out.")
    block_length: int | None = Field(None, ge=1, le=2**20, description="Tokens decoded together.")
    stop: Stops = Field(None, description="At most four texts; none of them is in the answer.")


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class JsonSchema(Strict):
    """A schema with a name, as OpenAI's clients send it. What is written is always valid under it, `strict` or not."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
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


class StructuredOutputs(Strict):
    """vLLM's field for what response_format has no name for."""

    regex: str = Field(max_length=20_000, description="A regular expression that the whole text matches.")


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


class CalledFunction(Strict):
    """A function that was called; `arguments` is JSON text."""

    name: FunctionName
    arguments: str


class ToolCall(Strict):
    """A call that an answer made."""

    id: str = Field(max_length=256)
    type: Literal["function"]
    function: CalledFunction


class Message(Strict):
    """One turn of a dialogue."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: Annotated[str | None, _only()] = None
    refusal: Annotated[str | None, _only()] = None
    tool_calls: list[ToolCall] | None = Field(default=None, description="Of an assistant's message.")
    tool_call_id: str | None = Field(default=None, max_length=256, description="Of a tool's message: what it answers.")


class Dialogue(Writing):
    """Fields that chat, edit and apply share."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_tokens: int | None = Field(None, ge=1, le=2**20)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**20, description="Another name of max_tokens.")


class ChatRequest(Dialogue):
    """Body of /v1/chat/completions."""

    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Needs logprobs.")
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: list[Tool] | None = Field(None, max_length=128, description="Needs a model whose template renders tools.")
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = Field(None, description="auto if left out.")
    parallel_tool_calls: bool | None = Field(None, description="Whether one answer may hold several calls.")
    modalities: Annotated[list[str] | None, _only(["text"])] = None
    reasoning_summary: Annotated[bool | None, _only(False)] = None
    reasoning_summary_wait: Annotated[bool | None, _only(False)] = None


class CompletionRequest(Writing):
    """Body of /v1/completions and /v1/fim/completions."""

    prompt: Prompt = Field("", description="Text, token ids, or a list of either.")
    suffix: str | None = Field(None, description="Text that follows what is written; needs a model that fills.")
    max_tokens: int | None = Field(
        None, ge=1, le=2**20, description="With a suffix, the longest gap tried, as far as it fits."
    )
    logprobs: int | None = Field(None, ge=0, le=5)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    echo: Annotated[bool | None, _only(False)] = None
    best_of: Annotated[int | None, _only(1)] = None


class GapLengths(Strict):
    """A gap of at least `min` and at most `max` tokens."""

    min: int = Field(ge=1, le=2**20)
    max: int = Field(ge=1, le=2**20)


class Gap(Strict):
    """A gap to fill: a number of tokens, or a range of which the length the model is surest of is taken."""

    mask: Annotated[int, Field(ge=1, le=2**20)] | GapLengths


class InfillRequest(Steering):
    """Body of /v1/infill: a template with any gaps, as segments or as text with [[mask:4]] and [[mask:1-3]]."""

    segments: list[str | Gap] | None = Field(None, max_length=4096)
    template: str | None = None
    logprobs: int | None = Field(None, ge=0, le=5)


class EditRequest(Dialogue):
    """Body of /v1/edit/completions and /v1/apply/completions."""
