"""Hostile chat templates end soon and make little; those of the hub are rendered as they are meant."""

from __future__ import annotations

import time
import tracemalloc

import pytest

from unmask import templates
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
    # loops that read and call nothing
    "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}{% endfor %}{% endfor %}",
    "{% set r = [1] * 99999 %}{% for a in r %}{% for b in r %}{% if a == 2 %}x{% endif %}{% endfor %}{% endfor %}",
    "{% for x in [1] | slice(1000000000) %}{% endfor %}",
    "{{ ([1] * 10000000) | sort | length }}",
    "{{ ([[1] * 10000] * 10000) | sum(start=[]) | length }}",
    # methods and filters that make much of little
    "{{ ('\t' * 1000).expandtabs(1000000) }}",
    "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "{{ ('a' * 1000000) | replace('a', 'b' * 10000) }}",
    "{{ [('a' * 1000000)] | map('replace', 'a', 'b' * 10000) | list | length }}",
    "{{ (['a'] * 100000) | join('x' * 100000) }}",
    "{{ ('x' * 16000000).join(range(9999) | map('string')) }}",
    "{{ ('a\n' * 100000) | indent('x' * 100000) }}",
    "{{ [[1] * 100] | tojson(indent=100000000) }}",
    "{{ [range(9999) | list] | tojson(indent='x' * 1000000) }}",
    "{{ [1] | batch(1000000000, 'x') | list | length }}",
    "{{ lipsum(n=100000) }}",
    # widths that are computed, fields that are many
    "{{ '{:>{w}}'.format('a', w='999999999') }}",
    "{{ '{:>{w[0]}}'.format('a', w=[999999999]) }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ ('{0}' * 100000).format('a' * 1000000) }}",
    "{{ ('%(a)s' * 100000) % {'a': 'x' * 1000000} }}",
    "{{ ('{:>99999}' * 10000).format(*range(99999)) }}",
    # one text in a list many times, written out
    "{{ ['x' * 1000000] * 100000 }}",
    "{{ (['x' * 1000000] * 100000) ~ '' }}",
    "{{ (['x' * 1000000] * 100000) | string }}",
    "{{ (['x' * 1000000] * 100000) | tojson }}",
]


@pytest.mark.parametrize("template", HOSTILE)
def test_a_hostile_template_is_refused_in_time_and_memory(template: str) -> None:
    tracemalloc.start()
    began = time.thread_time()
    try:
        with pytest.raises(UnmaskError, match="refuses"):
            render_chat(HELLO, template, "m")
        assert tracemalloc.get_traced_memory()[1] < 512 << 20
    finally:
        tracemalloc.stop()
    assert time.thread_time() - began < 6


def test_what_templates_of_the_hub_do_is_within_bounds() -> None:
    template = (
        "{% for m in messages %}{{ '%-8s' | format(m.role) }}{{ m.content.replace('l', 'LL') ~ '!' }}"
        "{{ ' ' * 3 + 'x' }}{{ m | tojson(indent=2) | indent(4) }}{{ 'a' | center(5) }}{% endfor %}"
    )
    assert "heLLLLo!   x" in render_chat(HELLO, template, "m")
    assert (
        render_chat(HELLO, "{{ ('a' * 1000000).replace('<|im_end|>', 'something longer') | length }}", "m") == "1000000"
    )
    for template, written in (
        ("{{ messages | map(attribute='content') | join(', ') }}{{ ','.join(['a', 'b']) }}", "helloa,b"),
        ("{{ [1, 2] | join }}{{ [1, 2] | sum }}{{ '<' | e }}{{ 3 | string }}", "123&lt;3"),
        ("{% for m in messages recursive %}{{ loop.index }}{{ loop.last }}{% else %}none{% endfor %}", "1True"),
        ("{% for m in [] %}x{% else %}none{% endfor %}", "none"),
    ):
        assert render_chat(HELLO, template, "m") == written
    assert render_chat([{"role": "user", "content": "a" * 200_000}], "{{ messages[0].content }}", "m") == "a" * 200_000


def test_time_that_a_busy_machine_takes_is_not_the_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.05)

    class Slow:
        def __str__(self) -> str:
            time.sleep(0.2)
            return "hi"

    assert templates.render("{{ x }}{{ x }}", {"x": Slow()}) == "hihi"
    with pytest.raises(templates.OutOfBounds, match="longer than"):
        templates.render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", {})
