"""The rules of the house, held by the syntax tree of every module: see docs/internals.md."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
PACKAGE = SRC / "backstage"
MODULES = {
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}
LUA = sorted((PACKAGE / "lua").glob("*.lua"))

FUNCTION_LINES, FILE_LINES, PARAMETERS, METHODS = 60, 400, 12, 25
LUA_LINES = 120

PROJECT = tomllib.loads((SRC.parent / "pyproject.toml").read_text())
REDIS = frozenset(
    line.partition(" -> ")[0]
    for contract in PROJECT["tool"]["importlinter"]["contracts"]
    for line in contract.get("ignore_imports", ())
    if line.endswith(" -> redis")
)
"""Modules that may import redis-py: the import contracts have the list, and docs/internals.md the reasons."""

ENVIRONMENT = frozenset({"backstage.config"})
"""The only reader of the environment."""

CATCHES_ALL = frozenset(
    {
        "backstage.worker.upkeep",  # every(): the loop that outlives failures
        "backstage.worker.executor",  # a handler may raise anything
        "backstage.worker.threads",  # and so it may in a thread
        "backstage.handler",  # an annotation is an expression of the user's
        "backstage.shown",  # an error's message may raise anything
        "backstage.errors",  # the repr of a wrong value may raise anything
        "backstage.scheduler",  # the timetable outlives failures as every() does, on a floor below it
        "backstage.broadcast",  # a handler may raise anything
        "backstage.client",  # hands on to whoever awaits the enqueue
        "backstage.worker.limits",  # hands on whatever the handler's await raised
    }
)
"""Modules that may swallow any Exception. Elsewhere a handler that catches all must raise again, or hand it on."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> list[str]:
    return list(TREES)


def functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def imports(name: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every module that is imported, anywhere in the file, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            base = node.module if not node.level else f"{package}.{node.module}" if node.module else package
            assert base is not None
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield (whole if whole in MODULES else base), node.lineno


# ---- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", modules())
def test_size(name: str) -> None:
    """A function has at most 60 lines, a file 400, a signature 12 parameters, a class 25 methods."""
    tree, text = TREES[name], MODULES[name].read_text()
    assert len(text.splitlines()) <= FILE_LINES
    for function in functions(tree):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= FUNCTION_LINES, f"{function.name} has {lines} lines"
        arguments = function.args
        names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        assert count <= PARAMETERS, f"{function.name} has {count} parameters"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            methods = {part.name for part in node.body if isinstance(part, Function)}
            assert len(methods) <= METHODS, f"{node.name} has {len(methods)} methods"


# ---- imports ---------------------------------------------------------------------------------------------------------


def test_no_cycle() -> None:
    """No module imports itself, by whatever way round; typing-only and late imports count too."""
    graph = {
        name: {found for found, _ in imports(name, tree) if found in MODULES and found != "backstage"}
        for name, tree in TREES.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", modules())
def test_who_imports_redis(name: str) -> None:
    """Only the data path, the read side and what dials imports redis-py."""
    lines = [line for found, line in imports(name, TREES[name]) if found.split(".")[0] == "redis"]
    assert not lines or name in REDIS, f"{MODULES[name]}:{lines[0]}"


def test_that_list_is_short() -> None:
    """Each module on it exists and imports redis-py."""
    assert {
        name for name in TREES if any(found.startswith("redis") for found, _ in imports(name, TREES[name]))
    } >= REDIS


@pytest.mark.parametrize("name", modules())
def test_typing_imports_are_imports(name: str) -> None:
    """No `if TYPE_CHECKING:` hides an import."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            hidden = [part for part in ast.walk(node) if isinstance(part, (ast.Import, ast.ImportFrom))]
            assert not hidden, f"{MODULES[name]}:{hidden[0].lineno}"


# ---- state, environment, exceptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", modules())
def test_who_reads_the_environment(name: str) -> None:
    """Only config.py does; a program that is run may hand on what it has."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"):
            assert name in ENVIRONMENT or name.startswith("backstage.cli."), f"{MODULES[name]}:{node.lineno}"


@pytest.mark.parametrize("name", modules())
def test_no_mutable_state(name: str) -> None:
    """What a module holds doesn't change: a table is named as a constant, nothing writes to one, no `global`."""
    tree = TREES[name]
    assert not any(isinstance(node, ast.Global) for node in ast.walk(tree))
    tables = {}
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None and _is_mutable(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            tables |= {ast.unparse(target): node.lineno for target in targets}
    tables.pop("__all__", None)
    if name in STATE:
        del tables[STATE[name]]
    for table, line in tables.items():
        assert table.isupper(), f"{MODULES[name]}:{line}: {table} is neither a constant nor local"
    for node in ast.walk(tree):
        written = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
            written = ast.unparse(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATES:
            written = ast.unparse(node.func.value)
        assert written not in tables, f"{MODULES[name]}:{node.lineno} writes to {written}"  # type: ignore[attr-defined]


STATE = {
    "backstage.lane": "_lanes",  # a fork is of the whole process; weak, and read in the forked child only
}
"""The one thing of a module that may change, and why."""

MUTATES = frozenset({"append", "add", "clear", "extend", "insert", "pop", "popitem", "remove", "setdefault", "update"})


def _is_mutable(value: ast.expr) -> bool:
    if isinstance(value, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)):
        return True
    called = ast.unparse(value.func).split(".")[-1] if isinstance(value, ast.Call) else ""
    return called in ("list", "dict", "set", "deque", "defaultdict", "Counter", "WeakSet", "WeakKeyDictionary")


@pytest.mark.parametrize("name", modules())
def test_who_catches_everything(name: str) -> None:
    """Nobody catches Exception, and keeps it, but those that may; who catches BaseException raises it again."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ExceptHandler):
            caught = "BaseException" if node.type is None else ast.unparse(node.type)
            if not re.search(r"\b(Base)?Exception\b", caught) or name in CATCHES_ALL:
                continue
            last = node.body[-1]
            goes_on = isinstance(last, (ast.Raise, ast.Break)) or "set_exception" in ast.unparse(node)
            assert goes_on, f"{MODULES[name]}:{node.lineno} catches {caught}"


# ---- Lua -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", LUA, ids=lambda path: path.name)
def test_scripts(path: Path) -> None:
    """One file a verb, short, with a header that tells its KEYS, ARGV and what it returns."""
    text = path.read_text()
    header = text[: re.search(r"^(?!--)", text, re.MULTILINE).start()]  # type: ignore[union-attr]
    for word in ("KEYS", "ARGV", "Returns"):
        assert re.search(rf"\b{word}\b", header), f"{path.name} doesn't tell its {word}"
    assert len(text.splitlines()) <= LUA_LINES
    assert "tostring(" not in text


def test_every_script_is_used() -> None:
    """Each is loaded somewhere, by its name."""
    loaded = {
        node.args[0].value
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] == "load"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert {path.stem for path in LUA} <= loaded


@pytest.mark.parametrize("name", modules())
def test_every_module_says_what_it_is(name: str) -> None:
    """A docstring at its top."""
    assert ast.get_docstring(TREES[name])
