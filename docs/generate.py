"""Write what is made from the code: the recipe's keys for Hydra, and tables of the documentation.

    python docs/generate.py             # after a change of config/ or of checks/
    python docs/generate.py --check     # only say what is stale, exit code 1

Between the markers ``generated: NAME`` and ``end`` of a file stands what the function NAME returns.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from recipe.prune_opd import config
from recipe.prune_opd.checks import settings
from recipe.prune_opd.checks.drift_weights import DRIFT_WEIGHTS_SETTINGS
from recipe.prune_opd.checks.engines import TRAINING_ENGINES, numbers_of
from recipe.prune_opd.checks.kinds import KINDS
from recipe.prune_opd.checks.numbers import NUMBERS, OPTIONAL, Range
from recipe.prune_opd.config import allowed_values
from recipe.prune_opd.method.budget import BUDGETS
from recipe.prune_opd.method.drift import METRICS
from recipe.prune_opd.method.gates import GATES
from recipe.prune_opd.method.registry import Registry
from recipe.prune_opd.method.reward import STRATEGIES, WEIGHTINGS
from recipe.prune_opd.method.weights import WEIGHTS
from recipe.prune_opd.teacher.home import HOMES

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "recipe/prune_opd/conf/recipe/prune_opd_base.yaml": "#",
    "docs/configuration.md": "<!--",
    "docs/teachers.md": "<!--",
    "docs/records.md": "<!--",
    "docs/semi.md": "<!--",
    "docs/drift_weights.md": "<!--",
}
"""Files with generated parts, and how a marker begins in them."""
NAMES: dict[str, Registry[Any]] = {
    registry.key.removeprefix("prune_opd."): registry
    for registry in (METRICS, WEIGHTS, STRATEGIES, WEIGHTINGS, GATES, BUDGETS, HOMES)
}
"""Keys that hold the name of a registered rule."""


def recipe_keys() -> str:
    """``prune_opd.*`` with the recipe's values, as yaml."""
    return OmegaConf.to_yaml(OmegaConf.create({"prune_opd": _values(config.PruneOPDConfig)}))


def _values(group: type[BaseModel]) -> dict[str, Any]:
    """The recipe's value of each key of a group, itself a dictionary where it is a group."""
    found: dict[str, Any] = {}
    for name, field in group.model_fields.items():
        if inner := _group(field):
            found[name] = _values(inner)
        elif (value := recipe_value(field)) is not config.ELSEWHERE:
            found[name] = value
    return found


def recipe_value(field: FieldInfo) -> Any:
    """What the recipe gives a key: its default, or a key of verl's that it follows."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "recipe" in extra:
        return extra["recipe"]
    return field.get_default(call_default_factory=True)


def _group(field: FieldInfo) -> type[BaseModel] | None:
    """The keys of a group; None where the field is a single key."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def keys() -> str:
    """The table of all keys but those of servers, URLs, the gate and Semi-OPD."""
    own = ("teacher.server.", "teacher.url.", "gate.", "semi.")
    return _key_table(lambda key: not key.startswith(own))


def gate_keys() -> str:
    """The table of the gate's keys."""
    return _key_table(lambda key: key.startswith("gate."))


def semi_keys() -> str:
    """The table of the keys of Semi-OPD."""
    return _key_table(lambda key: key.startswith("semi."))


def server_keys() -> str:
    """The table of the keys of the teacher's servers."""
    return _key_table(lambda key: key.startswith("teacher.server."))


def records_keys() -> str:
    """The table of the keys of the records."""
    return _key_table(lambda key: key.startswith("records."))


def url_keys() -> str:
    """The table of the keys of a teacher behind URLs."""
    return _key_table(lambda key: key.startswith("teacher.url."))


def _key_table(wanted: Callable[[str], bool]) -> str:
    rows = [
        (f"`{key}`", _default(field), _allowed(key, field), _prose(field.description or ""))
        for key, field in _fields(config.PruneOPDConfig)
        if wanted(key)
    ]
    return _table(("key", "default", "allowed", "meaning"), rows)


def _fields(group: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every single key with its field."""
    for name, field in group.model_fields.items():
        if inner := _group(field):
            yield from _fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _default(field: FieldInfo) -> str:
    value = recipe_value(field)
    if value is config.ELSEWHERE:
        value = field.get_default(call_default_factory=True)
    if isinstance(value, str) and value.startswith("${"):
        return f"as `{value[2:].replace('}', '')}`"
    return f"`{_yaml(value)}`"


def _allowed(key: str, field: FieldInfo) -> str:
    if key in NAMES:
        return ", ".join(f"`{name}`" for name in NAMES[key]) + ", or your own"
    return _prose(allowed_values(field)).replace(">=", "≥")


def refused() -> str:
    """The table of verl's keys that are refused."""
    rows = [(f"`{each.key}`", _values_of(each), each.why) for each in settings.SETTINGS]
    return _table(("key", "allowed", "because"), rows)


def refused_by_engine() -> str:
    """The table of verl's keys that are refused with an engine of the training."""
    engines = {engine.group: engine for engine in TRAINING_ENGINES.values()}
    given = [setting for engine in engines.values() for setting in engine.settings]
    rows = [(f"`{each.key}`", _values_of(each), each.why) for each in given]
    return _table(("key", "allowed", "because"), rows)


def refused_with_gate() -> str:
    """The table of verl's keys that are refused with the gate."""
    rows = [(f"`{each.key}`", _values_of(each), each.why) for each in settings.GATE_SETTINGS]
    return _table(("key", "allowed", "because"), rows)


def refused_with_semi() -> str:
    """The table of verl's keys that are refused with Semi-OPD."""
    rows = [(f"`{each.key}`", _values_of(each), each.why) for each in settings.SEMI_SETTINGS]
    return _table(("key", "allowed", "because"), rows)


def refused_with_drift_weights() -> str:
    """The table of verl's keys that are refused with drift weights in verl's distillation."""
    rows = [(f"`{each.key}`", _values_of(each), each.why) for each in DRIFT_WEIGHTS_SETTINGS]
    return _table(("key", "allowed", "because"), rows)


def _values_of(setting: settings.Setting) -> str:
    return ", ".join(f"`{_yaml(value)}`" for value in setting.allowed)


def numbers() -> str:
    """The table of verl's keys that must be numbers, by what they may be."""
    by_words: dict[str, list[str]] = {}
    engines: dict[str, Range] = {}
    for engine in TRAINING_ENGINES.values():
        engines |= numbers_of(engine)
    for given, also in ((NUMBERS | engines, ""), (OPTIONAL, ", or null")):
        for key, allowed in given.items():
            by_words.setdefault(allowed.words.replace(">=", "≥") + also, []).append(f"`{key}`")
    return _table(("allowed", "keys"), [(words, ", ".join(k)) for words, k in by_words.items()])


def kinds() -> str:
    """The table of verl's keys that must be something else than numbers, by what they may be."""
    by_words: dict[str, list[str]] = {}
    for key, kind in KINDS.items():
        by_words.setdefault(kind.words, []).append(f"`{key}`")
    return _table(("allowed", "keys"), [(words, ", ".join(k)) for words, k in by_words.items()])


def _yaml(value: Any) -> str:
    """A value as one types it."""
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else str(value)


def _prose(text: str) -> str:
    """A docstring as Markdown in a cell."""
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def filled(text: str, comment: str) -> str:
    """A file with its generated parts made anew.

    Raises:
        KeyError: a marker names no function of this module.
    """
    start, end = ("# ", "") if comment == "#" else ("<!-- ", " -->")
    first, last = rf"({start}generated: (\w+){end}\n)", rf"(^{start}end{end}\n)"
    part = re.compile(f"{first}.*?{last}", re.DOTALL | re.MULTILINE)
    return part.sub(lambda m: m[1] + globals()[m[2]]().rstrip("\n") + "\n" + m[3], text)


def main() -> int:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check, stale = parser.parse_args().check, []
    for name, comment in FILES.items():
        old = (ROOT / name).read_text()
        new = filled(old, comment)
        if new != old:
            stale.append(name)
            if not check:
                (ROOT / name).write_text(new)
    print(f"{'stale' if check else 'written'}: {', '.join(stale) or 'nothing'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
