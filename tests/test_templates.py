"""Hostile chat templates end soon and make little; those of the hub are rendered as they are meant."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from unmask.errors import UnmaskError
from unmask.prompts import render_chat

HELLO = [{"role": "user", "content": "hello"}]
HOSTILE = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
    "{% macro m() %}" + "{% for a in range(9999) %}" * 2 + "{{ a }}" + "{% endfor %}" * 2 + "{% endmacro %}{{ m() }}",
    "{% set x = 'aa' %}" + "{% set x = x ~ x %}" * 60 + "{{ x }}",
    "{% set x = 'aa' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60 + "{{ x }}",
    "{{ 'a' * 10000000000 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ 'a' | center(10000000000) }}",
    "{{ '%10000000000d' | format(1) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ 'a'.ljust(10000000000) }}",
    "{{ ('a' * 10000000).replace('a', 'b' * 10000000) }}",
    "{% set n = namespace(x='aa') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='aa') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=['a']) %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{{ ('a\n' * 1000000) | indent(10000000) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
]


@pytest.mark.parametrize("template", HOSTILE)
def test_a_hostile_template_is_refused_in_time_and_memory(template: str) -> None:
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(UnmaskError, match="refuses"):
            render_chat(HELLO, template, "m")
        assert tracemalloc.get_traced_memory()[1] < 512 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 6


def test_what_templates_of_the_hub_do_is_within_bounds() -> None:
    template = (
        "{% for m in messages %}{{ '%-8s' | format(m.role) }}{{ m.content.replace('l', 'LL') ~ '!' }}"
        "{{ ' ' * 3 + 'x' }}{{ m | tojson(indent=2) | indent(4) }}{{ 'a' | center(5) }}{% endfor %}"
    )
    assert "heLLLLo!   x" in render_chat(HELLO, template, "m")
    assert render_chat([{"role": "user", "content": "a" * 200_000}], "{{ messages[0].content }}", "m") == "a" * 200_000
