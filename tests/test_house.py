"""Every module can be read in one go, and imports nothing but what is below it."""

import ast
import graphlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("recipe", "verl_ext", "hydra_plugins")
MODULE_LINES, FUNCTION_LINES, CHARACTERS, PARAMETERS = 350, 40, 100, 7
ORDER = (
    ("verl_ext",),
    ("conf", "method", "grading"),
    ("config",),
    ("checks", "records"),
    ("teacher",),
    ("training",),
    ("commands",),
    ("plugin", "__main__"),
    ("hydra_plugins",),
)
"""Packages and parts of the recipe; one imports those of its own line and above."""
RANKS = {name: rank for rank, names in enumerate(ORDER) for name in names}

SETTLED = {"topk_policy_loss"}
"""Functions whose parameters users' code knows by now: they stay as they are."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


# -------------------------------------------------------------------------------------------- rules


def long_modules(root: Path) -> Iterator[str]:
    """Modules of more than ``MODULE_LINES`` lines."""
    for name, path in modules(root).items():
        lines = len(path.read_text().splitlines())
        if lines > MODULE_LINES:
            yield f"{name}: {lines} lines"


def long_lines(root: Path) -> Iterator[str]:
    """Lines of more than ``CHARACTERS``; the linter lets those without a space pass."""
    for name, path in modules(root).items():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if len(line) > CHARACTERS:
                yield f"{name}, line {number}: {len(line)} characters"


def long_functions(root: Path) -> Iterator[str]:
    """Functions of more than ``FUNCTION_LINES`` lines, from ``def`` on, docstring included."""
    for name, function in functions(root):
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > FUNCTION_LINES:
            yield f"{name}: {function.name} has {lines} lines"


def wide_functions(root: Path) -> Iterator[str]:
    """Functions of more than ``PARAMETERS``, but for ``self`` and ``cls``."""
    for name, function in functions(root):
        given = function.args
        named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        rest = [one for one in (given.vararg, given.kwarg) if one]
        count = sum(one.arg not in ("self", "cls") for one in named) + len(rest)
        if count > PARAMETERS and function.name not in SETTLED:
            yield f"{name}: {function.name} has {count} parameters"


def upward_imports(root: Path) -> Iterator[str]:
    """Imports against ``ORDER``."""
    for name, imported in imports(root).items():
        for other in sorted(imported):
            if RANKS.get(part(name), 0) < RANKS.get(part(other), 0):
                yield f"{name} imports {other}"


def unknown_parts(root: Path) -> Iterator[str]:
    """Modules that are in no part that ``ORDER`` has."""
    for name in modules(root):
        if name != "recipe.prune_opd" and part(name) not in RANKS:
            yield name


def circles(root: Path) -> Iterator[str]:
    """A circle of modules that import each other, at the top or in a function."""
    try:
        graphlib.TopologicalSorter(imports(root)).prepare()
    except graphlib.CycleError as error:
        yield " -> ".join(error.args[1])


def modules_without_a_promise(root: Path) -> Iterator[str]:
    """Test modules that do not begin with a docstring."""
    for path in sorted((root / "tests").rglob("test_*.py")):
        if not ast.get_docstring(ast.parse(path.read_text())):
            yield str(path.relative_to(root))


def twin_test_modules(root: Path) -> Iterator[str]:
    """Test modules of one name: pytest takes the second for the first and collects neither."""
    found = Counter(path.name for path in (root / "tests").rglob("test_*.py"))
    yield from (name for name, count in found.items() if count > 1)


# ------------------------------------------------------------------------------------------- source


def modules(root: Path) -> dict[str, Path]:
    """Name -> file of the packages' modules."""
    found = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    # What pip leaves behind is no module of ours.
    files = [path for path in found if "build" not in path.relative_to(root).parts]
    names = (path.relative_to(root).with_suffix("").parts for path in files)
    return {
        ".".join(name).removesuffix(".__init__"): path
        for name, path in zip(names, files, strict=True)
    }


def functions(root: Path) -> Iterator[tuple[str, Function]]:
    """Every function with its module's name, methods and inner ones too."""
    for name, path in modules(root).items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield name, node


def imports(root: Path) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, at the top or in a function."""
    known = modules(root)
    return {
        name: {
            target
            for node in executed(ast.parse(path.read_text()))
            for target in targets(node, known)
            if target != name
        }
        for name, path in known.items()
    }


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under ``if TYPE_CHECKING``."""
    yield node
    checked = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    for child in node.orelse if checked else ast.iter_child_nodes(node):
        yield from executed(child)


def targets(node: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """The modules among the known ones that a statement names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            if inner in known or node.module in known:
                yield inner if inner in known else str(node.module)


def part(name: str) -> str:
    """The part of the recipe that a module is in, or its package."""
    return name.removeprefix("recipe.prune_opd.").split(".")[0]


# -------------------------------------------------------------------------------------------- tests

RULES = (
    long_modules,
    long_lines,
    long_functions,
    wide_functions,
    upward_imports,
    unknown_parts,
    circles,
    modules_without_a_promise,
    twin_test_modules,
)
RECIPE = "recipe/prune_opd"
MANY = ", ".join("abcdefgh")
FAULTS = {
    long_modules: {f"{RECIPE}/method/loss.py": "x = 1\n" * 351},
    long_lines: {"verl_ext/topk.py": f"x = '{'y' * 95}'\n"},
    long_functions: {"verl_ext/topk.py": "@cache\ndef f():\n" + "    x = 1\n" * 40},
    wide_functions: {"verl_ext/topk.py": f"class A:\n    def f(self, {MANY}): ...\n"},
    upward_imports: {
        "verl_ext/topk.py": "import recipe.prune_opd.config\n",
        f"{RECIPE}/config.py": "",
    },
    unknown_parts: {f"{RECIPE}/served.py": ""},
    circles: {
        f"{RECIPE}/method/drift.py": "def f():\n    from recipe.prune_opd.method import loss\n",
        f"{RECIPE}/method/loss.py": "from recipe.prune_opd.method.drift import f\n",
    },
    modules_without_a_promise: {"tests/recipe/test_config.py": "import math\n"},
    twin_test_modules: {"tests/e2e/test_a.py": '"""A."""', "tests/recipe/test_a.py": '"""A."""'},
}
"""Rule -> the smallest tree of files that breaks it."""
ALLOWED = {
    "verl_ext/topk.py": f"@cache\ndef f({MANY[:-3]}):\n" + "    x = 1\n" * 39,
    f"{RECIPE}/method/loss.py": "if TYPE_CHECKING:\n    from recipe.prune_opd.config import C\n",
    f"{RECIPE}/config.py": "import recipe.prune_opd.method.loss\nimport verl_ext.topk\n" * 175,
    "tests/test_config.py": '"""Every key has a default."""\n',
}


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_its_rules(rule):
    assert list(rule(ROOT)) == []


@pytest.mark.parametrize("rule", RULES)
def test_a_planted_fault_is_found(rule, tmp_path):
    plant(tmp_path, FAULTS[rule])
    assert len(list(rule(tmp_path))) == 1


@pytest.mark.parametrize("rule", RULES)
def test_what_is_just_allowed_is_no_fault(rule, tmp_path):
    plant(tmp_path, ALLOWED)
    assert list(rule(tmp_path)) == []


def test_training_imports_no_command(tmp_path):
    plant(
        tmp_path,
        {
            f"{RECIPE}/training/worker.py": "from recipe.prune_opd.commands import html\n",
            f"{RECIPE}/commands/html.py": "from recipe.prune_opd.training.fields import F\n",
            f"{RECIPE}/training/fields.py": "",
        },
    )
    found = ["recipe.prune_opd.training.worker imports recipe.prune_opd.commands.html"]
    assert list(upward_imports(tmp_path)) == found
