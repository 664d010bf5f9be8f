"""Models as people write them in pydantic, for the schemas that it makes of them."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import pathlib
import re
import typing
import uuid
from collections import OrderedDict, deque
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

import pydantic as p
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

T = typing.TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Movie(TypedDict, total=False):
    title: str
    year: int


class Cat(BaseModel):
    kind: Literal["cat"]
    meows: int


class Dog(BaseModel):
    kind: Literal["dog"]
    barks: float


class Lizard(BaseModel):
    kind: Literal["lizard", "gecko"]
    tail: bool = True


Pet = Annotated[Cat | Dog | Lizard, Field(discriminator="kind")]


class Owner(BaseModel):
    name: str
    pets: list[Pet]


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class Linked(BaseModel):
    value: str
    next: Linked | None = None


class Person(BaseModel):
    model_config = p.ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=40)
    age: int = Field(ge=0, le=130)
    email: Annotated[str, Field(pattern=r"^[a-z]+@[a-z]+\.com$")]


class Company(BaseModel):
    people: dict[str, Person]
    founded: dt.date


class Times(BaseModel):
    day: dt.date
    at: dt.time
    when: dt.datetime
    lasts: dt.timedelta
    aware: p.AwareDatetime
    naive: p.NaiveDatetime
    past: p.PastDate
    future: p.FutureDatetime


class Secrets(BaseModel):
    password: p.SecretStr
    raw: p.SecretBytes
    data: bytes
    encoded: p.Base64Bytes
    url_encoded: p.Base64UrlBytes


class Numbers(BaseModel):
    price: Annotated[float, Field(multiple_of=0.01, ge=0, lt=1000)]
    quarter: Annotated[float, Field(multiple_of=0.25)]
    even: Annotated[int, Field(multiple_of=2)]
    large: Annotated[int, Field(multiple_of=5000)]
    exact: Decimal
    money: Annotated[Decimal, Field(max_digits=8, decimal_places=2)]
    positive: p.PositiveInt
    negative: p.NegativeFloat
    finite: p.FiniteFloat
    strict: p.StrictInt


class Collections(BaseModel):
    names: set[str]
    ids: frozenset[int]
    levels: set[Level]
    flags: set[bool]
    queue: deque[int]
    pair: tuple[int, str]
    any_length: tuple[int, ...]
    ordered: OrderedDict[str, int]
    by_uuid: dict[uuid.UUID, bool]
    by_colour: dict[Colour, int]
    few: Annotated[list[int], Field(min_length=1, max_length=3)]
    some: Annotated[set[int], Field(min_length=2, max_length=4)]
    sequence: Sequence[str]


class Network(BaseModel):
    v4: ipaddress.IPv4Address
    v6: ipaddress.IPv6Address
    network: ipaddress.IPv4Network
    network6: ipaddress.IPv6Network
    interface: ipaddress.IPv4Interface
    either: p.IPvAnyAddress
    url: p.AnyUrl
    http: p.HttpUrl
    postgres: p.PostgresDsn
    path: pathlib.Path
    file: p.FilePath | None = None
    id: uuid.UUID
    fourth: p.UUID4
    pattern: re.Pattern[str]


class Event(BaseModel):
    title: str
    start: dt.datetime
    tags: list[str] = Field(default_factory=list, max_length=5)
    colour: Colour | None = None
    level: Level = Level.LOW


class Aliased(BaseModel):
    model_config = p.ConfigDict(populate_by_name=True)
    from_: str = Field(alias="from")
    camel: int = Field(serialization_alias="Camel", default=0)


class Open(BaseModel):
    model_config = p.ConfigDict(extra="allow")
    a: int


class Extras(BaseModel):
    __pydantic_extra__: dict[str, int]
    model_config = p.ConfigDict(extra="allow")
    a: int


class Message(BaseModel):
    role: Literal["user", "assistant"]
    content: str | list[dict[str, str]]


class Step(BaseModel):
    explanation: str
    output: str


class MathReasoning(BaseModel):
    steps: list[Step]
    final_answer: str


class UI(BaseModel):
    type: Literal["div", "button", "header", "section", "field", "form"]
    label: str
    children: list[UI]
    attributes: list[Step]


class TurnOn(BaseModel):
    """Turns a device on."""

    intent: Literal["HassTurnOn"] = "HassTurnOn"
    name: str | None = Field(None, description="Name of a device or entity")
    area: str | None = None
    domain: list[Literal["light", "switch"]] | None = None


class SetTemperature(BaseModel):
    intent: Literal["HassClimateSetTemperature"] = "HassClimateSetTemperature"
    temperature: Annotated[float, Field(ge=5, le=35, multiple_of=0.5)]


class Default(BaseModel):
    intent: Literal["a"] = "a"
    value: Any = None
    anything: object
    mapping: dict[str, Any]
    nested: list[list[int | None]]


class Codes(BaseModel):
    country: Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
    currency: Annotated[str, p.StringConstraints(pattern=r"^(EUR|USD)$", max_length=3)]
    slug: Annotated[str, Field(pattern=r"^[a-z0-9]+(?:-[a-z0-9]+)*$", max_length=30)]
    colour: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]
    phone: Annotated[str, Field(pattern=r"^\+?[1-9]\d{1,14}$")]
    semver: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]


class Generic(BaseModel, typing.Generic[T]):
    items: list[T]
    total: int


@p.dataclasses.dataclass
class Dataclass:
    a: int
    b: str = "x"


TYPES: dict[str, Any] = {
    **{
        model.__name__: model
        for model in (
            Owner, Tree, Linked, Person, Company, Times, Secrets, Numbers, Collections, Network, Event, Aliased, Open,
            Extras, Message, MathReasoning, UI, TurnOn, SetTemperature, Default, Codes, Dataclass, Movie, Point,
        )
    },
    "generic": Generic[Point],
    "root list": p.RootModel[list[int]],
    "root dict": p.RootModel[dict[str, Event]],
    "root union": p.RootModel[Cat | Dog | int],
    "root str": p.RootModel[Annotated[str, Field(max_length=10)]],
    "union": TurnOn | SetTemperature,
    "callable discriminator": list[Pet],
    "optional": Event | None,
    "set": set[str],
    "set of numbers": set[int],
    "set of unions": set[int | str],
    "set of pairs": set[tuple[int, bool]],
    "set of enums": set[Colour],
    "timedelta": dt.timedelta,
    "bytes": bytes,
    "secret": p.SecretStr,
    "decimal": Decimal,
    "cents": Annotated[float, Field(multiple_of=0.01)],
    "thousandths": Annotated[float, Field(multiple_of=0.001, gt=0, le=2)],
    "thirds": Annotated[float, Field(multiple_of=1.5)],
    "enum": Colour,
    "literal": Literal["a", 1, True, None],
    "complex literal": Literal[1, "1", "one"],
    "date": dt.date,
    "path": pathlib.Path,
    "pattern": re.Pattern[str],
    "date range": tuple[dt.date, dt.date],
    "constrained dict": Annotated[dict[str, int], Field(min_length=1, max_length=3)],
    "two of any name": Annotated[dict[str, int], Field(min_length=2)],
    "keys by pattern": dict[Annotated[str, Field(pattern=r"^[a-z]{1,5}$")], int],
    "keys by length": dict[Annotated[str, Field(min_length=2, max_length=4)], bool],
    "byte size": p.ByteSize,
    "any": Any,
    "fraction of union": Decimal | int | None,
    "email": Annotated[str, p.WithJsonSchema({"type": "string", "format": "email"})],
    "mac": Annotated[str, p.WithJsonSchema({"type": "string", "format": "mac-address"})],
}  # fmt: skip
if hasattr(p, "TypeAdapter"):
    TYPES["recursive json"] = p.RootModel[p.JsonValue]
