"""Templates of administrators end, however they are written, and say why."""

from __future__ import annotations

import time
from typing import Any

import pytest
from jinja2.exceptions import SecurityError

from fastboot.boot.sandbox import MAX_OUTPUT, OverrunError, Sandbox

LOOPS = {
    "in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "that filter": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "over texts": "{% for a in 'x' * 60000 %}{% for b in 'x' * 60000 %}{% endfor %}{% endfor %}",
    "of calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "with work": "{% for a in range(9999) %}{% set b = range(99999) | list %}{% endfor %}",
}


def run(template: str, **context: Any) -> str:
    sandbox = Sandbox()
    return sandbox.run(sandbox.from_string(template), context)


@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_a_loop_without_end_is_ended(text: str) -> None:
    before = time.thread_time()
    with pytest.raises(OverrunError, match="takes more than 50 ms of processor time"):
        run(text)
    assert time.thread_time() - before < 2


def test_a_text_without_end_is_ended() -> None:
    assert len(run("{% for a in range(999) %}{{ 'x' * 60 }}{% endfor %}")) == 59_940
    with pytest.raises(OverrunError, match=f"writes more than {MAX_OUTPUT} characters"):
        run("{% for a in range(999) %}{{ 'x' * 6000 }}{% endfor %}")


@pytest.mark.parametrize(
    "text",
    [
        "{{ text * 10 ** 10 }}",
        "{{ 10 ** 10 * text }}",
        "{{ [1] * 10 ** 10 }}",
        "{{ 7 ** (10 ** 9) }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (10 ** 10, 1) }}",
        "{{ text | center(10 ** 9) }}",
        "{{ text | indent(width=10 ** 9) }}",
        "{{ [text] | batch(10 ** 9, text) | list }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ '%*d' | format(10 ** 9, 1) }}",
        "{{ text.ljust(10 ** 9) }}",
        "{{ text.zfill(10 ** 9) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ [text] | slice(10 ** 9) | list }}",
        "{{ ('x' * 60000) | replace('', 'y' * 60000) }}",
        "{{ ('x' * 60000).replace('', 'y' * 60000) }}",
        "{{ ('x' * 60000).translate({120: 'y' * 60000}) }}",
        "{{ (['x'] * 60000) | join('y' * 60000) }}",
        "{{ '{:{w}}'.format(1, w=10 ** 9) }}",
        "{% set n = namespace(x='x') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set a = 'x' * 60000 %}{% set a = a ~ a %}",
        "{% set a = 'x' * 60000 %}{% set a = a + a %}",
        "{% set a = [1] * 60000 %}{% set a = a + a %}",
        "{% set a = 2 ** 60000 %}{% set a = a * a %}",
        "{% set a = ['x' * 60000] * 60000 %}{{ a | join }}",
        "{% set a = ['x' * 60000] * 60000 %}{{ a }}",
        "{% set a = ['x' * 60000] * 60000 %}{{ a ~ '' }}",
        "{% set a = ['x' * 60000] * 60000 %}{{ '%s' % a }}",
        "{% set a = ['x' * 60000] * 60000 %}{{ '{}'.format(a) }}",
        "{% set a = ['x' * 60000] * 60000 %}{{ ''.join(a) }}",
        "{% set a = ['x' * 60000] * 60000 %}{{ a | map('upper') | join }}",
        "{% set a = {1: ['x' * 60000] * 60000} %}{{ a | tojson }}",
    ],
)
def test_no_operation_makes_a_huge_value(text: str) -> None:
    with pytest.raises(OverrunError, match=r"makes a value of more than (65536|1048576) items or bits by"):
        run(text, text="x")


def test_what_is_meant_goes_on() -> None:
    text = "{% for name in names if name != 'b' %}{{ loop.index }}={{ name * 2 }} {% endfor %}{{ 2 ** 10 }}"
    assert run(text, names=["a", "b", "c"]) == "1=aa 2=cc 1024"
    assert run("{{ '%05d %s' % (7, x) }} {{ 3 * 4 }} {{ 7 % 4 }}", x="y") == "00007 y 12 3"
    assert run(
        "{{ x | center(5) }}{{ '%03d' | format(7) }}{{ '{:>4}'.format(x) }}{{ (10 ** 9) | filesizeformat }}", x="y"
    ) == ("  y  007   y1.0 GB")
    assert (
        run("{{ x ~ 1 ~ '-' ~ y }}{{ 'a' + 'b' }}{{ [1] + [2] }}{{ 2 + 3 }}", x="x", y=None) == "x1-Noneab[1, 2]5"
    )
    assert run("{{ xs | map('upper') | join(', ') }} {{ ', '.join(xs) }} {{ xs | tojson }}", xs=["a", "b"]) == (
        'A, B a, b ["a", "b"]'
    )
    tree = {"n": 1, "below": [{"n": 2, "below": []}]}
    text = "{% for each in [tree] recursive %}{{ each.n }}({{ loop(each.below) }}){% endfor %}"
    assert run(text, tree=tree) == "1(2())"


def test_each_rendering_has_its_time() -> None:
    sandbox = Sandbox()
    template = sandbox.from_string("{% for a in range(300) %}{{ a }}{% endfor %}")
    began = time.thread_time()
    while time.thread_time() - began < 0.2:
        sandbox.run(template, {})


def test_python_is_out_of_reach() -> None:
    with pytest.raises(SecurityError):
        run("{{ ''.__class__.__mro__ }}")
