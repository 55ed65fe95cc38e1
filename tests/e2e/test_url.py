"""A teacher behind a URL scores as one at home, or the start check refuses it.

The server is a real `vllm serve` or SGLang server on loopback.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contract
import harness
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from recipe.prune_opd.checks.models import Model
from recipe.prune_opd.config import TeacherConfig, TeacherUrlConfig
from recipe.prune_opd.teacher.urls import check_urls
from verl_ext.rollout.rows import RESERVED, BadQuestion
from verl_ext.rollout.url_teacher import UrlTeacher

pytestmark = pytest.mark.e2e

K, CONTEXT, KEY = contract.K, 320, "key-of-the-test"
MOST = CONTEXT - RESERVED[harness.ENGINE]
"""Tokens that the server can score."""


def vllm_serve(model: str) -> list[str]:
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, "--api-key", KEY]
    return [*command, "--max-model-len", str(CONTEXT), "--max-logprobs", str(K), "--enforce-eager"]


def sglang_server(model: str) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "sglang.launch_server",
        "--model-path",
        model,
        "--api-key",
        KEY,
    ]
    return [*command, "--context-length", str(CONTEXT)]


COMMAND = {"vllm": vllm_serve, "sglang": sglang_server}
OTHER = {"vllm": "sglang", "sglang": "vllm"}[harness.ENGINE]


def is_free(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def serve(folder: Path, dtype: str) -> Iterator[SimpleNamespace]:
    """A server's URL, and the folders of student and teacher."""
    # SGLang takes the one 10,000 above, too.
    port = next(port for port in range(21000, 22000) if is_free(port))
    command = [
        *COMMAND[harness.ENGINE](str(folder / "noisy")),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        dtype,
    ]
    environment = os.environ | {
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    with (folder / f"{dtype}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        wait(f"http://127.0.0.1:{port}/health", process)
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{port}", folder=folder, model=str(folder / "noisy")
        )
    finally:
        harness.end_children(process)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """In float32, where log-probs can be compared."""
    folder = tmp_path_factory.mktemp("url")
    harness.build_inputs(folder)
    with serve(folder, "float32") as started:
        yield started


def wait(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail("the server did not start")


def asking(server, body: Callable[[UrlTeacher], Awaitable[Any]]) -> Any:
    """What ``body`` gives of the teacher on that server."""

    async def main() -> Any:
        os.environ["TEST_TEACHER_KEY"] = KEY
        teacher = UrlTeacher([server.url], server.model, harness.ENGINE, "TEST_TEACHER_KEY")
        try:
            return await body(teacher)
        finally:
            await teacher._http.close()

    return asyncio.run(main())


@contract.each
def test_what_every_teacher_promises(server, check):
    model = AutoModelForCausalLM.from_pretrained(server.model).eval()
    asking(server, lambda teacher: check(teacher, model, MOST))


def test_bfloat16_agrees_within_its_precision(server):
    """The bound that docs/teachers.md states. Eight bits of mantissa: logits up to 16 are off by up
    to 1/16."""
    asked = contract.sequences(40)
    with serve(server.folder, "bfloat16") as coarse:
        exact, rough = (
            asking(which, lambda teacher: contract.score(teacher, asked))
            for which in (server, coarse)
        )
    pairs = list(zip(exact, rough, strict=True))
    apart = np.concatenate([np.abs(x[1] - y[1]) for x, y in pairs])
    shared = np.concatenate(
        [[len({*a} & {*b}) / K for a, b in zip(x[0].ids, y[0].ids, strict=True)] for x, y in pairs]
    )
    print(
        f"log-probs differ by {apart.mean():.4f} on average, {apart.max():.3f} at most;"
        f" {shared.mean():.3f}"
    )
    assert apart.mean() < 0.05
    assert apart.max() < 0.5
    assert shared.mean() > 0.9


def check(server, longest: int = MOST, topk: int = K, **url) -> None:
    os.environ["TEST_TEACHER_KEY"] = KEY
    given = {"urls": [server.url], "api": harness.ENGINE, "api_key_env": "TEST_TEACHER_KEY"} | url
    teacher = TeacherConfig(path=server.model, home="url", url=TeacherUrlConfig(**given))
    student = Model("student", str(server.folder / "student"), False, None, None)
    check_urls(teacher, topk, student, len(harness.walk.VOCABULARY), longest)


def test_a_server_that_fits_passes_the_start_check(server):
    check(server)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"longest": MOST + 1}, f"has a context of {CONTEXT} tokens, needed: {CONTEXT + 1}"),
        pytest.param(
            *({"topk": K + 1}, f"with {K + 1} log-probs"),
            marks=pytest.mark.skipif(harness.ENGINE == "sglang", reason="SGLang has no such limit"),
        ),
        ({"model": "another"}, "not another"),
        ({"api": OTHER}, f"does not score as {OTHER} does"),
        ({"api_key_env": None}, "answers 401"),
        ({"urls": ["http://127.0.0.1:9"]}, "http://127.0.0.1:9 does not score"),
    ],
)
def test_one_that_does_not_is_refused(server, given, said):
    with pytest.raises(ValueError, match=said) as error:
        check(server, **given)
    assert KEY not in str(error.value)


def test_another_tokenizer_is_noticed(server, monkeypatch):
    monkeypatch.setattr("recipe.prune_opd.teacher.urls._check_texts", swapped(server))
    with pytest.raises(ValueError, match=r"writes token \d+ as .*, the student's tokenizer as"):
        check(server)


def swapped(server):
    """The check with a student two of whose tokens have changed places."""
    from recipe.prune_opd.teacher import urls

    original = urls._check_texts

    def checked(asked, url, texts, student):
        decode, (a, b) = student.tokenizer.decode, list(texts)[:2]
        student.tokenizer = SimpleNamespace(
            decode=lambda ids: decode([{a: b, b: a}.get(ids[0], ids[0])])
        )
        original(asked, url, texts, student)

    return checked


def test_no_key_is_in_an_error_of_the_server(server):
    async def body(teacher: UrlTeacher) -> None:
        with pytest.raises(BadQuestion, match="answers 400") as error:
            await teacher.score(list(range(10, 30)) * 20, 5, K)
        assert KEY not in str(error.value) + repr(teacher)

    asking(server, body)


@pytest.mark.slow
def test_training_with_it(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_TEACHER_KEY", KEY)
    settings = {
        "prune_opd.teacher.path": server.model,
        "prune_opd.teacher.home": "url",
        "prune_opd.teacher.url.urls": f"[{server.url}]",
        "prune_opd.teacher.url.api": harness.ENGINE,
        "prune_opd.teacher.url.api_key_env": "TEST_TEACHER_KEY",
        "prune_opd.strategy": "sampled",
        "trainer.total_training_steps": 2,
    }
    run = harness.run(server.folder, tmp_path, settings)
    assert run.returncode == 0, run.output[-5000:]
    assert run.metric("teacher/missing_ratio") == [0, 0]
    assert KEY not in run.output
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(server.folder / name) for name in ("student", "noisy")
    )
    (dump,) = run.dump(1)
    for i, length in enumerate(dump["lengths"].tolist()):
        prompt, response = dump["prompts"][i], dump["responses"][i, :length].long()
        prompt = prompt[prompt != student.config.pad_token_id]
        with torch.no_grad():
            log_probs = (
                teacher(torch.cat([prompt, response])[None])
                .logits[0, len(prompt) - 1 : -1]
                .log_softmax(-1)
            )
        own = log_probs.gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(
            dump["teacher_sampled_log_probs"][i, :length], own, atol=1e-4, rtol=0
        )
