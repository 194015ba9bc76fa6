"""The shape of the house: import arrows, a pure core, budgets, the public names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastboot

PACKAGE = Path(fastboot.__file__).parent
NATIVE = PACKAGE / "_native"
DOORS = sorted(PACKAGE.rglob("*.pyx"))
MODULES = {
    ".".join(("fastboot", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# What each room may import of ours, beside itself. `model`, `wording` and `_core` are open to all.
ARROWS = {
    "model": set[str](),
    "wording": set[str](),
    "nodeset": set[str](),
    "config": set[str](),
    "boot": {"config"},
    "state": {"config"},
    "watch": {"config"},
    "services": {"config", "boot", "state", "watch", "nodeset"},
    "world": {"config", "boot"},
    "sockets": {"config", "services"},
    "server": {"config", "boot", "state", "watch", "services", "sockets", "world"},
    "privileges": {"config"},
    "check": {"config", "boot", "state", "watch", "services", "sockets", "world", "privileges"},
    "quick": {"config", "services"},
    "serving": {"config", "privileges", "server", "terminal", "watch"},
    "terminal": {"boot"},
    "arming": {"config", "services", "state", "watch", "privileges", "nodeset", "quick", "terminal"},
    "leases": {"config", "services", "state", "watch", "privileges", "nodeset", "terminal"},
    "why": {"config", "services", "terminal", "watch"},
    "lab": {"config", "boot", "state", "watch", "services", "server"},
    "cli": {
        "arming",
        "config",
        "boot",
        "state",
        "watch",
        "services",
        "server",
        "check",
        "lab",
        "privileges",
        "nodeset",
        "quick",
        "leases",
        "why",
        "terminal",
        "world",
        "serving",
    },
    "__main__": {"cli"},
}
OPEN = {"model", "wording", "_core"}
DOOR_LINES, PXI_LINES, NATIVE_FUNCTION = 300, 500, 70  # style.md 3.2, rule 9; a function wants to stay under 60
FILE_LINES, FUNCTION_LINES = 600, 60
"""A file wants to stay under 500 lines and a function under 50 (DESIGN section 5); past these it must not go."""

IMPURE = re.compile(
    r"\b(?:malloc|calloc|realloc|free|mmap|munmap|pthread_\w+|clock_gettime|nanoseconds|sleep|time"
    r"|sendm?msg|recvm?msg|sendto|recvfrom|epoll_\w+|eventfd|timerfd_\w+|syscall|c_read|c_write|c_close"
    r"|with\s+gil|PyObject|PyMem_\w+)\s*\("
)


def room_of(module: str) -> str:
    return (*module.split("."), "__init__")[1]


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "fastboot")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            if node.module == "fastboot":
                yield from (f"fastboot.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("fastboot."):
                yield node.module


@pytest.mark.parametrize("module", [name for name in MODULES if name != "fastboot"])
def test_import_arrows_go_one_way(module: str) -> None:
    room = room_of(module)
    assert room in ARROWS, f"{room} is a new room: say in ARROWS what it may import"
    allowed = ARROWS[room] | OPEN | {room}
    wrong = {
        target
        for target in imported(MODULES[module])
        if room_of(target) not in allowed and target != "fastboot.__version__"
    }
    assert not wrong, f"{module} must not import {', '.join(sorted(wrong))}"


def test_the_native_core_imports_none_of_ours() -> None:
    for path in (PACKAGE / "_core.pyx", *NATIVE.iterdir()):
        for line in path.read_text(encoding="utf-8").splitlines():
            if re.match(r"\s*(?:from\s+fastboot|import\s+fastboot)", line):
                assert re.match(r"from fastboot\._native\.\w+ cimport ", line), f"{path.name}: {line}"


@pytest.mark.parametrize(
    "path", [path for path in sorted(NATIVE.glob("*.pxd")) if path.name != "sys.pxd"], ids=str
)
def test_pxd_files_are_pure(path: Path) -> None:
    """No system call, lock, allocation or clock: time and memory come in as arguments."""
    code = native_code(path)
    assert not (found := IMPURE.search(code)), f"{path.name}: {found and found[0]}"
    for line in code.splitlines():
        assert not re.match(
            r"\s*(?:from|import)\s+(?!libc\.(?:stdint|string) |libc\.stdio cimport snprintf$"
            r"|posix\.strings cimport strncasecmp$|fastboot\._native\.)",
            line.rstrip(),
        ), f"{path.name} depends on more than C types and its like: {line.strip()}"
    cimported = re.findall(r"from fastboot\._native\.sys cimport (\([^)]*\)|.*)", code)
    called = set(re.findall(r"\w+", " ".join(cimported))) - {
        "uint8_t",
        "uint16_t",
        "uint32_t",
        "uint64_t",
        "int64_t",
    }
    assert not {name for name in called if IMPURE.match(f"{name}(")}, f"{path.name} takes a system call from sys"


@pytest.mark.parametrize("path", sorted(NATIVE.glob("*.pxi")), ids=str)
def test_a_pxi_holds_one_class(path: Path) -> None:
    code = native_code(path)
    assert len(re.findall(r"^cdef class ", code, re.MULTILINE)) == 1
    assert not re.search(r"^\s*include ", code, re.MULTILINE), "only the door includes"


def test_the_door_includes_every_part_once() -> None:
    text = (PACKAGE / "_core.pyx").read_text(encoding="utf-8")
    assert sorted(re.findall(r'^include "_native/(\w+\.pxi)"', text, re.MULTILINE)) == sorted(
        path.name for path in NATIVE.glob("*.pxi")
    )


@pytest.mark.parametrize("path", [*DOORS, *sorted(NATIVE.iterdir())], ids=lambda path: path.name)
def test_native_code_never_asks_for_errors_without_the_gil(path: Path) -> None:
    """`except *` and `except? x` make Cython take the GIL after each call of a nogil function."""
    for line in native_code(path).splitlines():
        if "nogil" in line and line.lstrip().startswith(("cdef", "cpdef")):
            assert not re.search(r"except\s*[*?]", line), f"{path.name}: {line.strip()}"
    assert "memoryview" not in native_code(path)


@pytest.mark.parametrize("path", [*DOORS, *sorted(NATIVE.iterdir())], ids=lambda path: path.name)
def test_native_budgets(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (DOOR_LINES if path.name == "_core.pyx" else PXI_LINES)
    for name, count in native_functions(lines):
        assert count <= NATIVE_FUNCTION, f"{path.name}: {name} has {count} lines; look for the second noun in it"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_python_budgets(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = (node.end_lineno or node.lineno) - node.lineno + 1
            assert count <= FUNCTION_LINES, f"{module}.{node.name} has {count} lines"


def test_every_public_name_is_there() -> None:
    for name in fastboot.__all__:
        assert getattr(fastboot, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        fastboot.nonsense  # noqa: B018


def test_every_public_name_is_typed() -> None:
    """The names that type checkers see and those that exist are the same."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typed = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed - {"import_module", "TYPE_CHECKING", "Any"} == set(fastboot.__all__) - {"__version__"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_mutable_belongs_to_a_module(module: str) -> None:
    """Two servers in one process share nothing: a module's own names are constants."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in tree.body:
        for inner in ast.walk(node):
            assert not isinstance(inner, ast.Global), f"{module}: line {inner.lineno}: global"
        if isinstance(node, ast.Assign):
            value, names = node.value, [target.id for target in node.targets if isinstance(target, ast.Name)]
            empty = isinstance(value, ast.List | ast.Dict | ast.Set) and not ast.unparse(value).strip("[]{}()")
            assert not empty or names == ["__all__"], f"{module}: {names} is empty, so something fills it"


def native_code(path: Path) -> str:
    """Return a native file without its comments and docstrings."""
    text = re.sub(r'"""[\s\S]*?"""', "", path.read_text(encoding="utf-8"))
    return re.sub(r"#.*", "", text)


def native_functions(lines: list[str]) -> Iterator[tuple[str, int]]:
    """Yield each function of a native file with the number of its lines."""
    starts = [
        (at, len(match[1]), match[2])
        for at, line in enumerate(lines)
        if (
            match := re.match(
                r"(\s*)(?:cdef|cpdef|def)\s+(?!class|enum|struct|extern|packed|union)[^=]*?(\w+)\(", line
            )
        )
    ]
    for at, indent, name in starts:
        end = at + 1
        last = at
        while end < len(lines):
            line = lines[end]
            if line.strip() and not line.startswith(" " * (indent + 1)) and not line.lstrip().startswith(")"):
                break
            if line.strip():
                last = end
            end += 1
        yield name, last - at + 1
