"""Errors as a person reads them: the key path, what is wrong, what would be right."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import get_args

from pydantic import ValidationError

from fastboot.config.fields import MAX_NUMBER, Table


class KeyFaults(ValueError):
    """What is wrong in a table that is read by hand: (key below it, text) for each fault."""

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        super().__init__("\n".join(f"{key}: {text}" for key, text in faults))
        self.faults = tuple(faults)


KINDS = {
    "bool_type": "should be true or false, without quotes",
    "int_type": "should be a whole number, without quotes",
    "string_type": "should be a text between quotes",
    "dict_type": "should be a table",
    "model_type": "should be a table",
    "bytes_type": "should be a text between quotes",
    "path_type": "should be a path between quotes",
    "ip_v4_address": 'is no IPv4 address; write one such as "10.77.0.5"',
}
"""What is said of a value of the wrong kind, by pydantic's names of errors, whose own words are Python's."""


def repeated(key: str, values: Sequence[str], suffix: str = "") -> Iterator[str]:
    for at, value in enumerate(values):
        if value in values[:at]:
            yield f"{key}[{at}]{suffix}: {value} is there twice; give each its own"


def unknown(name: str, known: Sequence[str]) -> str:
    """Say what was written and what may have been meant."""
    if close := get_close_matches(name, known, 1):
        return f"{name!r}; did you mean {close[0]!r}?"
    return f"{name!r}; there are {', '.join(sorted(known))}" if known else f"{name!r}; there are none"


def explain(error: ValidationError, model: type[Table]) -> Iterator[str]:
    found = error.errors(include_url=False)
    for fault in found:
        place = fault["loc"]
        if fault["type"] == "too_short" and any(
            place == each["loc"][: len(place)] for each in found if each is not fault
        ):
            continue  # pydantic counts only the items that are right
        parts = [
            part for part in place if part != "[key]"
        ]  # pydantic's word for the key of a table, not its value
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
        text, value = fault["msg"], fault["input"]
        if isinstance(inner := fault.get("ctx", {}).get("error"), KeyFaults):
            yield from (f"{key}.{below}: {text}" for below, text in inner.faults)
            continue
        if fault["type"] == "extra_forbidden":
            text = f"there is no key {unknown(str(place[-1]), _keys(model, place[:-1]))}"
        elif fault["type"] == "missing":
            text = "is missing"
        elif fault["type"] == "too_short":
            text = "is empty; name at least one"
        elif fault["type"] == "value_error":
            text = text.removeprefix("Value error, ")
        elif fault["type"] == "tuple_type":
            text = f"should be {_list_of(key, value)}"
        else:
            was = f" (is {_shown(value)})" if isinstance(value, str | int | float) else ""
            text = KINDS.get(fault["type"], text.replace("Input should", "should")) + was
        for line in text.splitlines():
            yield f"{key}: {line}" if key else line


def beyond(value: object, key: str = "") -> Iterator[str]:
    """Say of each number of a document that is none of TOML's, which have 64 bits: Python's have no end."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from beyond(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from beyond(inner, f"{key}[{at}]")
    elif isinstance(value, int) and not -MAX_NUMBER <= value <= MAX_NUMBER:
        yield f"{key}: should be a number of at most 64 bits, as all of TOML are"


def _shown(value: object) -> str:
    """Return a value as it is written in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    is_long = isinstance(value, int) and abs(value) > MAX_NUMBER  # Python writes out no more than 4300 digits
    return "a number of more than 64 bits" if is_long else repr(value)


def _list_of(key: str, value: object) -> str:
    """Say how a list is written that holds this value alone."""
    if isinstance(value, dict):
        return f"a list of tables; write [[{key}]]"
    return f"a list; write [{json.dumps(value)}]" if isinstance(value, str) else "a list"


def _keys(model: type[Table], place: Iterable[int | str]) -> list[str]:
    """Return the keys of the table at a place of the document."""
    for part in place:
        if isinstance(part, str):
            if part not in model.model_fields:
                return []
            inner = table_in(model.model_fields[part].annotation)
            if inner is None:
                return []
            model = inner
    return list(model.model_fields)


def table_in(annotation: object) -> type[Table] | None:
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return annotation
    return next((found for part in get_args(annotation) if (found := table_in(part))), None)
