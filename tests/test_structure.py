"""The house rules that no linter knows: layers, printing, the environment, sizes, names, packages.

Each rule is a function from a source file, or from the whole tree, to a list of faults. The tree
must have none; a made-up tree with one fault must show it.
"""

import ast
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 500
MAX_FILES = 297  # without __init__.py and tests

# What a room may import of ours, by dotted prefix.
LAYERS = {
    "ops": ("ops",),
    "profiles": ("profiles", "ops"),
    "devices": ("devices", "ops"),
    "runtime": ("runtime", "profiles", "devices.base", "ops"),
    "gpt2": ("gpt2", "runtime", "ops"),
    "tools": ("tools", "gpt2", "runtime", "profiles", "devices", "ops"),
}
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "misc"}
TERMINAL_MODULES = ("rich", "typer", "sys.stdout", "sys.stderr")
ENVIRONMENT_NAMES = ("os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv")
ENVIRONMENT_READERS = {"tools/cli.py", "devices/registry.py"}
# Other implementations to compare with: run by hand or in a child process, never imported by ours.
PEER_MODULES = ("torch", "transformers")
PEER_SCRIPTS = {
    "tools/make_oracle.py",
    "tools/check_export.py",
    "tools/peer_ops.py",
    "tools/peer_training.py",
}


@dataclass(frozen=True, slots=True)
class Source:
    """One Python file of the tree."""

    path: str  # from the root, with slashes
    text: str

    @property
    def room(self) -> str:
        return self.path.partition("/")[0]

    @property
    def stem(self) -> str:
        return Path(self.path).stem


def read_sources(root: Path) -> list[Source]:
    return [
        Source(file.relative_to(root).as_posix(), file.read_text(encoding="utf-8"))
        for room in (*LAYERS, "tests")
        for file in sorted((root / room).rglob("*.py"))
    ]


def is_within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def imported_names(text: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of every import, also of `import_module` with a literal.

    A relative import keeps its dots.
    """
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = "." * level + (f"{module}." if module else "")
                yield from ((node.lineno, base + alias.name) for alias in names)
            case ast.Call(
                func=ast.Name("import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(str(name)), *_],
            ):
                yield node.lineno, name


def used_names(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of every import and of every attribute of a plain name, such as os.environ."""
    yield from imported_names(text)
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Attribute(value=ast.Name(owner), attr=attr):
                yield node.lineno, f"{owner}.{attr}"


def layer_faults(source: Source) -> list[str]:
    if source.room == "tests":
        return []
    allowed = LAYERS[source.room]
    faults = []
    for line, name in imported_names(source.text):
        place = f"{source.path}:{line}"
        ours = name.removeprefix("aieflow.")
        if name.startswith(".") or is_within(name, tuple(LAYERS)):
            faults.append(f"{place} imports {name}: write aieflow.… in full")
        elif is_within(name, ("aieflow",)) and not is_within(ours, allowed):
            faults.append(f"{place} imports {name}: {source.room} may import {', '.join(allowed)}")
    return faults


def print_faults(source: Source) -> list[str]:
    if source.room in ("tools", "tests"):
        return []
    calls = [
        (node.lineno, "print")
        for node in ast.walk(ast.parse(source.text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    uses = [use for use in used_names(source.text) if is_within(use[1], TERMINAL_MODULES)]
    return [
        f"{source.path}:{line} uses {name}: only tools print" for line, name in sorted(calls + uses)
    ]


def environment_faults(source: Source) -> list[str]:
    if source.room == "tests" or source.path in ENVIRONMENT_READERS:
        return []
    return [
        f"{source.path}:{line} uses {name}: only {' and '.join(sorted(ENVIRONMENT_READERS))} may"
        for line, name in used_names(source.text)
        if is_within(name, ENVIRONMENT_NAMES)
    ]


def peer_faults(source: Source) -> list[str]:
    if source.path in PEER_SCRIPTS:
        return []
    return [
        f"{source.path}:{line} imports {name}: only {' and '.join(sorted(PEER_SCRIPTS))} may"
        for line, name in imported_names(source.text)
        if is_within(name, PEER_MODULES)
    ]


def shape_faults(source: Source) -> list[str]:
    faults = []
    lines = source.text.count("\n") + (not source.text.endswith("\n"))
    if lines > MAX_LINES:
        faults.append(f"{source.path} has {lines} lines, more than {MAX_LINES}")
    for part in source.path.removesuffix(".py").replace("_", "/").split("/"):
        if part in VAGUE_NAMES:
            faults.append(f"{source.path} is named {part!r}: name the concept")
    if source.stem == "__init__" and len(ast.parse(source.text).body) > 1:
        faults.append(f"{source.path} holds code: it is a map of its folder, a docstring")
    return faults


def count_faults(root: Path) -> list[str]:
    files = [s for s in read_sources(root) if s.room != "tests" and s.stem != "__init__"]
    if len(files) > MAX_FILES:
        return [f"{len(files)} source files, more than {MAX_FILES}"]
    return []


def packaging_faults(root: Path) -> list[str]:
    """Packages are the same in pyproject's two lists, on disk and among the checkers' links."""
    with (root / "pyproject.toml").open("rb") as file:
        setuptools = tomllib.load(file)["tool"]["setuptools"]
    packages, folders = setuptools["packages"], setuptools["package-dir"]
    on_disk = {
        "aieflow." + ".".join(marker.parent.relative_to(root).parts)
        for room in LAYERS
        for marker in (root / room).rglob("__init__.py")
    }
    faults = []
    if len(set(packages)) != len(packages):
        faults.append("packages lists one twice")
    for name in sorted(on_disk | set(packages) | set(folders)):
        places = {"packages": packages, "package-dir": folders, "disk": on_disk}
        missing = [place for place, names in places.items() if name not in names]
        if missing:
            faults.append(f"{name} is missing in {' and '.join(missing)}")
    for name, folder in folders.items():
        if folder != name.removeprefix("aieflow.").replace(".", "/"):
            faults.append(f"package-dir maps {name} to {folder}")
    links = {link.name: link for link in (root / ".src" / "aieflow").iterdir()}
    for room in sorted(set(LAYERS) | set(links)):
        link = links.get(room)
        if link is None or not link.is_symlink() or link.readlink() != Path("../..", room):
            faults.append(f".src/aieflow/{room} is not a link to ../../{room}")
        if not (root / room / "py.typed").is_file():
            faults.append(f"{room}/py.typed is missing")
    return faults


FILE_RULES: tuple[Callable[[Source], list[str]], ...] = (
    layer_faults,
    print_faults,
    environment_faults,
    peer_faults,
    shape_faults,
)
TREE_RULES: tuple[Callable[[Path], list[str]], ...] = (count_faults, packaging_faults)


@pytest.mark.parametrize("rule", FILE_RULES, ids=lambda rule: rule.__name__)
def test_every_file_obeys(rule: Callable[[Source], list[str]]) -> None:
    sources = read_sources(ROOT)
    assert {source.room for source in sources} == {*LAYERS, "tests"}
    assert [fault for source in sources for fault in rule(source)] == []


@pytest.mark.parametrize("rule", TREE_RULES, ids=lambda rule: rule.__name__)
def test_the_tree_obeys(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == []


def fault_of(rule: Callable[[Source], list[str]], root: Path, path: str, text: str) -> str:
    """What `rule` finds in a tree of this one file: its only fault, or nothing."""
    file = root / path
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    (source,) = read_sources(root)
    faults = rule(source)
    assert len(faults) <= 1
    return "".join(faults)


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("ops/a.py", "import aieflow.runtime.plan", "a.py:1 imports aieflow.runtime.plan"),
        ("ops/cpu/a.py", "\nfrom aieflow import devices", "a.py:2 imports aieflow.devices"),
        ("ops/a.py", "def f():\n    from aieflow.gpt2 import x", "a.py:2 imports aieflow.gpt2.x"),
        ("ops/a.py", "import_module('aieflow.tools.cli')", "imports aieflow.tools.cli"),
        ("profiles/a.py", "from aieflow.devices.base import Device", "may import profiles, ops"),
        ("devices/a.py", "from aieflow.profiles.cost import Cost", "may import devices, ops"),
        ("runtime/a.py", "from aieflow.devices.cpu import Cpu", "imports aieflow.devices.cpu.Cpu"),
        ("runtime/a.py", "import aieflow.devices", "imports aieflow.devices:"),
        ("runtime/a.py", "import aieflow.devices.base_camp", "aieflow.devices.base_camp"),
        ("gpt2/a.py", "from aieflow.devices.base import Device", "may import gpt2, runtime, ops"),
        ("gpt2/a.py", "from aieflow.profiles import cost", "may import gpt2, runtime, ops"),
        ("gpt2/a.py", "from aieflow import tools", "imports aieflow.tools"),
        ("tools/a.py", "import aieflow", "imports aieflow:"),
        ("tools/a.py", "from ops.spec import Spec", "imports ops.spec.Spec: write aieflow"),
        ("tools/a.py", "from .cli import main", "imports .cli.main: write aieflow"),
        ("tools/a.py", "from . import cli", "imports .cli: write aieflow"),
        ("runtime/a.py", "from aieflow.devices.base import Device", ""),
        ("runtime/policies/a.py", "from aieflow.devices import base", ""),
        ("tools/a.py", "import aieflow.devices.npu, numpy, operator", ""),
        ("tests/a.py", "import aieflow.ops, aieflow.devices.cpu", ""),
    ],
)
def test_imports_go_down_only(tmp_path: Path, path: str, text: str, fault: str) -> None:
    found = fault_of(layer_faults, tmp_path, path, text)
    assert fault in found
    assert bool(found) == bool(fault)


@pytest.mark.parametrize(
    ("rule", "path", "text", "fault"),
    [
        (print_faults, "ops/a.py", "\n\nprint('x')", "a.py:3 uses print: only tools print"),
        (print_faults, "gpt2/a.py", "from rich.progress import Progress", "rich.progress.Progress"),
        (print_faults, "gpt2/a.py", "import typer", "uses typer"),
        (print_faults, "runtime/a.py", "import sys\nsys.stderr.write('x')", "sys.stderr"),
        (print_faults, "runtime/a.py", "from sys import stdout", "sys.stdout"),
        (print_faults, "runtime/a.py", "'''print(x)'''\nimport richness\nlog.print()", ""),
        (print_faults, "tools/a.py", "import rich\nprint('x')", ""),
        (environment_faults, "gpt2/a.py", "import os\nos.environ['X']", "a.py:2 uses os.environ"),
        (environment_faults, "tools/bench.py", "os.getenv('X')", "os.getenv"),
        (environment_faults, "ops/a.py", "from os import environ", "os.environ"),
        (environment_faults, "gpt2/cli.py", "os.environ.get('X')", "os.environ"),
        (environment_faults, "tools/cli.py", "os.environ['X'] = 'y'", ""),
        (environment_faults, "devices/registry.py", "os.environ.get('X')", ""),
        (environment_faults, "ops/a.py", "import os\nos.cpu_count()", ""),
        (peer_faults, "gpt2/a.py", "import torch", "a.py:1 imports torch: only tools/"),
        (peer_faults, "tests/test_a.py", "from torch.nn import Linear", "torch.nn.Linear"),
        (peer_faults, "tools/a.py", "importlib.import_module('transformers')", "transformers"),
        (peer_faults, "tools/a.py", "__import__('torch')", "torch"),
        (peer_faults, "gpt2/make_oracle.py", "import torch", "torch"),
        (peer_faults, "tools/make_oracle.py", "import torch", ""),
        (peer_faults, "tools/a.py", "import torchlight", ""),
        (shape_faults, "ops/a.py", "'''A.'''\n" + "\n" * 500, "501 lines, more than 500"),
        (shape_faults, "ops/a.py", "'''A.'''" + "\nx = 1" * 500, "501 lines, more than 500"),
        (shape_faults, "tests/test_a.py", "'''A.'''\n" + "\n" * 500, "501 lines, more than 500"),
        (shape_faults, "ops/a.py", "'''A.'''\n" + "\n" * 499, ""),
        (shape_faults, "gpt2/utils.py", "'''A.'''", "named 'utils'"),
        (shape_faults, "ops/common/a.py", "'''A.'''", "named 'common'"),
        (shape_faults, "runtime/lane_manager.py", "'''A.'''", "named 'manager'"),
        (shape_faults, "runtime/commonality.py", "'''A.'''", ""),
        (shape_faults, "ops/__init__.py", "'''A.'''\nimport numpy", "holds code"),
        (shape_faults, "ops/__init__.py", "'''A.'''\n", ""),
    ],
)
def test_a_fault_in_a_file_is_found(
    tmp_path: Path, rule: Callable[[Source], list[str]], path: str, text: str, fault: str
) -> None:
    found = fault_of(rule, tmp_path, path, text)
    assert fault in found
    assert bool(found) == bool(fault)


def test_too_many_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "ops").mkdir()
    for name in ("__init__", *(f"op{i}" for i in range(MAX_FILES))):
        (tmp_path / "ops" / f"{name}.py").touch()
    assert count_faults(tmp_path) == []
    (tmp_path / "ops" / "one_more.py").touch()
    assert count_faults(tmp_path) == [f"{MAX_FILES + 1} source files, more than {MAX_FILES}"]


def make_packaged_tree(root: Path) -> None:
    (root / ".src" / "aieflow").mkdir(parents=True)
    for room in LAYERS:
        (root / room).mkdir()
        (root / room / "__init__.py").touch()
        (root / room / "py.typed").touch()
        (root / ".src" / "aieflow" / room).symlink_to(Path("../..", room))
    packages = [f'"aieflow.{room}"' for room in LAYERS]
    folders = [f'"aieflow.{room}" = "{room}"' for room in LAYERS]
    (root / "pyproject.toml").write_text(
        f"[tool.setuptools]\npackages = [{', '.join(packages)}]\n"
        "[tool.setuptools.package-dir]\n" + "\n".join(folders) + "\n"
    )


def edit_pyproject(root: Path, old: str, new: str) -> None:
    file = root / "pyproject.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def add_package(root: Path) -> None:
    (root / "ops" / "npu").mkdir()
    (root / "ops" / "npu" / "__init__.py").touch()


def replace_link(root: Path) -> None:
    link = root / ".src" / "aieflow" / "gpt2"
    link.unlink()
    link.symlink_to("../../ops")


@pytest.mark.parametrize(
    ("break_it", "fault"),
    [
        (add_package, "aieflow.ops.npu is missing in packages and package-dir"),
        (lambda root: (root / "ops" / "__init__.py").unlink(), "aieflow.ops is missing in disk"),
        (
            lambda root: edit_pyproject(root, '"aieflow.gpt2", ', ""),
            "aieflow.gpt2 is missing in packages",
        ),
        (
            lambda root: edit_pyproject(root, '"aieflow.gpt2" = "gpt2"\n', ""),
            "aieflow.gpt2 is missing in package-dir",
        ),
        (
            lambda root: edit_pyproject(root, '= "gpt2"', '= "ops"'),
            "package-dir maps aieflow.gpt2 to ops",
        ),
        (
            lambda root: edit_pyproject(root, '"aieflow.ops"', '"aieflow.ops", "aieflow.ops"'),
            "packages lists one twice",
        ),
        (
            lambda root: (root / ".src" / "aieflow" / "tools").unlink(),
            ".src/aieflow/tools is not a link to ../../tools",
        ),
        (replace_link, ".src/aieflow/gpt2 is not a link to ../../gpt2"),
        (lambda root: (root / "ops" / "py.typed").unlink(), "ops/py.typed is missing"),
    ],
)
def test_a_fault_in_the_packaging_is_found(
    tmp_path: Path, break_it: Callable[[Path], None], fault: str
) -> None:
    make_packaged_tree(tmp_path)
    assert packaging_faults(tmp_path) == []
    break_it(tmp_path)
    assert packaging_faults(tmp_path) == [fault]
