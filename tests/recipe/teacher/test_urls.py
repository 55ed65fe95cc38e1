"""What a start says of a teacher behind URLs is said without its key and its control characters.

Servers answer what the test says. Real ones: e2e/test_url.py.
"""

import logging
from types import SimpleNamespace

import pytest

from recipe.prune_opd.config import TeacherConfig, TeacherUrlConfig
from recipe.prune_opd.teacher import urls
from verl_ext.rollout.url_teacher import UrlTeacher

STUDENT = SimpleNamespace(
    tokens={i: f"<{i}>" for i in range(100)},
    tokenizer=SimpleNamespace(decode=lambda ids: f"<{ids[0]}>"),
)


def check(monkeypatch: pytest.MonkeyPatch, url: str, key: str = "secret") -> None:
    async def examine(self: UrlTeacher, url: str, probe: list[int], topk: int) -> tuple[dict, dict]:
        return {"T": 500}, {i: f"<{i}>" for i in probe}

    monkeypatch.setattr(UrlTeacher, "examine", examine)
    monkeypatch.setenv("TEST_TEACHER_KEY", key)
    given = TeacherUrlConfig(urls=[url], api_key_env="TEST_TEACHER_KEY" if key else None)
    urls.check_urls(TeacherConfig(path="T", home="url", url=given), 16, STUDENT, 100, 499)


@pytest.mark.parametrize(
    ("url", "key", "warned"),
    [
        ("http://10.0.0.1:8000", "secret", True),
        ("http://10.0.0.1:8000", "", False),
        ("https://10.0.0.1:8000", "secret", False),
        ("http://127.0.0.1:8000", "secret", False),
        ("http://[::1]:8000", "secret", False),
        ("http://localhost", "secret", False),
    ],
)
def test_a_key_that_others_can_read_on_its_way_is_warned_of(
    monkeypatch, caplog, url: str, key: str, warned: bool
):
    with caplog.at_level(logging.WARNING, logger=urls.__name__):
        check(monkeypatch, url, key)
    assert (f"the API key is sent to {url} without encryption" in caplog.text) is warned
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x81", "holds no certificates ("),
        (b"", "holds no certificates ("),
        (b"text", "holds no certificates ("),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "holds no certificates",
        ),
        (None, "does not exist, allowed: a file in PEM format"),
    ],
)
def test_a_file_of_certificates_that_holds_none_is_named(tmp_path, content, reason):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    given = TeacherUrlConfig(urls=["https://a"], ca_file=str(file))
    with pytest.raises(ValueError, match=r"prune_opd\.teacher\.url\.ca_file") as error:
        urls.url_teacher(TeacherConfig(path="T", home="url", url=given))
    assert f"{file} {reason}" in str(error.value)
    assert "\n" not in str(error.value)


def refused(monkeypatch: pytest.MonkeyPatch, models: dict, texts: dict[int, str]) -> str:
    """The sentence by which a start ends where a server answers so."""

    async def examine(self: UrlTeacher, url: str, probe: list[int], topk: int) -> tuple[dict, dict]:
        return models, texts

    monkeypatch.setattr(UrlTeacher, "examine", examine)
    monkeypatch.setenv("TEST_TEACHER_KEY", "sk-4fQ81zWtY0aB3x")
    given = TeacherUrlConfig(urls=["http://localhost"], api_key_env="TEST_TEACHER_KEY")
    with pytest.raises(ValueError, match=r"^prune_opd\.teacher\.url") as found:
        urls.check_urls(TeacherConfig(path="T", home="url", url=given), 16, STUDENT, 100, 499)
    assert found.value.__cause__ is found.value.__context__ is None
    return str(found.value)


@pytest.mark.parametrize("echo", ["sk-4fQ81zWtY0aB3x", "Bearer sk-4fQ 81zWtY0 aB3x", "4fQ81zWt"])
def test_what_a_server_serves_is_told_without_the_key(monkeypatch, echo: str):
    for models, texts in (({echo: 500}, {}), ({"T": 500}, {7: echo})):
        said = refused(monkeypatch, models, texts)
        assert "(not shown" in said
        assert "4fQ" not in said


def test_what_a_server_serves_moves_no_cursor(monkeypatch):
    said = refused(monkeypatch, {"other\x1b[2J\n": 500}, {})
    assert "serves other\\u001b[2J, not T" in said
    said = refused(monkeypatch, {"T": 500}, {7: "\x1b[2J"})
    assert "\x1b" not in said
