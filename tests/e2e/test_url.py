"""A teacher behind a URL: a real `vllm serve` on loopback, asked by the client, by the start check and in training."""

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import SimpleNamespace

import aiohttp
import harness
import pytest
import torch
from transformers import AutoModelForCausalLM

from recipe.prune_opd.config import TeacherConfig, TeacherUrlConfig
from recipe.prune_opd.inputs import Model
from recipe.prune_opd.urls import check_urls
from verl_ext.rollout.scoring import ResponseScorer
from verl_ext.rollout.url_teacher import UrlTeacher

pytestmark = pytest.mark.e2e

K, CONTEXT, KEY = 16, 320, "key-of-the-test"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Its URL, and the folders of student and teacher."""
    folder = tmp_path_factory.mktemp("url")
    harness.build_inputs(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(folder / "noisy"), "--port", str(port)]
    command += ["--dtype", "float32", "--max-model-len", str(CONTEXT), "--max-logprobs", str(K), "--enforce-eager"]
    environment = os.environ | {
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_API_KEY": KEY,
    }
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait(f"http://127.0.0.1:{port}/health", process)
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", folder=folder, model=str(folder / "noisy"))
    finally:
        harness.end_children(process)


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


def sequences(count: int) -> list[tuple[list[int], list[int]]]:
    """Random prompts and responses of every length from 1 to ``count``."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = len(harness.task.VOCABULARY)
    return [
        (
            torch.randint(10, vocabulary, (20,), generator=generator).tolist(),
            torch.randint(10, vocabulary, (length,), generator=generator).tolist(),
        )
        for length in range(1, count + 1)
    ]


def test_scores_are_those_of_transformers(server):
    model = AutoModelForCausalLM.from_pretrained(server.model)
    teacher = UrlTeacher([server.url], server.model, "vllm", KEY)
    asked = sequences(40)

    async def main():
        scorer = ResponseScorer(teacher, K, len(harness.task.VOCABULARY), concurrency=16, deadline=60, retries=0)
        try:
            return await asyncio.gather(*(scorer.score(*one) for one in asked))
        finally:
            await teacher._session.close()

    for (prompt, response), (rows, sampled, report) in zip(asked, asyncio.run(main()), strict=True):
        assert (report.missing, report.failed, report.error) == (0, 0, "")
        with torch.no_grad():
            log_probs = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        close = {"atol": 1e-4, "rtol": 0}
        torch.testing.assert_close(torch.tensor(rows.log_probs), log_probs.topk(K).values, **close)
        torch.testing.assert_close(
            log_probs.gather(1, torch.tensor(rows.ids).long()), log_probs.topk(K).values, **close
        )
        own = log_probs.gather(1, torch.tensor(response).unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(torch.tensor(sampled), own, **close)


def check(server, longest: int = CONTEXT, topk: int = K, **url) -> None:
    os.environ["TEST_TEACHER_KEY"] = KEY
    given = {"urls": [server.url], "api_key_env": "TEST_TEACHER_KEY"} | url
    teacher = TeacherConfig(path=server.model, home="url", url=TeacherUrlConfig(**given))
    student = Model("student", str(server.folder / "student"), False, None, None)
    check_urls(teacher, topk, student, len(harness.task.VOCABULARY), longest)


def test_a_server_that_fits_passes_the_start_check(server):
    check(server)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"longest": CONTEXT + 1}, f"has a context of {CONTEXT} tokens, needed: {CONTEXT + 1}"),
        ({"topk": K + 1}, f"with {K + 1} log-probs"),
        ({"model": "another"}, "not another"),
        ({"api": "sglang"}, "does not score as sglang does"),
        ({"api_key_env": None}, "answers 401"),
        ({"urls": ["http://127.0.0.1:9"]}, "http://127.0.0.1:9 does not score"),
    ],
)
def test_one_that_does_not_is_refused(server, given, said):
    with pytest.raises(ValueError, match=said) as error:
        check(server, **given)
    assert KEY not in str(error.value)


def test_another_tokenizer_is_noticed(server, monkeypatch):
    monkeypatch.setattr("recipe.prune_opd.urls._check_texts", swapped(server))
    with pytest.raises(ValueError, match=r"writes token \d+ as .*, the student's tokenizer as"):
        check(server)


def swapped(server):
    """The check with a student two of whose tokens have changed places."""
    from recipe.prune_opd import urls

    original = urls._check_texts

    def checked(url, texts, student):
        decode, (a, b) = student.tokenizer.decode, list(texts)[:2]
        student.tokenizer = SimpleNamespace(decode=lambda ids: decode([{a: b, b: a}.get(ids[0], ids[0])]))
        original(url, texts, student)

    return checked


def test_an_error_of_the_server_is_an_error_and_no_key_is_in_it(server):
    teacher = UrlTeacher([server.url], server.model, "vllm", KEY)

    async def main():
        try:
            await teacher.score(list(range(10, 30)) * 20, 5, K)
        finally:
            await teacher._session.close()

    with pytest.raises(aiohttp.ClientError, match="answers 400") as error:
        asyncio.run(main())
    assert KEY not in str(error.value) + repr(teacher)


def test_training_with_it(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_TEACHER_KEY", KEY)
    settings = {
        "prune_opd.teacher.path": server.model,
        "prune_opd.teacher.home": "url",
        "prune_opd.teacher.url.urls": f"[{server.url}]",
        "prune_opd.teacher.url.api_key_env": "TEST_TEACHER_KEY",
        "prune_opd.strategy": "sampled",
        "trainer.total_training_steps": 2,
    }
    run = harness.run(server.folder, tmp_path, settings)
    assert run.returncode == 0, run.output[-5000:]
    assert run.metric("teacher/missing_ratio") == [0, 0]
    assert KEY not in run.output
    student, teacher = (AutoModelForCausalLM.from_pretrained(server.folder / name) for name in ("student", "noisy"))
    (dump,) = run.dump(1)
    for i, length in enumerate(dump["lengths"].tolist()):
        prompt, response = dump["prompts"][i], dump["responses"][i, :length].long()
        prompt = prompt[prompt != student.config.pad_token_id]
        with torch.no_grad():
            log_probs = teacher(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        own = log_probs.gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(dump["teacher_sampled_log_probs"][i, :length], own, atol=1e-4, rtol=0)
