"""JSON objects of a file one by one: a JSON array, several, or JSONL, local or gs://."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from jvr1.errors import UserError, shown

_CHUNK = 1 << 22
_LONGEST_RECORD = 1 << 26


def json_values(file: str | Path) -> Iterator[Any]:
    """The JSON values of a file one by one, so that the file is never in memory as a whole. Raises UserError."""
    try:
        with epath.Path(file).open("rb") as binary, io.TextIOWrapper(binary, encoding="utf-8-sig") as stream:
            start = stream.read(1)
            while start and start.isspace():
                start = stream.read(1)
            if start == "[":
                yield from _array_items(stream, file)
            elif start == "{":
                yield from _lines(start, stream, file)
            elif start:
                raise UserError(f"{file} is neither a JSON array nor JSONL: it begins with {start!r}")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: {error.reason}") from None
    except IsADirectoryError:
        raise UserError(f"{file} is a folder; name a .json or .jsonl file") from None
    except FileNotFoundError:
        raise UserError(f"{file} does not exist") from None
    except PermissionError:
        raise UserError(f"{file} may not be read") from None


def _integer(digits: str) -> int | float:
    """A whole number; one of thousands of digits, which Python does not read, becomes infinite: no field takes that."""
    return int(digits) if len(digits) < _MOST_DIGITS else math.copysign(math.inf, -1 if digits[0] == "-" else 1)


_MOST_DIGITS = 1000
_DECODER = json.JSONDecoder(parse_int=_integer)


def _lines(start: str, stream: io.TextIOBase, file: str | Path) -> Iterator[Any]:
    within: str | None = None
    first: list[Any] = []  # held back while it may be the whole file, with the records within
    for number, line in enumerate(stream, 1):
        line, start = start + line, ""
        if not line.strip():
            continue
        try:
            item = _DECODER.decode(line)
        except (json.JSONDecodeError, RecursionError) as error:
            wrapped = number == 1 and _list_within(line + stream.read(_LONGEST_RECORD))
            raise (
                _wrapper(file, wrapped)
                if wrapped
                else UserError(f"{file}: line {number} is not a JSON object: {error}")
            ) from None
        if number == 1 and (within := _list_within(line)):
            first = [item]
            continue
        yield from first
        first = []
        yield item
    if first and within:
        raise _wrapper(file, within)


def _list_within(text: str) -> str | None:
    """The field of one JSON object that holds a list of records; None where the text is anything else."""
    try:
        value = _DECODER.decode(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(value, dict) or "problem" in value:
        return None
    return next(
        (k for k, v in value.items() if isinstance(v, list) and v and all(isinstance(x, dict) for x in v)), None
    )


def _wrapper(file: str | Path, field: str) -> UserError:
    return UserError(
        f"{file} is one object that holds its records in {shown(field)}; the file must be that list itself"
    )


def _array_items(stream: io.TextIOBase, file: str | Path) -> Iterator[Any]:
    """The items of a JSON array whose '[' has been read, and of those that follow it."""
    buffer, at, index, opened = "", 0, 0, True
    while True:
        try:
            at = _skip(buffer, at)
            if not (opened and buffer[at] == "]"):
                item, end = _DECODER.raw_decode(buffer, at)
                end = _skip(buffer, end)
                if buffer[end] not in ",]":
                    raise json.JSONDecodeError("expected ',' or ']'", buffer, end)
                yield item
                index, opened, at = index + 1, False, end
            if buffer[at] == "]":
                rest = _after_array(stream, buffer[at + 1 :], file, index)
                if rest is None:
                    return
                buffer, at, opened = rest, 0, True
            else:
                at += 1
        except (IndexError, json.JSONDecodeError, RecursionError) as error:
            more = stream.read(_CHUNK) if len(buffer) - at < _LONGEST_RECORD else ""
            if not more:
                reason = "the file ends too early" if isinstance(error, IndexError) else str(error)
                raise UserError(f"{file}: record {index} is not valid JSON: {reason}") from None
            buffer, at = buffer[at:] + more, 0


def _after_array(stream: io.TextIOBase, rest: str, file: str | Path, index: int) -> str | None:
    """What follows the '[' of a further array, None at the file's end. Raises UserError for anything else."""
    while not (left := rest.lstrip()):
        rest = stream.read(_CHUNK)
        if not rest:
            return None
    if left[0] != "[":
        raise UserError(
            f"{file}: {left[0]!r} follows the array that ends with record {index - 1}; one array is expected"
        )
    return left[1:]


def _skip(text: str, at: int) -> int:
    while text[at].isspace():
        at += 1
    return at
