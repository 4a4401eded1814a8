"""Strict reading of JSON and YAML from outside: what is ambiguous is refused, never guessed.

JSON (RFC 8259, I-JSON limits of RFC 7493): UTF-8 without BOM, no duplicate keys, no NaN or Infinity, no floats, integers
within +-(2^53-1), bounded size and depth. YAML: the JSON data model only, the scalars of YAML 1.2 cut down to
`true false null` and plain decimal integers (`no`, `on`, `0600`, `12:30:00`, `1.5` stay strings); no anchors, aliases, tags
or second document. Both end in `DocumentError` with one line that names the place.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from compliance_agent.errors import DocumentError
from compliance_agent.facts import LARGEST_INT

MAX_BYTES = 1_048_576
MAX_DEPTH = 16

_SURROGATE = re.compile("[\ud800-\udfff]")
_INT = re.compile(r"0|-?[1-9][0-9]{0,15}")
_YAML_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "~": None, "": None}


def _text(raw: bytes, limit_bytes: int) -> str:
    if len(raw) > limit_bytes:
        raise DocumentError(f"document is larger than {limit_bytes} bytes", code="too_large")
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise DocumentError("document begins with a byte order mark; expected plain UTF-8", code="not_utf8")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError(f"byte {error.start} is not UTF-8", code="not_utf8") from error
    if "\0" in text:
        raise DocumentError("document holds a NUL character", code="not_text")
    return text


def _integer(digits: str) -> int:
    if digits == "-0":
        raise DocumentError("-0 is not an integer here; expected 0", code="bad_number")
    if len(digits) > 17 or abs(int(digits)) > LARGEST_INT:
        raise DocumentError("an integer is outside +-(2^53-1)", code="bad_number")
    return int(digits)


def _no_float(_digits: str) -> Any:
    raise DocumentError("a number has a fraction or exponent; only integers are allowed", code="bad_number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DocumentError(f"key {twice[:40]!r} stands twice", code="duplicate_key")
    return mapping


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_no_float, parse_constant=_no_float, strict=True
)


def read_json(raw: bytes, *, limit_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a JSON document.

    Raises:
        DocumentError: not strict JSON within the limits; `code` says which rule.
    """
    text = _text(raw, limit_bytes)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise DocumentError(f"line {error.lineno} column {error.colno}: {error.msg}", code="not_json") from error
    except RecursionError as error:
        raise DocumentError(f"nested deeper than {max_depth} levels", code="too_deep") from error
    _check_tree(value, max_depth)
    return value


def _check_tree(value: Any, depth: int) -> None:
    if depth == 0 and isinstance(value, dict | list):
        raise DocumentError("nested too deeply", code="too_deep")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_string(key)
            _check_tree(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_tree(item, depth - 1)
    elif isinstance(value, str):
        _check_string(value)


def _check_string(value: str) -> None:
    if not value.isascii() and _SURROGATE.search(value):
        raise DocumentError("a string holds a lone surrogate", code="not_utf8")


def _scalar(event: yaml.ScalarEvent) -> Any:
    if not event.implicit[0]:
        return event.value
    if event.value in _YAML_WORDS:
        return _YAML_WORDS[event.value]
    if _INT.fullmatch(event.value):
        return _integer(event.value)
    return event.value


def read_yaml(raw: bytes, *, limit_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """The value of a YAML document; an empty document is None.

    Raises:
        DocumentError: not the narrow YAML described above; the message names the line.
    """
    text = _text(raw, limit_bytes)
    try:
        return _build(text, max_depth)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
        if "nesting depth" in problem:  # libyaml's own limit, which is far beyond ours, comes before the first event
            raise DocumentError(f"{where}nested deeper than {max_depth} levels", code="too_deep") from error
        raise DocumentError(f"{where}{problem}", code="not_yaml") from error


def _build(text: str, max_depth: int) -> Any:  # noqa: PLR0912  one branch for each kind of event
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    root: list[Any] = []
    stack: list[Any] = [root]
    keys: list[Any] = [None]
    for event in yaml.parse(text, Loader=loader):
        line = event.start_mark.line + 1 if event.start_mark is not None else 0
        if isinstance(event, yaml.DocumentStartEvent) and root:
            raise DocumentError(f"line {line}: a second document begins", code="not_yaml")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise DocumentError(f"line {line}: anchors and aliases are not allowed", code="not_yaml")
        if getattr(event, "tag", None) not in (None, "!"):
            raise DocumentError(f"line {line}: tags are not allowed", code="not_yaml")
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            stack.pop()
            keys.pop()
            continue
        if isinstance(event, yaml.ScalarEvent):
            value: Any = _scalar(event)
        elif isinstance(event, yaml.MappingStartEvent):
            value = {}
        elif isinstance(event, yaml.SequenceStartEvent):
            value = []
        else:
            continue
        parent = stack[-1]
        if isinstance(parent, list):
            parent.append(value)
        elif keys[-1] is None:
            if not isinstance(value, str):
                raise DocumentError(f"line {line}: a key must be a word", code="not_yaml")
            if value in parent:
                raise DocumentError(f"line {line}: key {value[:40]!r} stands twice", code="duplicate_key")
            keys[-1] = value
            continue
        else:
            parent[keys[-1]] = value
            keys[-1] = None
        if isinstance(value, dict | list):
            stack.append(value)
            keys.append(None)
            if len(stack) > max_depth + 1:
                raise DocumentError(f"line {line}: nested deeper than {max_depth} levels", code="too_deep")
    return root[0] if root else None
