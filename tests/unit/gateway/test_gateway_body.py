"""Nothing but plain JSON gets in: held against the standard library's parser."""

import json
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warmfleet_proto.errors import BadRequest
from warmfleet_router.gateway import body as module
from warmfleet_router.gateway.body import MAX_DEPTH, check_structure, decode

ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder(dict[str, Any])

KEYS = ["a", "b", 'q"', "\\", '\\"', "é", "a:", "{", "]", ""]
SCALARS = ["null", "true", "-1.5e3", '""', r'"\":"', r'"\\"', r'"\\\""', '"{["', '"a"']


def document(random: Random, depth: int = 0) -> str:
    """An object with some keys given twice, in several spellings."""
    colon = random.choice([":", " \n: "])
    pairs = [spelt(random) + colon + value(random, depth + 1) for _ in range(random.randrange(5))]
    return "{" + ", ".join(pairs) + "}"


def value(random: Random, depth: int) -> str:
    kind = random.randrange(4 if depth < 4 else 2)
    if kind == 2:
        return document(random, depth)
    if kind == 3:
        return "[" + ",".join(value(random, depth + 1) for _ in range(random.randrange(3))) + "]"
    return random.choice(SCALARS)


def spelt(random: Random) -> str:
    key = random.choice(KEYS)
    if key and random.randrange(4) == 0:
        return f'"\\u{ord(key[0]):04x}{json.dumps(key[1:])[1:]}'
    return json.dumps(key, ensure_ascii=False)


def has_duplicates(document: str) -> bool:
    found = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal found
        found = found or len({key for key, _ in pairs}) < len(pairs)

    json.loads(document, object_pairs_hook=look)
    return found


def test_duplicates_are_found_as_the_standard_library_sees_them() -> None:
    found = 0
    for seed in range(3000):
        body = document(Random(seed))
        if has_duplicates(body):
            found += 1
            with pytest.raises(BadRequest, match="given twice"):
                check_structure(body.encode())
        else:
            check_structure(body.encode())
    assert 500 < found < 2500


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=40)
    | st.text(alphabet='{}[]":,\\u01aeE+-.\ud800', max_size=30).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )
)
def test_any_bytes_are_an_object_or_a_bad_request(body: bytes) -> None:
    try:
        decode(b'{"a":' + body + b"}", ANY)
    except BadRequest:
        return
    json.loads(b'{"a":' + body + b"}")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"hello", "body"),
        (b"{", "body"),
        (b'{"a":1', "body"),
        (b'{"a":1}}', "body"),
        (b'{"a":1,}', "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b"\xef\xbb\xbf{}", "body"),
        (b'{"a":NaN}', "body"),
        (b'{"a":-Infinity}', "body"),
        (b'{"a":1e400}', "[...]"),
        (b'{"a":' + b"1" * 4301 + b"}", "[...]"),
        (b'{"a":"\xff"}', "body"),
        (b'{"a":"\\ud800"}', "body"),
        (b'{"a":"\\udc00\\ud800"}', "body"),
        (b'{"a":"\xed\xa0\x80"}', "body"),
        (b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "body"),
        (b'{"a":' + b"[" * 1_000_000, "body"),
        (b'{"a":' + b'{"b":' * 10_000 + b"1" + b"}" * 10_001, "body"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_what_is_not_plain_json(body: bytes, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(body, ANY)
    assert caught.value.field == field
    assert len(str(caught.value)) < 500


def test_depth_is_bounded() -> None:
    check_structure(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(BadRequest, match=f"nested deeper than {MAX_DEPTH}"):
        check_structure(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


def test_strings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STRINGS", 3)
    check_structure(b'["a", "\\"", "c"]')
    with pytest.raises(BadRequest, match="more than 3 strings"):
        check_structure(b'["a", "b", "c", "d"]')
    assert decode(rb'{"a": "\"\"\"\"\"\"\\"}', ANY) == {"a": '""""""\\'}
    with pytest.raises(BadRequest, match="more than 3 strings"):
        decode(b'{"a": ["", "", "", ""]}', ANY)
