"""Chat templates: jinja2 in a sandbox, with what Hugging Face's templates expect.

The operator chose the template; the messages come from anyone. So the template may do what it
likes within the sandbox, and what it makes of hostile messages is bounded.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.settings import ConfigError

MAX_PROMPT_CHARS = 32 << 20  # twice the largest body
_SHOWN = 200  # characters of an error

Message = dict[str, Any]


class ChatTemplate:
    """One compiled template. ``variables``: bos_token and its like."""

    def __init__(self, source: str, variables: dict[str, str]) -> None:
        """Raises ConfigError."""
        try:
            self._template = _environment().from_string(source, globals=variables)
        except jinja2.TemplateError as error:
            raise ConfigError(f"chat template: {error}") from None
        # All of it is copied for each prompt: a chain of maps would be walked in Python, in half of the time.
        self._template.globals = dict(self._template.globals)
        self._knows_developer = "developer" in source

    def render(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        now: datetime,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text; ``variables`` of a caller's own never replace these.

        Raises BadRequest naming ``messages``.
        """
        context = {
            **(variables or {}),
            "messages": messages if self._knows_developer else [_as_system(m) for m in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "strftime_now": now.strftime,
        }
        try:
            return self._collect(context)
        except BadRequest:
            raise
        except Exception as error:  # whatever a template makes of someone's messages
            text = f"messages: the chat template refuses them: {str(error)[:_SHOWN]}"
            raise BadRequest(text, "messages") from None

    def _collect(self, context: dict[str, Any]) -> str:
        pieces, size = [], 0
        for piece in self._template.generate(context):
            size += len(piece)
            if size > MAX_PROMPT_CHARS:
                raise BadRequest(f"messages: the prompt exceeds {MAX_PROMPT_CHARS} characters", "messages")
            pieces.append(piece)
        return "".join(pieces)


class _Generation(Extension):
    """``{% generation %}`` marks answers for training; here its body stands for itself."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own escapes HTML, which models have not seen in training.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _as_system(message: Message) -> Message:
    # OpenAI's newer name for the system role, which a template that never mentions it cannot know.
    return {**message, "role": "system"} if message["role"] == "developer" else message
