"""The house of docs/architecture.md: a package imports only from packages on floors below its own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"core"},
    {"artefacts", "models"},
    {"sources"},
    {"data"},
    {"evaluations", "exports", "finetunings", "quantizations"},
    {"planning", "report"},
    {"upkeep"},
)
"""From the bottom; packages of one floor do not import each other. Scripts and rules stand on top of all."""
FLOOR = {package: number for number, packages in enumerate(FLOORS) for package in packages}
MODULES = sorted(path for path in (ROOT / "quantune").rglob("*.py") if path.parent != ROOT / "quantune")


def imported(path: Path) -> list[str]:
    """Return the modules of quantune that a file imports anywhere in it, functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "quantune":
            for name in node.names:
                below = ROOT / node.module.replace(".", "/") / name.name
                is_module = below.with_suffix(".py").exists() or below.is_dir()
                found.append(f"{node.module}.{name.name}" if is_module else node.module)
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] == "quantune"]
    return found


def test_every_package_has_a_floor():
    packages = {path.name for path in (ROOT / "quantune").iterdir() if (path / "__init__.py").exists()}
    assert packages == set(FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "quantune")))
def test_imports_go_down(path):
    package = path.relative_to(ROOT / "quantune").parts[0]
    others = {name.split(".")[1] for name in imported(path)} - {package}
    up = sorted(name for name in others if FLOOR[name] >= FLOOR[package])
    assert not up, f"'{package}' is on floor {FLOOR[package] + 1} and must not import {up}"


def test_no_module_imports_itself_through_others():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    arrows = {name: [item for item in imported(path) if item in names] for name, path in names.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in arrows[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in names:
        visit(name, ())


def test_modules_are_short():
    long = {str(path): count for path in MODULES if (count := len(path.read_text().splitlines())) > 300}
    assert not long
