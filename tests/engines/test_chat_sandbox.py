"""A chat template is a stranger's program: it ends soon, builds little, and says the same on every run."""

# ruff: noqa: E501 (templates of models have long lines)
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

jinja2 = pytest.importorskip("jinja2")

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from heredity.core.errors import EngineFailure, Refused
from heredity.core.records import Message, Request, Tool, ToolCall
from heredity.engines.chat import DAY, Template, check_template
from heredity.lineage.store import Store
from tests.support.clock import computing_within
from tests.support.errors import raises
from tests.support.processes import leaving_no_thread

HELLO = Request(0, (Message("user", "hi"),))
NESTED = "{% set n = namespace(a=['x']) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}"
DOUBLED = "{% set n = namespace(a=messages) %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}"
# Half a million characters, for a sixteenth of the steps each time.
LONG = "{% set n = namespace(a='a') %}{% for i in range(19) %}{% set n.a = n.a ~ n.a %}{% endfor %}{% set a = n.a %}"
ENDLESS = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) if false %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{{ range(100000) | list | length }}{% endfor %}",
    "{% for a in range(100000) %}{{ range(100000) | select('odd') | select('even') | list }}{% endfor %}",
    "{% for a in range(100000) %}{{ range(100000) | sum }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in [60] recursive %}{{ loop([x - 1, x - 1]) if x }}{% endfor %}",
    "{{ 'a' * 10000000000 }}",
    "{{ ([1] * 10000000000) | length }}",
    "{{ 99999 ** 99999999 }}",
    "{{ 'a' | center(10000000000) }}",
    "{{ 'a'.ljust(10000000000) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "{{ ('{0}' * 10000).format('x' * 100000) }}",
    "{{ ('%(a)s' * 10000) % {'a': 'x' * 100000} }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000) | join('b' * 100000) }}",
    "{{ ('b' * 100000).join('a' * 100000) }}",
    "{{ (1).to_bytes(10000000000, 'big') }}",
    "{{ 1 | round(-1000000000) }}",
    "{{ [1] | batch(1000000000, 'x') | list }}",
    "{{ [1] | slice(1000000000) | list }}",
    "{{ messages | tojson(indent=1000000000) }}",
    "{{ 'a\nb' | indent(1000000000) }}",
    "{{ strftime_now('%1000000000d') }}",
    NESTED + "{{ n.a }}",
    NESTED + "{{ n.a == n.a[0] }}",
    NESTED + "{{ n.a | tojson }}",
    NESTED + "{{ 'x' ~ n.a }}",
    DOUBLED,
    DOUBLED.replace("+", "~"),
    "{{ 'x' }}" * 100_000,
    "{% for a in range(100000) %}{{ (('x\n' * 99) | indent(-9999)) }}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100) %}{{ 0 | heredity_charge(-99) }}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100) %}{{ 'x' * -1000000 }}{% endfor %}{% endfor %}",
    "{{ '{0[0]}{1.role}'.format(messages, messages[0]) }}",
    "{{ '{a}'.format_map({'a': 1}) }}",
    "{{ [1, 2] | pprint }}",
    "{{ '%10000000000d' is odd }}",
    "{{ '%10000000000d' is divisibleby(3) }}",
    "{{ '%(a(b))10000000000d' % {'a(b)': 1} }}",
    "{{ '%.00000000010000000000d' % 1 }}",
    "{{ '{:.00000000010000000000f}'.format(1.5) }}",
    "{{ '{:.٠٠٠٠٠٠٠٠٠10000000000f}'.format(1.5) }}",
    NESTED + "{{ n.a is lower }}",
    NESTED.replace("[n.a, n.a]", "(n.a, n.a)").replace("['x']", "('x',)") + "{{ n.a is filter }}",
    "{{ ('a ' * 60000) | indent('          ' * 800) | length }}",
    "{% set n = ('f' * 99999) | int(0, 16) %}{% for i in range(60000) %}{% set x = '%x' % n %}{% endfor %}",
    "{{ range(('9' * 1000) | int, ('9' * 1000) | int + 90000) | join | length }}",
    "{{ range(0, 2305843009213693951 * 30000, 2305843009213693951) | unique | list | length }}",  # one hash
    LONG + "{{ a.strip(a.replace('a', 'b') ~ 'a') }}",
    LONG + "{{ a | trim(a.replace('a', 'b') ~ 'a') }}",
    LONG + "{{ a.rfind('ab' ~ a[:200000]) }}",
    "{{ range(60000) | map(attribute='a" + ".a" * 20000 + "', default=0) | list | length }}",
    "{{ range(60000) | sort(false, false, 'a" + ",a" * 20000 + "') | length }}",
    "{% macro m() %}{{ varargs | length }}{% endmacro %}{% set a = range(60000) | list %}{% for i in range(9000) %}{{ m(*a) }}{% endfor %}",
]
UNSTEADY = [
    "{{ [1, 2] | random }}",
    "{{ [[1, 2]] | map('random') | list }}",
    "{{ lipsum(1) }}",
    "{{ range }}",
    "{{ 'x'.upper }}",
    "{{ 'a' ~ range }}",
    "{{ [range] | string }}",
    "{{ [range] | join }}",
    "{{ '%s' % range }}",
    "{{ '{}'.format(range) }}",
    "{{ messages | map('string') }}",
    "{{ cycler(1, 2) }}",
    "{{ raise_exception(range) }}",
    "{{ strftime_now('%s') }}",
    "{{ {'a': 1, 'b': 2, 'c': 3}.keys() - [] }}",  # a set
    "{% for k in {'a': 1, 'b': 2}.items() - [] %}{{ k }}{% endfor %}",
]


@pytest.mark.slow
@pytest.mark.parametrize("source", ENDLESS, ids=range(len(ENDLESS)))
def test_a_template_without_end_is_stopped_soon_and_leaves_no_thread(source: str) -> None:
    with leaving_no_thread(), computing_within(10), raises(EngineFailure, "engine-failure"):
        Template(source).render(HELLO)
    with raises(Refused, "refused", mentions=["the model"]):
        check_template(source, "the model")


def test_too_little_memory_is_no_refusal_of_the_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server would tell its caller that the messages are wrong."""

    def full(*given: object) -> str:
        raise MemoryError

    monkeypatch.setattr(Template, "apply", full)
    with raises(EngineFailure, "engine-failure"):
        Template("{{ messages }}").render(HELLO)


def test_it_is_stopped_at_the_same_step_every_time() -> None:
    said = set()
    for _ in range(3):
        with pytest.raises(EngineFailure) as stopped:
            Template(ENDLESS[0]).render(HELLO)
        said.add(str(stopped.value))
    assert len(said) == 1


@pytest.mark.parametrize("source", UNSTEADY)
def test_a_text_that_could_differ_from_run_to_run_is_refused(source: str) -> None:
    with raises(EngineFailure, "engine-failure"):
        Template(source).render(HELLO)
    with raises(Refused, "refused"):
        check_template(source, "the model")


def test_a_hostile_template_is_refused_before_it_is_recorded(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.support.tiny_models import make_model

    folder, store = make_model(tmp_path / "model", "llama"), Store(tmp_path / "store")
    (folder / "chat_template.jinja").write_text(ENDLESS[0])
    with raises(Refused, "refused"):
        store.pull(str(folder))
    assert not list(store.models())


# In the manner of ChatML, Llama 3, Qwen 3, Gemma and Mistral: their constructs, not their texts.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n\\n" }}
{%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- elif message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and
        not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}{%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {{- tool_call.function.name ~ ': ' }}
            {%- if tool_call.function.arguments is string %}{{- tool_call.function.arguments }}
            {%- else %}{{- tool_call.function.arguments | tojson }}{%- endif %}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
GEMMA = """{{ bos_token }}{%- macro shown(properties) -%}
{%- for key, value in properties | dictsort %}{{ key }}:{{ value.description | upper }}{% if not loop.last %},{% endif %}
{%- endfor %}{%- endmacro -%}
{%- for tool in tools or [] %}{{ shown(tool['function']['parameters']['properties']) }}{%- endfor %}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}{%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}{%- endif -%}{{ '<end_of_turn>\n' }}
{%- endfor -%}{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}"""
MISTRAL = """{%- set loop_messages = messages[1:] if messages[0]["role"] == "system" else messages %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0, kept=[]) %}
{%- for message in loop_messages | rejectattr("role", "equalto", "tool") %}
    {%- set ns.index = ns.index + 1 %}{%- set ns.kept = ns.kept + [message] %}
    {%- if message.content == "skipped" %}{%- continue %}{%- endif %}
{%- endfor %}
{{- bos_token }}{{- messages[0].content if messages[0].role == "system" else "" }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" and tools is not none and (message == user_messages[-1]) %}
        {{- "[AVAILABLE_TOOLS] [" }}
        {%- for tool in tools %}{%- for key, val in tool.function.items() if key != "return" %}
            {{- '"' + key + '": ' + (val if val is string else val|tojson) }}{{- ", " if not loop.last else "" }}
        {%- endfor %}{%- endfor %}{{- "][/AVAILABLE_TOOLS]" }}
    {%- endif %}
    {%- if message.tool_calls is defined %}
        {%- for call in message.tool_calls %}{%- set out = call.function|tojson %}{{- out[:-1] }}{%- endfor %}
    {%- else %}{{- "[INST] " ~ message["content"] | string ~ "[/INST]" }}{%- endif %}
{%- endfor %}{{- ns.index }}{{- ns.kept | map(attribute="role") | join(", ") }}{{- eos_token }}"""
REAL = {"chatml": CHATML, "llama": LLAMA, "qwen": QWEN, "gemma": GEMMA, "mistral": MISTRAL}
TALKS = (
    (Message("user", "hi"),),
    (
        Message("system", " be <b>brief</b>\n"),
        Message("user", "hé  \u2028 \U0001f600"),
        Message("assistant", "<think>\nhm\n</think>\n\nyes"),
        Message("user", "so?"),
    ),
    (
        Message("user", "pay"),
        Message("assistant", "Sure.", tool_calls=(ToolCall("pay", {"to": "Zoë", "n": [1, None, 2.5]}),)),
        Message("tool", "done"),
    ),
    (Message("user", "long " * 20_000), *(Message("assistant", "x"), Message("user", "y")) * 400),
)
TOOLS = (Tool("pay", "Pays.", {"to": "who", "by": "when"}), Tool("find", 'Finds "x".', {"q": "what"}))


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("tools", [(), TOOLS], ids=["plain", "tools"])
@pytest.mark.parametrize("number", range(len(TALKS)))
def test_templates_of_models_render_as_in_plain_jinja(
    name: str, tools: tuple[Tool, ...], number: int
) -> None:
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    plain.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    plain.globals["strftime_now"] = DAY.strftime
    request = Request(0, TALKS[number], tools=tools)
    expected = plain.from_string(REAL[name]).render(
        messages=[
            {"role": m.role, "content": m.content}
            | (
                {
                    "tool_calls": [
                        {"type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                        for c in m.tool_calls
                    ]
                }
                if m.tool_calls
                else {}
            )
            for m in request.messages
        ],
        tools=[
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": {
                        "type": "object",
                        "properties": {
                            key: {"type": "string", "description": what}
                            for key, what in tool.parameters.items()
                        },
                        "required": list(tool.parameters),
                    },
                },
            }
            for tool in tools
        ]
        or None,
        documents=None,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )
    assert Template(REAL[name], "<s>", "</s>").render(request) == expected
    check_template(REAL[name], "the model")


# Each ended the process by a signal: closing nested generators, or hashing nested tuples, overflows the C stack.
_RENDER = """
import sys
from heredity.core.errors import EngineFailure
from heredity.core.records import Message, Request
from heredity.engines.chat import Template
try:
    print(len(Template(sys.argv[1]).render(Request(0, (Message("user", "x" * int(sys.argv[2])),)))))
except EngineFailure as error:
    print(error.code)
"""
LAZY = (
    "{%% set n = namespace(a=[1]) %%}{%% for i in range(60000) %%}{%% set n.a = n.a | %s %%}{%% endfor %%}"
    "{{ n.a | join }}"
)
DEEP_TUPLE = (
    "{% set n = namespace(a=(1,)) %}{% for i in range(9) %}{% for j in range(100000) %}{% set n.a = (n.a,) %}"
    "{% endfor %}{% endfor %}"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "n_characters", "result"),
    [
        (LAZY % "map('string')", 200_000, "1"),
        (LAZY % "select", 200_000, "1"),
        (DEEP_TUPLE + "{{ {n.a: 1} | length }}", 4_000_000, "engine-failure"),
    ],
    ids=["map", "select", "hash"],
)
def test_values_nested_deep_do_not_end_the_process(source: str, n_characters: int, result: str) -> None:
    command = [sys.executable, "-c", _RENDER, source, str(n_characters)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, result)


def test_a_filter_gives_an_iterator_as_in_plain_jinja() -> None:
    source = "{% set a = [] | select %}{{ 'true' if a }} {% set b = [1, 2] | map('string') %}{{ b | join }}{{ b | join }}"
    assert Template(source).render(HELLO) == "true 12"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100) %}{% for j in range(100000) %}{{ 'x' in loop }}{% endfor %}{% endfor %}",
        "{% for j in ['ab'] * 9 %}{{ ''.join(loop) }}{% endfor %}",
        "{% for j in ['ab'] * 9 %}{{ dict(loop) | length }}{% endfor %}",
    ],
)
def test_a_loop_is_not_run_by_an_operation_without_a_price(source: str) -> None:
    with raises(EngineFailure, "engine-failure"):
        Template(source).render(HELLO)
