"""Templates: what transformers renders, and bounds on what hostile messages make of them."""

import json
from datetime import datetime

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template
from warmfleet_proto.errors import BadRequest
from warmfleet_proto.settings import ConfigError
from warmfleet_router.prompt import template as module
from warmfleet_router.prompt.template import ChatTemplate

NOW = datetime(2031, 5, 7)
CHATML = (
    "{% for message in messages %}\n"
    "    {%- if loop.index0 > 9 %}{% break %}{% endif %}\n"
    "<|im_start|>{{ message.role }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "  {% endfor %}\n"
    "{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{{ bos_token }}{% set ns = namespace(n=0) %}{% if tools is not none %}{% for tool in tools %}"
    "{{ tool | tojson }}|{{ tool.function | tojson(indent=2) }}"
    "{% set ns.n = ns.n + 1 %}{% endfor %}{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}{% generation %}"
    "{{ m.tool_calls[0].function.arguments | tojson }}"
    "{% endgeneration %}{% else %}{{ m.role }}: {{ m.content }}{% endif %}{% endfor %}{{ ns.n }}"
)
MESSAGES = [
    {"role": "system", "content": " be <brief> & 'kind' "},
    {"role": "user", "content": '日本 "quoted"\n'},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": "<é>", "y": [1, None, True]}}}],
    },
    {"role": "tool", "content": "{{ 1 + 1 }}"},
]
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "it's", "parameters": {"type": "object"}},
}


def render(source: str, messages: list[dict], tools: list[dict] | None = None, **variables: str) -> str:
    return ChatTemplate(source, variables).render(messages, tools, True, NOW)


@pytest.mark.parametrize("source", [CHATML, TOOLS])
@pytest.mark.parametrize("tools", [None, [TOOL, TOOL]])
def test_renders_as_transformers_does(source: str, tools: list[dict] | None) -> None:
    theirs, _ = render_jinja_template(
        [MESSAGES], tools=tools, chat_template=source, add_generation_prompt=True, bos_token="<s>"
    )
    assert render(source, MESSAGES, tools, bos_token="<s>") == theirs[0]


def test_today_is_passed_in() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}", []) == "07 May 2031"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[7].content }}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 1 // 0 }}",
    ],
)
def test_what_a_template_cannot_do_is_the_callers_mistake(source: str) -> None:
    with pytest.raises(BadRequest, match="messages: the chat template refuses them") as caught:
        render(source, MESSAGES)
    assert caught.value.field == "messages"
    assert len(str(caught.value)) < 300


def test_rendered_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROMPT_CHARS", 1000)
    twice = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    assert len(render(twice, [{"role": "user", "content": "x" * 500}])) == 1000
    with pytest.raises(BadRequest, match="exceeds 1000 characters"):
        render(twice, [{"role": "user", "content": "x" * 501}])


def test_broken_template_refuses_to_start() -> None:
    with pytest.raises(ConfigError, match="chat template"):
        ChatTemplate("{% if %}", {})


def test_developer_is_system_where_the_template_knows_none() -> None:
    messages = [{"role": "developer", "content": "x"}]
    assert render("{{ messages[0].role }}", messages) == "system"
    assert render("{# developer #}{{ messages[0].role }}", messages) == "developer"


def test_html_is_not_escaped_and_json_is_plain() -> None:
    assert json.loads(render("{{ messages | tojson }}", MESSAGES)) == MESSAGES
    assert "<é>" in render("{{ messages | tojson }}", MESSAGES)
    assert jinja2.__version__ >= "3.1.6"  # older sandboxes leak
