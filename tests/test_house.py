"""The habits of the house, held by a machine: sizes, promises that are proven, names that stay in step."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.breaking.__main__ import broken
from tests.breaking.lines import LINES, Break
from tests.support.rows import LEFT_OUT, met, rows, table

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "relay").rglob("*.py"))
README = (ROOT / "README.md").read_text()
LONGEST_MODULE, LONGEST_FUNCTION = 400, 60

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, Function))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_and_its_functions_stay_small(path: Path) -> None:
    """No module over 400 lines, no function over 60: what outgrows its room gets its walls moved."""
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE
    long = [f.name for f in functions(path) if (f.end_lineno or f.lineno) - f.lineno >= LONGEST_FUNCTION]
    assert long == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_opens_with_its_law_and_every_public_thing_says_what_it_does(path: Path) -> None:
    """A module, a public class and a public function each have a docstring."""
    tree = ast.parse(path.read_text())
    named = [node for node in tree.body if isinstance(node, Function | ast.ClassDef) and node.name[0] != "_"]
    assert path.name == "__main__.py" or ast.get_docstring(tree)
    assert [node.name for node in named if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("name", ["utils", "common", "helpers", "core", "base", "manager", "errors"])
def test_no_module_is_named_for_nothing(name: str) -> None:
    """A name that says nothing gathers everything."""
    assert not [path for path in MODULES if path.stem == name or path.parent.name == name]


def promised_tests() -> list[str]:
    return re.findall(r"`(tests/[^`]+::\w+)`", README)


@pytest.mark.parametrize("name", promised_tests())
def test_a_promise_names_a_test_that_exists(name: str) -> None:
    """Every test that the README names is there."""
    file, _, function = name.partition("::")
    assert function in {f.name for f in functions(ROOT / file)}


def test_every_promise_names_its_proof() -> None:
    """Ten promises, ten proofs."""
    chapter = README.partition("## What is promised")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.*) \| (.*) \|$", chapter, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 11))
    assert [int(number) for number, _, proof in rows if "tests/" not in proof] == []


LINE = r"(relay|clock|replay|enricher|event|request|delivery|target|source|store|events|config|admin|http)\.[a-z_]+"


def logged_events() -> set[str]:
    """The names of all lines that the code logs."""
    found: set[str] = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            if re.fullmatch(LINE, node.value):
                found.add(node.value)
    return found - {"relay.db", "relay.log", "relay.test", "config.yaml"}


def test_the_readme_lists_every_line_of_the_log() -> None:
    """The log reference is in step with the code, both ways."""
    chapter = README.partition("## The log")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `([a-z_]+\.[a-z_]+)`", chapter, re.MULTILINE))
    assert listed == logged_events()


def test_one_factory_makes_every_outgoing_connection() -> None:
    """T46: no client session is made in a second place, so that nothing slips past the egress guard; the command line's
    own calls to this machine's relay, and the demonstration's, are the exceptions."""
    users = {str(path.relative_to(ROOT / "relay")) for path in MODULES if "ClientSession(" in path.read_text()}
    assert {user for user in users if not user.startswith("cli/")} == {"delivery/sessions.py"}


def test_only_the_store_speaks_sql() -> None:
    """No SQL and no word of SQLite's above the storage port."""
    statement = re.compile(r"\b(SELECT|INSERT INTO|DELETE FROM|CREATE TABLE)\b|sqlite3|aiosqlite")
    users = {path.relative_to(ROOT / "relay").parts[0] for path in MODULES if statement.search(path.read_text())}
    assert users == {"store"}


def test_the_top_level_is_as_the_user_fixed_it() -> None:
    """Nothing else joins the top level but dotfiles and the licence."""
    allowed = {"relay", "config.example.yaml", "tests", "pyproject.toml", "Dockerfile", "README.md", "LICENSE"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert found - {"build", "config.yaml"} - {n for n in found if n.endswith((".egg-info", ".db"))} <= allowed


@pytest.mark.parametrize("one", LINES, ids=lambda one: one.name)
def test_a_line_that_carries_a_promise_is_where_the_breaks_look_for_it(one: Break) -> None:
    """What `tests.breaking` would break is there, once, and breaking it leaves Python that can be read."""
    ast.parse(broken(one, ROOT))


def test_every_row_of_the_fault_table_is_met() -> None:
    """Each row has a test that carries its name, or a reason why it has none; and no test names another row."""
    found = set(met())
    assert sorted(rows().keys() - found - LEFT_OUT.keys()) == []
    assert sorted(found - rows().keys()) == []
    assert len(LEFT_OUT) <= 10


def test_the_readme_lists_the_rows_and_where_they_are_met() -> None:
    """The table of the chapter on security is made from the markers: `python -m tests.support.rows`."""
    listed = README.partition("<!-- rows -->\n")[2].partition("\n<!-- end -->")[0]
    assert listed == table()
