"""From the bytes of an HTTP body to a typed struct, refusing everything that is not plain JSON.

msgspec decodes straight into the struct: a wrong type, an unknown field, NaN, 1e400, an overlong
integer, a lone surrogate or invalid UTF-8 ends the decoding where it stands. It lets two things
pass that are looked at here: a key given twice, and deep nesting.
"""

import re
from typing import TypeVar

import msgspec
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.limits import PROMPT_BYTES, TOKEN_BYTES

MAX_DEPTH = 64
MAX_STRINGS = 200_000  # keys and strings in one body
# Counted in texts too: within two million tokens of either, nobody writes as many.
MAX_BRACKETS = 500_000  # that open an array or object
MAX_COMMAS = PROMPT_BYTES // TOKEN_BYTES + MAX_STRINGS

T = TypeVar("T")

_PATH = re.compile(r" - at `(?:key in )?\$\.?(.*)`$", re.S)
_FIELD = re.compile(r"^Object (contains unknown|missing required) field `(.*)`$", re.S)
_ESCAPED = re.compile(rb"[\\\x00\x01]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_PLAIN = frozenset((b":", b": ", b",", b", "))  # between two strings, mostly
_SHOWN = 200  # characters of a message that may quote the body


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """``body`` as the decoder's type. Raises BadRequest; its ``field`` is a path: ``messages[0].role``."""
    _check_counts(body)
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except msgspec.DecodeError as error:
        raise BadRequest(f"body: not JSON: {str(error)[:_SHOWN]}", "body") from None
    except UnicodeDecodeError:
        raise BadRequest("body: not UTF-8", "body") from None
    except RecursionError:
        raise BadRequest(f"body: nested deeper than {MAX_DEPTH}", "body") from None


def _check_counts(body: bytes) -> None:
    # A decoder makes an object of each value, and holds the GIL until it has made the last.
    if len(body) <= MAX_STRINGS:
        return  # of neither there can be too many
    if body.count(b"[") + body.count(b"{") > MAX_BRACKETS:
        raise BadRequest(f"body: more than {MAX_BRACKETS} opening brackets", "body")
    if body.count(b",") > MAX_COMMAS:
        raise BadRequest(f"body: more than {MAX_COMMAS} commas", "body")
    # At most the quotes that delimit strings: those within one are escaped.
    if (body.count(b'"') - body.count(rb"\"")) // 2 > MAX_STRINGS:
        raise _too_many_strings()


def check_structure(body: bytes) -> None:
    """Refuses a key given twice in one object, and nesting deeper than MAX_DEPTH; ``body`` is valid JSON."""
    # Escaped backslashes and quotes become control characters, which JSON strings cannot hold:
    # what is left of the quotes delimits strings.
    if b"\\" in body:
        body = body.replace(rb"\\", b"\x00").replace(rb"\"", b"\x01")
    parts = body.split(b'"')
    if len(parts) // 2 > MAX_STRINGS:
        raise _too_many_strings()
    stack: list[set[bytes]] = []
    _walk(parts[0], stack)
    for string, after in zip(parts[1::2], parts[2::2], strict=True):
        if after.lstrip().startswith(b":"):
            _add_key(string, stack[-1])
        _walk(after, stack)


def _walk(structure: bytes, stack: list[set[bytes]]) -> None:
    if structure in _PLAIN:
        return
    for bracket in structure.translate(None, _NOT_BRACKETS):
        if bracket in b"{[":
            stack.append(set())
        else:
            stack.pop()
        if len(stack) > MAX_DEPTH:
            raise BadRequest(f"body: nested deeper than {MAX_DEPTH}", "body")


def _add_key(raw: bytes, keys: set[bytes]) -> None:
    key = raw
    if _ESCAPED.search(raw):  # "\u0061" is "a"
        quoted = b'"%b"' % raw.replace(b"\x00", rb"\\").replace(b"\x01", rb"\"")
        key = msgspec.json.decode(quoted, type=str).encode()
    if key in keys:
        name = key.decode(errors="replace")[:_SHOWN]
        raise BadRequest(f"{name}: given twice", name)
    keys.add(key)


def _too_many_strings() -> BadRequest:
    return BadRequest(f"body: more than {MAX_STRINGS} strings", "body")


def _invalid(message: str) -> BadRequest:
    path, reason = "", message
    if at := _PATH.search(message):
        path, reason = at.group(1), message[: at.start()]
    if found := _FIELD.match(reason):
        path = f"{path}.{found.group(2)}" if path else found.group(2)
        reason = "unknown field" if found.group(1) == "contains unknown" else "required"
    path = path[:_SHOWN] or "body"
    reason = reason.replace("`", "").replace(" | null", "")[:_SHOWN]
    return BadRequest(f"{path}: {reason[0].lower()}{reason[1:]}", path)
