"""Protobuf messages as plain values and back: what is set, by the contract's own names."""

from base64 import b64decode
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


def plain(message: Message) -> dict[str, Any]:
    return {field.name: _plain(value) for field, value in message.ListFields()}


def message_of(kind: type[M], values: dict[str, Any]) -> M:
    """Raises ValueError or TypeError for values that do not fit. Names that it does not know are left out."""
    fields = kind.DESCRIPTOR.fields_by_name
    known = {name: value for name, value in values.items() if name in fields}
    packed = [name for name in known if fields[name].type == FieldDescriptor.TYPE_BYTES]
    return kind(**known | {name: binary(known[name]) for name in packed})


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return plain(value)
    if isinstance(value, int | float | str | bytes):
        return value
    return [_plain(item) for item in value]


def binary(value: Any) -> Any:
    """What JSON wrote in base64."""
    return b64decode(value) if isinstance(value, str) else value
