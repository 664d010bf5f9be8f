"""Ctrl-C: the command line ends without a traceback, while it is being loaded too."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import unmask
from unmask.__main__ import main


class Interrupted(ModuleType):
    """A module that is interrupted while it is loaded."""

    def __getattr__(self, name: str) -> object:
        raise KeyboardInterrupt


def test_an_interrupt_while_loading_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "unmask.cli.main", Interrupted("unmask.cli.main"))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == ""


def test_nothing_large_is_loaded_before_an_interrupt_is_taken() -> None:
    code = "import sys, unmask.__main__; sys.exit(bool({'numpy', 'unmask.lm', 'unmask.cli'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_are_found_when_they_are_asked_for() -> None:
    assert all(getattr(unmask, name) is not None for name in unmask.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        unmask.Nothing  # noqa: B018
