"""Fingerprints of stages: SHA-256 over the code that a stage reaches, definition by definition.

From a stage's script and recipe class on, every function, class and constant of `scripts/` and `quantune/` that is
named is followed through imports. The frame of all jobs (`FRAME`) is left out. So
are comments, docstrings, annotations of functions, what is printed and the texts of errors. A definition that moves to
another module, or is imported under another name, keeps its fingerprint.
"""

import ast
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FRAME = ("quantune.artefacts", *(f"quantune.core.{name}" for name in ("errors", "gpu_turns", "hardware", "recipe")))
APART = {"read"}
"""Methods that another stage calls: the report reads what an evaluation wrote."""
Symbol = tuple[str, str]
"""Module and name."""


class Module:
    """The definitions of one file."""

    def __init__(self, name: str, text: str):
        self.name = name
        self.imports: dict[str, str] = {}
        self.parts: dict[str, list[ast.stmt]] = {}
        """Name -> the statements that define it; what defines none is under the empty name."""
        for node in ast.parse(text).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self.imports |= imported(node)
            elif isinstance(node, ast.ClassDef):
                for method in [item for item in node.body if getattr(item, "name", "") in APART]:
                    node.body.remove(method)
                    self.parts[f"{node.name}.{method.name}"] = [method]
                self.parts[node.name] = [node]
            elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
                for name in defined(node) or [""]:
                    self.parts.setdefault(name, []).append(node)


def imported(node: ast.AST) -> dict[str, str]:
    """Return local name -> dotted path of what a statement imports from quantune."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "quantune":
        return {item.asname or item.name: f"{node.module}.{item.name}" for item in node.names}
    return {}


def defined(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a module defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [item.id for target in targets if target for item in ast.walk(target) if isinstance(item, ast.Name)]


class Code:
    """The code of the project, or of a changed copy of it."""

    def __init__(self, change: Callable[[str, str], str] = lambda path, text: text):
        """Read all modules; `change(path, text)` gives the text to use."""
        self.modules = {}
        for folder in ("quantune", "scripts"):
            for path in sorted((ROOT / folder).rglob("*.py")):
                relative = str(path.relative_to(ROOT))
                name = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                self.modules[name] = Module(name, change(relative, path.read_text()))
        self.templates = "".join(path.read_text() for path in sorted((ROOT / "report").glob("*.j*")))
        self.seen: dict[Symbol, tuple[str, set[Symbol]]] = {}

    def fingerprint(self, script: str, recipe: type | None = None) -> str:
        """Return the fingerprint of a stage with this script, and with this class of recipe."""
        waiting = [(f"scripts.{script}", name) for name in self.modules[f"scripts.{script}"].parts]
        waiting += [(recipe.__module__, recipe.__name__)] if recipe else []
        if script == "report":
            names = ((name, part) for name, module in self.modules.items() for part in module.parts)
            waiting += [(name, part) for name, part in names if part.partition(".")[2] in APART]
        reached: set[Symbol] = set()
        while waiting:
            symbol = waiting.pop()
            if symbol not in reached:
                reached.add(symbol)
                waiting += self._read(symbol)[1]
        texts = sorted(self._read(symbol)[0] for symbol in reached)
        return hashlib.sha256("\n".join([*texts, self.templates if script == "report" else ""]).encode()).hexdigest()

    def _read(self, symbol: Symbol) -> tuple[str, set[Symbol]]:
        """Return the structure of a definition, and the definitions that it names."""
        if symbol not in self.seen:
            module, uses = self.modules[symbol[0]], set()
            nodes = module.parts.get(symbol[1], []) + (module.parts.get("", []) if symbol[1] else [])
            texts = [repr(Reader(self, module, node, uses).structure(node)) for node in nodes]
            self.seen[symbol] = "\n".join(texts), uses
        return self.seen[symbol]

    def resolve(self, path: str) -> Symbol | None:
        """Return the module and name of a dotted path, through modules that pass names on; None for a module."""
        if path in self.modules or path.startswith(FRAME):
            return None
        module, _, name = path.rpartition(".")
        if module not in self.modules:
            return None
        passed_on = self.modules[module].imports.get(name)
        return self.resolve(passed_on) if passed_on else (module, name)


class Reader:
    """Reads one definition of a module; collects what it uses."""

    def __init__(self, code: Code, module: Module, node: ast.stmt, uses: set[Symbol]):
        self.code, self.module, self.uses = code, module, uses
        self.names = dict(module.imports)
        for item in ast.walk(node):
            self.names |= imported(item)

    def structure(self, node):
        """Return a syntax tree as nested lists, without what does not change its meaning."""
        if isinstance(node, list):
            return [self.structure(item) for item in node if not self._is_mute(item)]
        if not isinstance(node, ast.AST):
            return node
        if isinstance(node, ast.Raise):
            return ["Raise"]
        if isinstance(node, ast.Attribute) and (path := self._dotted(node)):
            return ["Symbol", path]
        if isinstance(node, ast.Name) and (path := self._named(node.id)):
            return ["Symbol", path]
        of_function = isinstance(node, (ast.FunctionDef, ast.arg))
        fields = [
            [name, self.structure(value)]
            for name, value in ast.iter_fields(node)
            if value not in (None, []) and not (of_function and name in ("annotation", "returns"))
        ]
        return [type(node).__name__, fields]

    def _is_mute(self, node) -> bool:
        """Return whether a statement is a docstring, an import, or prints."""
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return True
        value = node.value if isinstance(node, ast.Expr) else None
        prints = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print"
        return prints or (isinstance(value, ast.Constant) and isinstance(value.value, str))

    def _named(self, name: str) -> str | None:
        """Return the last part of the definition that a name stands for, and note it; None for any other name."""
        if name in self.names:
            path = self.names[name]
        elif name in self.module.parts:
            path = f"{self.module.name}.{name}"
        else:
            return None
        return self._noted(path)

    def _dotted(self, node: ast.Attribute) -> str | None:
        if isinstance(node.value, ast.Name) and (path := self.names.get(node.value.id)) in self.code.modules:
            return self._noted(f"{path}.{node.attr}")
        return None

    def _noted(self, path: str) -> str:
        if symbol := self.code.resolve(path):
            self.uses.add(symbol)
        return path.rpartition(".")[2]


def stages() -> Iterator[tuple[str, int, str, type | None]]:
    """Yield each stage with its version, its script and its class of recipe."""
    from quantune import evaluations, exports, finetunings, quantizations
    from quantune.evaluations.benchmark import Benchmark
    from quantune.planning.plan import VERSIONS

    for name, version in VERSIONS.items():
        yield name, version, name, None
    yield "benchmark", Benchmark.version, "benchmark", Benchmark
    for script, tag, recipes in (
        ("quantize", "method", quantizations.methods()),
        ("train", "method", finetunings.methods()),
        ("evaluate", "kind", evaluations.kinds()),
        ("export", "format", exports.formats()),
    ):
        for recipe in recipes:
            yield f"{script}/{recipe.model_fields[tag].annotation.__args__[0]}", recipe.version, script, recipe
