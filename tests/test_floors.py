"""The floors of the import graph: a module imports from its own floor and from those below."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "smoothsa_jax"
# Bottom up; `base` imports from below alone.
OF_CONFIGS = ("keys", "data_sets", "published", "parts", "sizes", "tokens", "words")
# Bottom up. The longest name that fits a module counts.
FLOORS = (
    ("errors", "checkout", "environment", "guard", "files", "parts", "schedules", "text"),
    (
        "models.interfaces",
        "models.layers",
        "models.backend",
        "models.buffers",
        "inputs",
        "losses",
    ),
    (
        "models.encoders",
        "models.initializers",
        "models.aggregators",
        "models.transitions",
        "models.decoders",
        "models.targets",
        "models.tokenizers",
        "models.rollouters",
        "models.readouts",
        "interop",
        "devices",
    ),
    ("models", "config"),
    ("checkpoints", "evaluation"),
    ("tasks",),
    ("training",),
    ("inference", "report", "convert"),
    ("bulk",),
    ("demo",),
    ("main", "command"),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
CONFIGS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "configs").rglob("*.py"))
}


def floor_of(module: str) -> int:
    found = [
        (len(name), floor)
        for floor, names in enumerate(FLOORS)
        for name in names
        if module == name or module.startswith(f"{name}.")
    ]
    assert found, f"{module} has no floor: add it to FLOORS"
    return max(found)[1]


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports, also inside functions."""
    own = {name for name in _imported(path) if name.split(".")[0] == PACKAGE}
    return {name.removeprefix(PACKAGE).removeprefix(".") for name in own} - {""}


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if _is_module(name) else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def _is_module(name: str) -> bool:
    return name.removeprefix(f"{PACKAGE}.") in MODULES or name in CONFIGS


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_a_module_imports_nothing_from_a_floor_above(module):
    above = {x for x in imports_of(MODULES[module]) if floor_of(x) > floor_of(module)}
    assert not above, f"{module} is below {', '.join(sorted(above))}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {module: imports_of(path) for module, path in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module in done:
            return
        for other in sorted(graph.get(module, ())):
            visit(other, (*way, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_the_package_imports_neither_its_scripts_nor_its_configs():
    for module, path in MODULES.items():
        for node in ast.walk(parsed(path)):
            names = []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"data", "configs", "benchmarks", "main", "tests"}, module


def test_configs_build_on_base_and_no_system_imports_a_data_set():
    base = [f"configs.base.{name}" for name in OF_CONFIGS]
    assert {x for x in CONFIGS if x.startswith("configs.base.")} == set(base)
    data_sets = {x for x in CONFIGS if x.count(".") == 1}
    systems = {x for x in CONFIGS if x.startswith("configs.systems.")}
    for name, path in CONFIGS.items():
        found = {x for x in _imported(path) if x.split(".")[0] == "configs"}
        if name in base:
            allowed = set(base[: base.index(name)])
        elif name == "configs.base":
            allowed = set(base)
        else:
            allowed = {"configs.base", *(systems if name in systems else data_sets)}
        assert found <= allowed, f"{name} imports {', '.join(sorted(found - allowed))}"


@pytest.mark.parametrize("module", ["torch", "tensorflow"])
def test_pytorch_and_tensorflow_are_imported_inside_functions_alone(module):
    for name, path in MODULES.items():
        for node in parsed(path).body:
            if isinstance(node, ast.Import):
                assert module not in {alias.name.split(".")[0] for alias in node.names}, name
