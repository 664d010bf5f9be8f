"""A finished model to the Hugging Face Hub, where its client is installed and logged in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from unmask.errors import UnmaskError


def open_repository(name: str) -> Callable[[Path], str]:
    """What uploads a folder to the repository OWNER/NAME, which is made, private, where there is none, and returns its
    address. Asked for before a training, so that what is missing is known then.

    Raises UnmaskError without the client, without a login, or where the login may not write there.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UnmaskError(f"--push {name!r}: a repository is written OWNER/NAME")
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UnmaskError("--push needs the hub's client; run: pip install 'unmask[hub]'") from None
    api = HfApi()
    try:
        address = str(api.create_repo(name, private=True, exist_ok=True))
    except Exception as error:  # the library raises many kinds
        raise UnmaskError(
            f"--push: cannot write to {name} ({_line(error)}); log in with `hf auth login`, or leave --push out"
        ) from None

    def push(folder: Path) -> str:
        try:
            api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="A finished training")
        except Exception as error:
            raise UnmaskError(
                f"the model is in {folder}, but not in {name} ({_line(error)}); try again: hf upload {name} {folder}"
            ) from None
        return address

    return push


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
