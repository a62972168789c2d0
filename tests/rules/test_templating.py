"""Templates: what they may do, and what an event can never make them do."""

import contextlib
import json
import re
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.rules.templating import (
    LONGEST_TEMPLATE,
    SLACK,
    TEAMS,
    TEXT,
    URL,
    NoTemplate,
    Unfilled,
    assembled,
    filler,
    is_template,
    literal,
    literals,
    skeleton,
    unknown_names,
)

HOSTILE = st.one_of(
    st.text(),
    st.text(st.characters(categories=["Cs", "Cc", "Po"])),
    st.sampled_from(
        ["{{ id }}", "{% raw %}", "%2e%2e", "../..", "a/b", "?x=1", "#", "\r\nX: y", "\ud800", "@", "\\", "%", "{#", ""]
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | HOSTILE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=8,
)
HUGE = "a" * 100_000


def filled(text: str, environment: Any = TEXT, /, **view: Any) -> str:
    return filler(text, environment).filled(view)


def test_a_template_says_what_the_event_says() -> None:
    """Strings as they are, null as nothing, the rest as JSON; members win over what Python calls so."""
    body = {"name": "Ann", "n": 5, "none": None, "ok": True, "list": [1, "ä"], "items": "its own", "keys": 3}
    text = (
        "{{ b.name }}|{{ b.n }}|{{ b.none }}|{{ b.ok }}|{{ b.list }}|{{ b.items }}|{{ b.keys }}|{{ b.list | tojson }}"
    )
    assert filled(text, b=body) == 'Ann|5||true|[1,"ä"]|its own|3|[1,"\\u00e4"]'
    assert filled("{{ b['items'] }} {{ b.get('n') }} {{ b.x | default('-') }}", b=body) == "its own 5 -"
    assert filled('{{ "%.2f" | format(b) }} {{ "%s/%s" % (b, b) }} {{ "{:.1f}".format(b) }}', b=1.25) == (
        "1.25 1.25/1.25 1.2"
    )
    assert (
        filled("{{ b | join('-') }} {{ 'aba' | replace('a', 'c') }} {{ 7 % 4 }} {{ 2 ** 3 }}", b=[1, 2])
        == "1-2 cbc 3 8"
    )
    assert filled("<{{ 'x' if b }}{{ ('x' if b) | tojson }}>", b=0) == "<null>"


@given(HOSTILE)
def test_a_value_is_never_read_as_a_template(value: str) -> None:
    """Whatever an event holds comes out as it is, once."""
    assert filled("<{{ v }}>", v=value) == f"<{value}>"


@given(JSON)
def test_every_value_can_be_filled_into_every_kind_of_text(value: Any) -> None:
    """A text, or a reason; never another failure."""
    for environment in (TEXT, URL, SLACK, TEAMS):
        with contextlib.suppress(Unfilled):
            assert isinstance(filled("{{ v }}", environment, v=value), str)


@given(HOSTILE)
def test_a_value_stays_within_its_part_of_a_url(value: str) -> None:
    """It brings no separator, no dot segment and nothing that ends the path."""
    if value in {"", ".", ".."}:
        with pytest.raises(Unfilled):
            filled("https://h.example/a/{{ v }}/b", URL, v=value)
        return
    url = filled("https://h.example/a/{{ v }}/b", URL, v=value)
    assert re.fullmatch(r"https://h\.example/a/[A-Za-z0-9._~%-]+/b", url)
    assert unquote(urlsplit(url).path.split("/")[2]) == value.encode("utf-8", "replace").decode()


@given(HOSTILE)
def test_a_value_is_no_markup_in_a_message_to_slack(value: str) -> None:
    """Slack's three characters are escaped, and the value is whole."""
    text = filled("<https://x|{{ v }}>", SLACK, v=value).removeprefix("<https://x|").removesuffix(">")
    assert "<" not in text
    assert ">" not in text
    assert text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") == value


@given(HOSTILE)
def test_a_value_is_no_markup_in_a_card_for_teams(value: str) -> None:
    """Every mark of Markdown, and of the card's own functions, stands behind a backslash."""
    text = filled("{{ v }}", TEAMS, v=value)
    assert re.search(r"(?<!\\)(?:\\\\)*[*_\[\](){}#<>`|~]", text) is None
    assert re.search(r"(?<!\n)\n(?!\n)", text) is None


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ v.__init__.__globals__ }}",
        "{{ (v | attr('__class__')) }}",
        "{{ v['__class__'].__mro__ }}",
        "{{ '{0.__class__}'.format(v) }}",
        "{{ '{0.__class__.__mro__}'.format_map({'0': v}) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ namespace.__init__ }}",
        "{{ v.append(1) }}",
        "{{ v.pop() }}",
        "{% set v.x = 1 %}",
        "{{ range(1000000) | list }}",
    ],
)
def test_no_template_leaves_the_sandbox(template: str) -> None:
    """Neither Python's insides nor a change of the data."""
    value = [1]
    with pytest.raises(Unfilled):
        filled(template, v=value)
    assert value == [1]


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * n }}",
        "{{ n * [v] }}",
        "{{ 10 ** n }}",
        "{{ n ** 10 }}",
        "{{ '%*d' % (n, 1) }}",
        "{{ '%9999d' | format(1) }}",
        "{{ '%(w)99999999d' | format(w=1) }}",
        "{{ '%(w)99999999d' % {'w': 1} }}",
        "{{ 'x'.encode() * n }}",
        "{{ '\t'.expandtabs(tabsize=n) }}",
        "{{ '{:>9999999}'.format(1) }}",
        "{{ '{:>{w}}'.format(1, w=n) }}",
        "{{ 'x'.center(n) }}",
        "{{ 'x'.zfill(n) }}",
        "{{ 'x' | center(n) }}",
        "{{ 'x' | indent(n) }}",
        "{{ 'x' | indent(width=n) }}",
        "{{ [1] | batch(n, 'x') | list }}",
        "{{ [1] | slice(n) | list }}",
        "{{ 1.5 | round(n) }}",
        "{{ v | replace('a', v) }}",
        "{{ v.replace('a', v) }}",
        "{{ v.join(l) }}",
        "{{ l | join(v) }}",
        "{% for i in range(100) %}{{ v }}{% endfor %}",
    ],
)
def test_no_value_makes_a_text_grow_beyond_its_bound(template: str) -> None:
    """An event that names a width, a count or a replacement cannot take the memory of all."""
    with pytest.raises(Unfilled, match=r"sandbox forbids|more than \d+ characters"):
        filled(template, v=HUGE, n=10**9, l=["x"] * 2000)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in l %}{% for j in l %}{% if i == j %}{% endif %}{% endfor %}{% endfor %}",
        "{% for i in range(n) %}{% for j in range(n) %}{% endfor %}{% endfor %}",
        "{% for i in l %}{% for j in l if i == j %}{% endfor %}{% endfor %}",
        "{% for i in l %}{% if i in l %}{% endif %}{% endfor %}",
        "{% for i in l %}{% if i not in l %}{% endif %}{% endfor %}",
        "{% for i in l %}{% if l | select('eq', i) | first %}{% endif %}{% endfor %}",
        "{% for i in l %}{% if l.count(i) > n %}{% endif %}{% endfor %}",
        "{% macro m(l) %}{% for i in l %}{% for j in l %}{% endfor %}{% endfor %}{% endmacro %}{{ m(l) }}",
    ],
)
def test_no_event_makes_a_template_work_without_end(template: str) -> None:
    """Lists of twenty thousand, each for each: nobody else could be served meanwhile."""
    with pytest.raises(Unfilled, match="it takes more than 100000 steps on this event"):
        filled(template, l=list(range(20_000)), n=20_000)


def test_a_template_may_go_over_much_again_and_again() -> None:
    """Three hundred by three hundred, and filters over each of ten thousand."""
    square = "{% for i in l %}{% for j in l %}{% if i == j %}{{ loop.index }},{% endif %}{% endfor %}{% endfor %}"
    assert filled(square, l=list(range(300))).count(",") == 300
    each = "{% for i in l %}{{ (i.s | upper).strip() | default('x') }}{{ loop.last }}{% else %}none{% endfor %}"
    assert filled(each, l=[{"s": "a"}] * 10_000).startswith("Afalse")
    assert filled(each, l=[]) == "none"
    assert filled("{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}", d={"a": 1}) == "a1"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ body.name }}", "it needs 'name', which this event has not"),
        ("{{ body.a.b }}", "it needs 'a', which this event has not"),
        ("{{ data.id }}", "it needs 'id', which this event has not"),
        ("{{ body.name | tojson }}", "it needs 'name', which this event has not"),
        ("{{ body[body.key] }}", "a value is missing"),
        ("{{ body.key + 1 }}", "it failed on this event (TypeError)"),
        ("{{ 1 / body.zero }}", "it failed on this event (ZeroDivisionError)"),
    ],
)
def test_a_reason_names_what_is_missing_and_holds_nothing_of_the_event(template: str, reason: str) -> None:
    """The name stands in the template; a name that the event brings does not count as one."""
    with pytest.raises(Unfilled) as caught:
        filled(template, body={"key": "a_secret_of_the_event", "zero": 0}, data=None)
    assert str(caught.value) == reason


def test_deep_data_is_a_reason() -> None:
    """What is nested beyond all reason fails alone."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Unfilled, match="nested too deeply"):
        filled("{{ v | tojson }}", v=deep)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "nested too deep"),
        ("{% if 1 %}" * 100 + "{% endif %}" * 100, "nested too deep"),
        ("{% if 1 %}" * 500 + "{% endif %}" * 500, "nested too deep"),
        ("{{ x" + ".a" * 200 + " }}", "nested too deep"),
        ("{{ x", "is not a template: unexpected end of template"),
        ("{% if %}", "is not a template: Expected an expression"),
        ("a\n{{ foo( }}", r"is not a template: unexpected '}', expected '\)' \(line 2 of it\)"),
        ("{{ x | nofilter }}", "No filter named 'nofilter'"),
        ("{% include 'x' %}", "names another one"),
        ("{% import 'x' as y %}", "names another one"),
        ("{% extends 'x' %}", "names another one"),
        ("{{ x }}" * LONGEST_TEMPLATE, "longer than"),
    ],
)
def test_what_is_no_template_is_refused_with_its_reason(text: str, message: str) -> None:
    """It is found when the config is read, not when an event comes."""
    with pytest.raises(NoTemplate, match=message):
        filler(text)


def test_names_that_no_event_has_are_found() -> None:
    """Loops and Jinja's own names are none of them."""
    text = "{% for i in body.items %}{{ i }}{{ loop.index }}{{ range(2) }}{% endfor %}{{ bdy }}{{ id }}{{ date }}"
    assert unknown_names(text) == ("bdy", "date")


OWN = st.sampled_from(
    ["{{ id }}", "x{{ id }}{", "a", "{", "}", "%}", " {# c #}", "{{ id }}{{", "{% if id %}y{% endif %}{"]
)
OUTSIDE = st.sampled_from(["{ id }}", "% raw %}", "# x", "{{ id }}", "{", "{%", "", "{% endraw %}"]) | HOSTILE
PARTS = st.lists(st.tuples(OWN, st.just(False)) | st.tuples(OUTSIDE, st.just(True)), max_size=6)


def merged(parts: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """As the config gives them: no two own parts side by side."""
    made: list[tuple[str, bool]] = []
    for text, is_outside in parts:
        if made and not is_outside and not made[-1][1]:
            made[-1] = made[-1][0] + text, False
        else:
            made.append((text, is_outside))
    return made


@given(PARTS)
def test_what_comes_from_outside_means_itself_beside_any_template(parts: list[tuple[str, bool]]) -> None:
    """With something else of the same length class outside, the own parts make the same: nothing outside is code."""
    parts = merged(parts)
    own = "".join(text for text, is_outside in parts if not is_outside)
    harmless = "".join("\ue001" if is_outside else text for text, is_outside in parts)
    try:
        made = assembled(parts)
        text = None if made is None else filler(made).filled({"id": "I"})
    except (NoTemplate, Unfilled):
        assert is_template(own) or is_template(harmless)
        return
    if text is None:
        assert not is_template(harmless)
        return
    outside = [text.replace("\r\n", "\n").replace("\r", "\n") for text, is_outside in parts if is_outside]
    expected = filler(harmless).filled({"id": "I"})
    for value in outside:
        expected = expected.replace("\ue001", value.replace("\ue001", "\ue002"), 1)
    assert text == expected.replace("\ue002", "\ue001")


@pytest.mark.parametrize(
    "own", ["{{ 'X' }}", "{% if X %}{% endif %}", "{# X #}", "{{ body.X }}", "{% raw %}X{% endraw %}"]
)
def test_what_comes_from_outside_cannot_stand_in_code(own: str) -> None:
    """There it would be read; it is refused in words."""
    before, after = own.split("X")
    with pytest.raises(NoTemplate, match="stands inside"):
        assembled([(before, False), ("value", True), (after, False)])


@given(HOSTILE)
def test_a_literal_means_itself(text: str) -> None:
    """But for line breaks, which a template has one kind of."""
    assert filled(literal(text)) == text.replace("\r\n", "\n").replace("\r", "\n")


def test_what_is_the_same_in_every_filling() -> None:
    """The text between the tags, and the text with each tag replaced."""
    text = "Token abc{{ x }}def{% if y %}g{% endif %}{# z #}{% raw %}{{{% endraw %}h"
    assert literals(text) == ("Token abc", "def", "g", "{{h")
    assert skeleton(text, "*") == "Token abc*def*g**{{h"


def test_json_of_a_template_is_json() -> None:
    """`tojson` brings quotes and escapes, whatever the value."""
    value = {"a": 'q"\\\n\u2028</script>\ud800', "n": 2**70}
    assert json.loads(filled("{{ v | tojson }}", v=value)) == value


@pytest.mark.parametrize("value", ["{ id }}", "% raw %}", "# x #}", "{{ id }}", "", "plain"])
def test_a_brace_beside_a_variable_opens_nothing(value: str) -> None:
    """The file's last brace and the variable's first are two texts."""
    made = assembled([("{{ id }}{", False), (value, True), ("}", False)])
    assert made is not None
    assert filled(made, id="I") == "I{" + value + "}"
    assert assembled([("{", False), (value, True), ("}", False)]) is None


@pytest.mark.parametrize("name", ["safe", "string"])
def test_no_filter_makes_pythons_words_of_json(name: str) -> None:
    """Null is nothing and true is true, also where a filter has passed it on; in a URL nothing is refused."""
    view = {"body": {"nothing": None, "yes": True}}
    assert filler(f"[{{{{ body.nothing | {name} }}}}{{{{ body.yes | {name} }}}}]").filled(view) == "[true]"
    with pytest.raises(Unfilled):
        filler(f"https://h.example/{{{{ body.nothing | {name} }}}}", URL).filled(view)
