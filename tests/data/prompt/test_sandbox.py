"""Chat templates without bound end soon; all others render as in transformers."""

import threading
import time

import pytest
from support.hf_checkpoints import CHATML, INST, TOKENIZERS, USER_COLON, UTTERANCES

from vlvm_jax.data.prompt import sandbox
from vlvm_jax.data.prompt.checkpoint_template import HFTemplate
from vlvm_jax.data.record import Turn
from vlvm_jax.errors import InputError
from vlvm_jax.families import smolvlm

TOKENIZER = TOKENIZERS["byte_level"]()
TEXTS = [{"role": "system", "content": " Be [kind]. "}, {"role": "user", "content": "why <é>?\n"}]
PARTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}, {"type": "video"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
]
FEATURES = """\
{%- macro show(message, mark='*') -%}
  {{ mark ~ message.role | title ~ ':' }} {{ caller() if caller else '' }}
{%- endmacro -%}
{%- set ns = namespace(seen=0, last='', found=[]) -%}
{{ bos_token or 'none' }}{{ pad_token is defined }}{{ tools is none }}{{ documents is defined }}
{% for message in messages if message.role != 'tool' %}
  {%- set ns.seen = ns.seen + 1 %}{% set ns.found = ns.found + [message.role, loop.index] %}
  {%- if loop.first %}first {% elif loop.last %}last {% endif %}{{ loop.length }}{{ loop.cycle('a', 'b') }}
  {{- loop.previtem.role if loop.previtem is defined else '-' }}{{ loop.revindex }}{{ loop.changed(message.role) }}
  {%- if message['content'] is string %}{{ message.content | trim | replace('y', 'Y') | upper }}
  {%- else %}{% for part in message.content %}{% if part.type == 'video' %}{% continue %}{% endif %}
  {{- part.get('text', '<' + part['type'] + '>') }}{% endfor %}{% endif %}
  {%- generation %} {{ message.content | tojson }}{% endgeneration %}
  {%- call show(message) %}called{% endcall %}{{ message.items() | list | length }}
{% else %}nothing{% endfor %}
{%- for tree in [[1, [2, [3, []]]], [4, []]] recursive %}
  {{- tree[0] if tree else '' }}{{ loop([tree[1]]) if tree else '' }}
{%- endfor %}
{{ ns.seen }} {{ ns.found | join(', ') }} {{ (messages | map(attribute='role') | list)[::-1] }} {{ 'abc'[1:] * 3 }}
{{ messages | selectattr('role', 'equalto', 'user') | list | count }} {{ {'b': 1, 'a': [2]} | dictsort }} {{ 7 // 2 }}
{%- set block %}a block of {{ messages | length }}{% endset %}{{ block | indent(4) }} {{ '%s-%03d' | format('x', 7) }}
{{ 'a b c'.split(' ') }} {{ '{}:{:>4}'.format('x', 3) }} {{ '-'.join(['a', 'b']) }} {{ 'x'.center(5, '.') }}
{{ 2 ** 10 }}
{{ dict(a=1) | tojson(indent=2) }} {{ range(3) | list }} {{ none }} {{ nothing_here }} {{ [1, 2] in [[1, 2]] }}
{%- for number in range(10) %}{% if number == 3 %}{% break %}{% endif %}{{ number }}{% endfor %}
{%- if add_generation_prompt %} assistant:{% endif %}"""


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("messages", [TEXTS, PARTS, TEXTS + PARTS, TEXTS * 500])
@pytest.mark.parametrize("template", [CHATML, INST, USER_COLON, UTTERANCES, smolvlm.Family().clip_template, FEATURES])
def test_it_renders_as_transformers_does(template, messages, add):
    def rendered(render):
        try:
            return render()
        except Exception as error:
            return type(error).__name__

    variables = {**TOKENIZER.special_tokens_map, "tools": None, "documents": None}
    ours = rendered(lambda: sandbox.render(template, **variables, messages=messages, add_generation_prompt=add))
    theirs = rendered(
        lambda: TOKENIZER.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=add
        )
    )
    assert ours == theirs
    assert template is not FEATURES or "1024" in ours  # it did not fail in both


LOOP = "{% for a in range(90000) %}"
END = "{% endfor %}"
DOUBLED = "{% set ns = namespace(x=START) %}{% for i in range(64) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
BOMBS = {
    "loops": LOOP * 3 + END * 3,
    "loops that write": f"{LOOP}{{% set x %}}{LOOP}{'data' * 1000}{END}{{% endset %}}{END}",
    "a recursive loop": "{% for a in range(90000) recursive %}{{ loop(range(90000)) if loop.depth < 3 }}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "a text times a number": "{{ 'a' * 10 ** 11 }}",
    "a constant": "{{ 'a' * 100000000000 }}",
    "a list times a number": "{{ [0] * 10 ** 10 }}",
    "lists times a number": "{% set a = [[0] * 90000] %}{{ a * 90000 }}",
    "a text doubled": DOUBLED.replace("START", "'ab'").replace("STEP", "ns.x ~ ns.x"),
    "a text added": DOUBLED.replace("START", "'ab'").replace("STEP", "ns.x + ns.x"),
    "a list added": DOUBLED.replace("START", "[1]").replace("STEP", "ns.x + ns.x"),
    "lists in lists": DOUBLED.replace("START", "[1]").replace("STEP", "[ns.x, ns.x]"),
    "objects in objects": DOUBLED.replace("START", "[1]").replace("STEP", "{'a': ns.x, 'b': ns.x}"),
    "made by dict": DOUBLED.replace("START", "[1]").replace("STEP", "dict(a=ns.x, b=ns.x)"),
    "deep lists": DOUBLED.replace("64", "90000").replace("START", "[]").replace("STEP", "[ns.x]"),
    "a number squared": DOUBLED.replace("START", "3").replace("STEP", "ns.x * ns.x"),
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a replacement": DOUBLED.replace("START", "'aa'").replace("STEP", "ns.x.replace('a', ns.x)"),
    "a replacing filter": DOUBLED.replace("START", "'aa'").replace("STEP", "ns.x | replace('a', ns.x)"),
    "an empty replacement": DOUBLED.replace("START", "'aa'").replace("STEP", "ns.x | replace('', ns.x)"),
    "a joined text": DOUBLED.replace("START", "'aa'").replace("STEP", "ns.x | join(ns.x)"),
    "a joining method": DOUBLED.replace("START", "'aa'").replace("STEP", "ns.x.join(ns.x)"),
    "a width": "{{ '%100000000000d' % 1 }}",
    "a given width": "{{ '%*d' % (100000000000, 1) }}",
    "a formatted width": "{{ '{:100000000000}'.format(1) }}",
    "a nested width": "{{ '{:{w}}'.format(1, w=100000000000) }}",
    "a width of the filter": "{{ '%100000000000d' | format(1) }}",
    "a centre": "{{ 'a' | center(100000000000) }}",
    "a centring method": "{{ 'a'.center(100000000000) }}",
    "zeros": "{{ 'a'.zfill(100000000000) }}",
    "tabs": "{{ ('\\t' * 1000000).expandtabs(1000000) }}",
    "an indent": "{{ ('\\n' * 1000000) | indent(1000000, true, true) }}",
    "an indent of JSON": "{{ [[1, 2]] | tojson(indent=10 ** 11) }}",
    "slices": "{{ [1] | slice(10 ** 10) | list }}",
    "a batch": "{{ [1] | batch(10 ** 10, 0) | list }}",
    "bytes": "{{ (1).to_bytes(10 ** 11, 'big') }}",
    "words": "{{ lipsum(10 ** 9) }}",
    "sums of lists": "{{ ([[1] * 1000] * 90) | map('list') | list | sum(start=[]) }}",
    "lists that are kept": LOOP + "{% set x = range(99999) | list %}" + END,
    "texts that are made": LOOP + "{% set x = 'a' * 3999999 %}" + END,
    "texts that are compared": "{% set x = 'a' * 3999999 %}" + LOOP * 2 + "{% set y = x == 'a' * 3999999 %}" + END * 2,
    "texts that are searched": "{% set x = 'a' * 3999999 %}" + LOOP * 2 + "{% set y = 'b' in x %}" + END * 2,
    "a long source": "a" * 300_000,
    "many brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "many lists": "{{ " + "[" * 5_000 + "]" * 5_000 + " }}",
    "many blocks": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "a translation": "{% set x = 'a' * 1000000 %}{{ x.translate({97: x}) }}",
    "letters": "{% set x = 'a' * 3999999 %}{% for c in x %}{{ c }}{% endfor %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_has_no_bound_is_refused(name, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 1.0)
    started = time.thread_time()
    template = HFTemplate(TOKENIZER, BOMBS[name], where="chat_template.jinja")
    with pytest.raises(InputError, match=r"chat_template.jinja: the chat template (takes more than|fails)"):
        template.conversation([Turn("what ?", "that")], [])
    assert time.thread_time() - started < 2 * sandbox.SECONDS
    again = time.thread_time()
    with pytest.raises(InputError):
        template.conversation([Turn("what ?", "that")], [])
    assert time.thread_time() - again < sandbox.SECONDS


def test_threads_that_render_first_at_once(monkeypatch):
    """They share one environment. Two would each know the budget of one thread alone."""

    class Slow(sandbox.BoundedEnvironment):
        def __init__(self):
            time.sleep(0.05)  # so that all threads are here before one has finished
            super().__init__()

    monkeypatch.setattr(sandbox, "BoundedEnvironment", Slow)
    sandbox._environment.cache_clear()
    sandbox._compiled.cache_clear()
    texts: list[str] = []
    started = threading.Barrier(4)

    def render() -> None:
        started.wait()
        texts.append(sandbox.render("{{ messages[0].content | trim }}", messages=TEXTS))

    threads = [threading.Thread(target=render) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sandbox._environment.cache_clear()
    sandbox._compiled.cache_clear()
    assert texts == ["Be [kind]."] * 4


def test_threads_have_budgets_of_their_own():
    template = "{% for a in range(90000) %}{% endfor %}" * 8  # most of a budget
    failed = []

    def render():
        try:
            assert sandbox.render(template) == ""
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=render) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}", "{{ messages.__class__.__mro__ }}", "{{ self.__init__.__globals__ }}",
        "{{ ''['__class__'] }}", "{{ '{0.__class__}'.format(1) }}", "{{ lipsum.__globals__ }}",
        "{{ namespace(__class__=1) }}", "{{ '' | attr('__class__') }}", "{{ messages.append(1) }}",
        "{{ ['__class__'] | map('attr') | list }}", "{{ raise_exception.__globals__ }}", "{% include '/etc/passwd' %}",
    ],
)  # fmt: skip
def test_nothing_escapes(template):
    try:
        shown = sandbox.render(template, messages=list(TEXTS))
    except Exception:
        return
    assert "class" not in shown and "built-in" not in shown and "function" not in shown, shown
