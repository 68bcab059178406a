"""Chat messages and tools as OpenAI clients send them, and as chat templates read them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw, Struct
from warmfleet_proto.errors import BadRequest

from warmfleet_router.gateway.body import check_structure, decode

MAX_MESSAGES = 10_000
MAX_TOOLS = 128  # OpenAI's own bound

NULL = Raw(b"null")

_ARGUMENTS = msgspec.json.Decoder(dict[str, Any])


class Part(Struct):
    """One part of a message's content; only text is implemented."""

    type: str
    text: str | None = None


class FunctionCall(Struct, forbid_unknown_fields=True):
    name: str
    arguments: str  # JSON text of an object


class ToolCall(Struct, forbid_unknown_fields=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"
    index: int | None = None


class Message(Struct, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same, as vLLM has it since 2026
    refusal: str | None = None
    annotations: Raw = NULL  # of an answer sent back; changes nothing
    audio: Raw = NULL
    function_call: Raw = NULL


class Function(Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct, forbid_unknown_fields=True):
    function: Function
    type: Literal["function"] = "function"


def for_template(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as the dicts that chat templates expect. Raises BadRequest."""
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def tools_for_template(tools: list[Tool]) -> list[dict[str, Any]]:
    return [{"type": "function", "function": _function(tool.function)} for tool in tools]


def _message(message: Message, path: str) -> dict[str, Any]:
    for field in ("audio", "function_call"):
        if getattr(message, field) != NULL:
            raise BadRequest(f"{path}.{field}: not supported", f"{path}.{field}")
    out: dict[str, Any] = {"role": message.role, "content": _content(message, path)}
    for field in ("name", "tool_call_id"):
        if (value := getattr(message, field)) is not None:
            out[field] = value
    if (thoughts := message.reasoning or message.reasoning_content) is not None:
        out["reasoning"] = out["reasoning_content"] = thoughts  # templates know the one or the other
    if message.tool_calls:
        if message.role != "assistant":
            raise BadRequest(f"{path}.tool_calls: only an assistant calls tools", f"{path}.tool_calls")
        out["tool_calls"] = [
            _tool_call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)
        ]
    return out


def _content(message: Message, path: str) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role != "assistant":
            raise BadRequest(f"{path}.content: required for role {message.role}", f"{path}.content")
        return message.refusal or ""
    return "\n".join(_text(part, f"{path}.content[{i}]") for i, part in enumerate(content))


def _text(part: Part, path: str) -> str:
    if part.type != "text":
        raise BadRequest(
            f"{path}.type: only text parts are supported, got {part.type[:40]!r}", f"{path}.type"
        )
    if part.text is None:
        raise BadRequest(f"{path}.text: required", f"{path}.text")
    return part.text


def _tool_call(call: ToolCall, path: str) -> dict[str, Any]:
    # Templates expect the arguments as an object and print it their own way.
    text = call.function.arguments.encode() or b"{}"
    try:
        arguments = decode(text, _ARGUMENTS)
        check_structure(text)
    except BadRequest as error:
        field = f"{path}.function.arguments"
        raise BadRequest(f"{field}: not the JSON text of an object: {error}", field) from None
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }


def _function(function: Function) -> dict[str, Any]:
    out: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        out["description"] = function.description
    if function.parameters is not None:
        out["parameters"] = function.parameters
    if function.strict is not None:
        out["strict"] = function.strict
    return out
