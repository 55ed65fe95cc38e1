"""A rule of a user's own is found by its name, and a wrong name or parameter is one sentence."""

import sys
from dataclasses import dataclass

import pytest

from recipe.prune_opd.method.registry import Registry


class Rule:
    """What all rules are."""


@dataclass
class Plain(Rule):
    size: int = 3


class Asserting(Rule):
    def __init__(self, size: int):
        assert size > 3


@dataclass
class Strict(Rule):
    threshold: float
    size: int = 1

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"size: got {self.size}, allowed: >= 1")


class Other:
    """No rule."""


RULES: Registry[Rule] = Registry("prune_opd.rule", Rule, plain=Plain, late=f"{__name__}:Strict")
MINE = f"{__name__}:Strict"


def build(name: str, args: dict | None = None, **keys: object) -> Rule:
    return RULES.build(name, args or {}, "prune_opd.args", keys)


@pytest.mark.parametrize("name", ["late", MINE])
def test_parameters_come_from_args_and_from_keys_of_the_same_name(name):
    assert build(name, {"size": 2}, threshold=0.7, unrelated=1) == Strict(0.7, 2)
    assert build("plain", threshold=0.7) == Plain(3)


def test_short_names_are_listed():
    assert list(RULES) == ["plain", "late"]


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("other", {}, r"rule: got 'other', allowed: plain, late, or package\.module:Name"),
        ("no.such.module:Rule", {}, "rule: no.such.module:Rule cannot be imported .ModuleNotFound"),
        (f"{__name__}:Missing", {}, "cannot be imported .AttributeError"),
        (f"{__name__}:Other", {}, r"Other', allowed: a subclass of .*\.Rule$"),
        (f"{__name__}:MINE", {}, r"MINE', allowed: a subclass of .*\.Rule$"),
        ("plain", {"width": 1}, r"args\.width: plain has no such parameter, it has: size$"),
        (MINE, {"threshold": 1}, r"args\.threshold: threshold is a key of its own, give that"),
        (f"{__name__}:Asserting", {"size": 2}, r"args: .*refuses {'size': 2} .assert 2 > 3"),
        (MINE, {"size": 0}, r"args: .*refuses .*size: got 0, allowed: >= 1"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(name, args, said):
    with pytest.raises(ValueError, match=rf"^prune_opd\..*{said}") as refused:
        build(name, args, threshold=0.5)
    assert "\n" not in str(refused.value)


def test_a_parameter_without_a_value_is_named():
    with pytest.raises(ValueError, match=r"^prune_opd\.args\.threshold: no value was given"):
        build(MINE)


def test_a_module_that_fails_when_it_is_imported_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken_rules.py").write_text("raise OSError('no such\\nlibrary')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"broken_rules:A cannot be imported .OSError") as refused:
        build("broken_rules:A")
    assert "\n" not in str(refused.value)
    sys.modules.pop("broken_rules", None)
