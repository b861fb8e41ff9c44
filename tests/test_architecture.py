"""The house of the code: who may import whom, how long a module may be, what every public name carries."""

import ast
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bundle"

# Ground floor to roof. Rooms of one floor do not import each other, except on the ground floor.
FLOORS = (
    ("errors", "files", "pages", "overrides", "configuration", "progress", "units"),
    ("metrics",),  # functions of arrays: the noise estimate serves the report of a series and the dose model
    ("dicom", "degrade"),
    ("data", "diffusion"),
    ("networks",),
    ("restoration",),
    ("training",),
    ("evaluation",),
    ("commands", "__main__"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

MAX_LINES = 400
MAX_MEDIAN_LINES = 200

# Modules without a test file of their own, and why.
UNTESTED = {
    "__main__": "one call; tests/commands/test_main.py runs it as a process",
}

# Folders of one machine, which must not be written into a file that others get.
MACHINE_PATH = re.compile(r"""["'\s=(](/home/|/Users/|/root/|/work/|/mnt/|C:\\\\)""")
TEXT_SUFFIXES = {".py", ".toml", ".txt", ".yaml", ".json", ".conf", ".cfg", ".cff", ".md", ".ini", ""}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(name: str) -> str:
    return name.split(".")[0]


def imported(path: Path, known: set[str]) -> set[str]:
    """Dotted names below `bundle` that a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            # `from bundle.dicom import index` imports a module; `from bundle.errors import report` a name of one.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("bundle."):
                inner = name.removeprefix("bundle.")
                found.add(inner if inner in known else inner.rpartition(".")[0] or inner)
    return found - {""}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = {dotted(path) for path in modules()}
    return {dotted(path): imported(path, known) & known for path in modules() if dotted(path)}


def test_every_module_belongs_to_a_floor(graph):
    assert {room_of(name) for name in graph} <= set(FLOOR_OF)


def test_imports_only_go_down(graph):
    wrong = []
    for name, targets in graph.items():
        room, floor = room_of(name), FLOOR_OF[room_of(name)]
        for target in targets:
            other, below = room_of(target), FLOOR_OF[room_of(target)]
            same_floor_allowed = floor in (0, len(FLOORS) - 1) or other == room
            if below > floor or (below == floor and not same_floor_allowed):
                wrong.append(f"{name} -> {target}")
    assert wrong == []


def test_no_import_cycle(graph):
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for target in graph.get(name, set()):
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_module_is_too_long():
    lengths = {dotted(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}
    assert statistics.median(length for length in lengths.values() if length > 3) < MAX_MEDIAN_LINES


def public_definitions(tree: ast.Module):
    """Public functions and classes of a module, with the public methods of those classes."""
    pending = [(node, "") for node in tree.body]
    while pending:
        node, prefix = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                pending += [(child, f"{node.name}.") for child in node.body]


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_public_names_have_docstrings_and_return_types(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = [] if ast.get_docstring(tree) or not tree.body else ["module: docstring"]
    for name, node in public_definitions(tree):
        if not ast.get_docstring(node) and not _is_overload(node):
            missing.append(f"{name}: docstring")
        if not isinstance(node, ast.ClassDef) and node.returns is None:
            missing.append(f"{name}: return type")
    assert missing == []


def _is_overload(node: ast.AST) -> bool:
    return any(
        "overload" in ast.dump(decorator) or "setter" in ast.dump(decorator) for decorator in node.decorator_list
    )


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_every_module_has_a_test_file(path):
    name = dotted(path)
    if path.name == "__init__.py" or name in UNTESTED:
        return
    relative = path.relative_to(PACKAGE)
    assert (ROOT / "tests" / relative.parent / f"test_{relative.name}").is_file()


def test_exceptions_are_still_needed():
    assert {name for name in UNTESTED if not (PACKAGE / f"{name.replace('.', '/')}.py").is_file()} == set()


def shipped_files() -> list[Path]:
    folders = ("bundle", "configs", "scripts", "tests", "docs", "k8s", ".ci")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    found += [path for path in ROOT.iterdir() if path.suffix in TEXT_SUFFIXES]
    return [
        path for path in found if path.is_file() and path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts
    ]


def test_no_path_of_a_machine():
    named = []
    for path in shipped_files():
        text = path.read_text(encoding="utf-8", errors="replace")
        # In a container /workspace is part of the contract; it is no folder of somebody's machine.
        if path != Path(__file__).resolve() and MACHINE_PATH.search(text):
            named.append(str(path.relative_to(ROOT)))
    assert named == []


def test_ascii_only():
    assert [str(path.relative_to(ROOT)) for path in shipped_files() if not path.read_bytes().isascii()] == []
