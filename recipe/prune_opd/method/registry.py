"""Names of rules: a short one that is registered here, or ``package.module:Name`` of the user's own
package.

A rule is a class. What its constructor takes comes from ``.args`` of the configuration, and from
the key of the same name where there is one: a drift metric with a field ``threshold`` is given γ.
"""

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

Rule = TypeVar("Rule")
SHOWN = (bool, int, float, str, list, dict, type(None))
"""Parameters that a message shows: those that a configuration can hold."""


class Registry(Generic[Rule]):
    """Rules of one kind.

    Args:
        key: of the configuration that holds the name, for messages.
        base: every rule is a subclass of it.
        **known: short name -> class, or ``package.module:Name`` of one that takes long to import.
    """

    def __init__(self, key: str, base: type, **known: type[Rule] | str):
        self.key, self.base, self.known = key, base, known

    def __iter__(self) -> Iterator[str]:
        """Short names, in the order they are listed to users."""
        return iter(self.known)

    def find(self, name: str) -> type[Rule]:
        """The class behind a name.

        Raises:
            ValueError: there is no such name, module or class, or it is none of this kind.
        """
        found: Any = self.known.get(name, name)
        if isinstance(found, str):
            if ":" not in found:
                raise ValueError(f"{self.key}: got {name!r}, allowed: {self.allowed}")
            found = _imported(self.key, found)
        if not (isinstance(found, type) and issubclass(found, self.base)):
            base = f"{self.base.__module__}.{self.base.__name__}"
            raise ValueError(f"{self.key}: got {name!r}, allowed: a subclass of {base}")
        return cast(type[Rule], found)

    @property
    def allowed(self) -> str:
        """Names that are allowed, for messages and tables."""
        return f"{', '.join(self.known)}, or package.module:Name of your own"

    def build(
        self, name: str, args: Mapping[str, Any], args_key: str, keys: Mapping[str, Any]
    ) -> Rule:
        """The rule with its parameters.

        Args:
            name: as for ``find``.
            args: parameters by name.
            args_key: where ``args`` stand in the configuration, for messages.
            keys: values of the configuration's own keys, which the rule may ask for by name.

        Raises:
            ValueError: see ``find``; a parameter that the rule does not have, that is a key of its
                own, or that the rule lacks or refuses.
        """
        rule = self.find(name)
        takes = _parameters(rule)
        for each in args:
            if each in keys:
                raise ValueError(f"{args_key}.{each}: {each} is a key of its own, give that one")
            if each not in takes:
                allowed = ", ".join(one for one in takes if one not in keys) or "nothing"
                raise ValueError(
                    f"{args_key}.{each}: {name} has no such parameter, it has: {allowed}"
                )
        given = {each: keys[each] for each in takes if each in keys} | dict(args)
        lacking = [each for each, needed in takes.items() if needed and each not in given]
        if lacking:
            raise ValueError(f"{args_key}.{lacking[0]}: no value was given, needed by {name}")
        try:
            return rule(**given)
        except (TypeError, ValueError, ArithmeticError, AssertionError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            shown = {each: value for each, value in given.items() if isinstance(value, SHOWN)}
            raise ValueError(f"{args_key}: {name} refuses {shown} ({reason})") from error


def _parameters(rule: type) -> dict[str, bool]:
    """Parameters of a class by name: whether a value must be given."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(rule).parameters.values()
    return {each.name: each.default is each.empty for each in parameters if each.kind in named}


def _imported(key: str, name: str) -> Any:
    """Import what ``package.module:Name`` names.

    Raises:
        ValueError: it cannot be imported here.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module may raise what it likes when it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{key}: {name} cannot be imported ({reason}), needed: a module"
            " that every node can import, in the working directory or on PYTHONPATH"
        ) from error
