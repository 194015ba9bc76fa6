"""The templates of administrators: Jinja2 that reaches nothing, and ends however it is written."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from math import inf
from typing import Any, Final

from jinja2 import BaseLoader, StrictUndefined, Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment

MAX_SECONDS: Final = 0.05
"""Processor time of one rendering, on the thread that serves everybody."""
MAX_OUTPUT: Final = 65_536
"""Characters of one text; what asks for it may have room for less."""
MAX_ITEMS: Final = 65_536
"""Characters or items that one operator may make, bits of a power, a width or count."""
MAX_PRODUCT: Final = 1 << 20
"""Characters that a text may become where another is put in at each of its characters: replace, join, indent."""
WIDE: Final = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{5})|\{[^{}]*:[^{}]*\d{5}")
"""A width or precision, of `%` or `format`, that has five digits, or by `%` is a variable."""


class OverrunError(Exception):
    """A template would go on for too long, or write too much; says which."""


class _Paced(CodeGenerator):
    """Compiles loops so that each turn asks `Sandbox.call` whether there is time left, filtered turns too, and `~`
    so that `Sandbox.tie` makes the text."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.tie((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        turn = nodes.Call(nodes.EnvironmentAttribute("turn"), [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
        if node.test:
            node.test = nodes.And(turn, node.test, lineno=node.lineno)
        super().visit_For(node, frame)


class Sandbox(SandboxedEnvironment):
    """An environment without access to Python. `run` bounds a rendering; for one thread at a time.

    What takes time is noticed at each turn of a loop and at each call. What happens between two of them is one
    operation of Python on values that are bounded themselves, and on widths and counts that are.
    """

    code_generator_class = _Paced
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(
        self, loader: BaseLoader | None = None, filters: Mapping[str, Callable[..., Any]] | None = None
    ) -> None:
        # Autoescape is for HTML; what goes into a line is checked by the filters of its language instead.
        super().__init__(
            loader=loader,
            undefined=StrictUndefined,
            autoescape=False,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            finalize=lambda value: _weighed("an expression", value),
        )
        self.filters.update(filters or {})
        del self.globals["lipsum"]  # texts of any length, for web designers
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        self._deadline: float | None = None

    def run(self, template: Template, context: Mapping[str, Any]) -> str:
        """Render a template of this sandbox. Raises OverrunError, and whatever its expressions raise."""
        # Not the wall clock: a host that pauses this thread is no fault of the template.
        self._deadline = time.thread_time() + MAX_SECONDS
        try:
            pieces, size = [], 0
            for piece in template.generate(context):
                pieces.append(piece)
                size += len(piece)
                if size > MAX_OUTPUT:
                    raise OverrunError(f"writes more than {MAX_OUTPUT} characters; look for loops")
            return "".join(pieces)
        finally:
            self._deadline = None

    @staticmethod
    def turn() -> bool:
        """Called by every turn of a loop."""
        return True

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __self._hurry()
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox's own of str.format
        text = getattr(method, "__self__", None)
        if isinstance(text, str | bytes):
            _check(method.__name__, text, *args, *kwargs.values())
            args = tuple(_weighed(method.__name__, each) for each in args)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self._hurry()
        _bound(operator, _result_size(operator, left, right))
        return super().call_binop(context, operator, _weighed(operator, left), _weighed(operator, right))

    def tie(self, values: tuple[Any, ...]) -> str:
        """Join the operands of `~`."""
        self._hurry()
        texts = [str(_weighed("~", value)) for value in values]
        _bound("~", sum(map(len, texts)))
        return "".join(texts)

    def _hurry(self) -> None:
        if self._deadline is not None and time.thread_time() > self._deadline:
            most = f"{MAX_SECONDS * 1000:.0f} ms"
            raise OverrunError(f"takes more than {most} of processor time; look for loops in loops")


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that takes no huge width or count beside its value."""
    first = int(hasattr(function, "jinja_pass_arg"))  # what comes before the value

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        name = function.__name__.removeprefix("do_")
        value, *others = args[first:]
        _check(name, value, *others, *kwargs.values())
        value = _weighed(name, value)
        return function(*args[:first], value, *others, **kwargs)

    return bounded


def _weighed(name: str, value: Any) -> Any:
    """Return a value of which a text may be made; what it holds is counted as often as it is in it, since that is
    how often it would be written. Raises OverrunError, for an iterator when it has come to so much."""
    if isinstance(value, Iterator):
        return _weighing(name, value)
    _bound(name, _weight(value, MAX_PRODUCT), MAX_PRODUCT)
    return value


def _weighing(name: str, values: Iterator[Any]) -> Iterator[Any]:
    total = 0
    for value in values:
        total += _weight(value, MAX_PRODUCT - total)
        _bound(name, total, MAX_PRODUCT)
        yield value


def _weight(value: Any, enough: int) -> int:
    """Return how many characters and items there are in a value, however deep; not exactly where it is more than
    enough."""
    if isinstance(value, str | bytes):
        return 1 + len(value)
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    total = 1
    for each in value if isinstance(value, list | tuple | set | frozenset) else ():
        if total > enough:
            break
        total += _weight(each, enough - total)
    return total


def _check(name: str, value: Any, *args: Any) -> None:
    """Raise OverrunError where a text is to be made that wide, or something so many times."""
    size = len(value) if isinstance(value, str | bytes | list | tuple) else 1
    for each in (*args, *(item for table in args if isinstance(table, dict) for item in table.values())):
        if isinstance(each, int):
            _bound(name, abs(each))
        elif isinstance(each, str):
            _bound(name, size * len(each), MAX_PRODUCT)
    if name == "format" and isinstance(value, str) and WIDE.search(value):
        _bound(name, inf)


def _bound(name: str, size: float, most: int = MAX_ITEMS) -> None:
    if size > most:
        raise OverrunError(f"makes a value of more than {most} items or bits by {name}")


def _result_size(operator: str, left: Any, right: Any) -> float:
    if operator == "%":
        return inf if isinstance(left, str) and WIDE.search(left) else 0
    if isinstance(left, int) and isinstance(right, int):
        return {"**": left.bit_length() * right, "*": left.bit_length() + right.bit_length()}.get(operator, 0)
    if operator == "+" and isinstance(left, str | bytes | list | tuple) and type(left) is type(right):
        return len(left) + len(right)
    for value, times in ((left, right), (right, left)) if operator == "*" else ():
        if isinstance(value, str | bytes | list | tuple) and isinstance(times, int):
            return len(value) * times
    return 0
