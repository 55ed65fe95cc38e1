"""Whatever answers at a teacher's URL, the start goes on or ends in one sentence that names it.

The connection is real, the answers are generated.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from hostile import mutated
from hypothesis import given
from hypothesis import strategies as st

from recipe.prune_opd.config import TeacherConfig, TeacherUrlConfig
from recipe.prune_opd.teacher import urls

K = 2
TOKENS = list(range(urls.PROBE))  # so that all of them are the probe
STUDENT = SimpleNamespace(
    tokens={i: f"<{i}>" for i in TOKENS},
    tokenizer=SimpleNamespace(decode=lambda ids: f"<{ids[0]}>"),
)
MODELS = {"data": [{"id": "T", "max_model_len": 600}]}


def candidates(token: int) -> list[tuple[int, float]]:
    """The token itself, and the one before it."""
    return [(token, -0.5), (token - 1, -2.0)]


VLLM = {
    "choices": [
        {
            "prompt_logprobs": [
                None,
                *(
                    {
                        str(i): {"logprob": p, "rank": rank, "decoded_token": f"<{i}>"}
                        for rank, (i, p) in enumerate(candidates(token), 1)
                    }
                    for token in TOKENS[1:]
                ),
            ]
        }
    ]
}
SGLANG = {
    "meta_info": {
        "input_token_logprobs": [[None, 0, None], *([-0.5, i, None] for i in TOKENS[1:])],
        "input_top_logprobs": [
            None,
            *([[p, i, f"<{i}>"] for i, p in candidates(token)] for token in TOKENS[1:]),
        ],
    }
}
GOOD = {"vllm": VLLM, "sglang": SGLANG}
RAW = [b"", b"[]", b"null", b"5", b"\xff", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000]


class Answers(BaseHTTPRequestHandler):
    """Answers a GET with the list of models, a POST with scores."""

    models: bytes = b""
    scores: bytes = b""

    def do_GET(self) -> None:
        self.answer(self.models)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(self.scores)

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *given: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def refusal(url: str, api: str, models: Any, scores: Any) -> str | None:
    """The sentence that ends the start; None where it goes on."""
    written = (
        one if isinstance(one, bytes) else json.dumps(one).encode() for one in (models, scores)
    )
    Answers.models, Answers.scores = written
    given = TeacherConfig(path="T", home="url", url=TeacherUrlConfig(urls=[url], api=api))
    try:
        urls.check_urls(given, K, STUDENT, len(TOKENS), 499)
    except ValueError as error:
        return str(error)
    return None


def is_sentence(said: str | None, url: str) -> bool:
    begins = said is None or said.startswith("prune_opd.teacher.url.")
    return begins and (said is None or (url in said and "\n" not in said and len(said) < 5000))


both = pytest.mark.parametrize("api", ["vllm", "sglang"])


@both
def test_the_answers_that_are_changed_are_good(url, api):
    assert refusal(url, api, MODELS, GOOD[api]) is None


@both
@pytest.mark.parametrize("raw", RAW, ids=lambda raw: raw[:8].decode("latin-1") or "nothing")
def test_what_is_no_answer_at_all_is_one_sentence(url, api, raw):
    for models, scores in ((raw, GOOD[api]), (MODELS, raw)):
        said = refusal(url, api, models, scores)
        assert said is not None
        assert is_sentence(said, url)


@both
@given(models=st.one_of(st.just(MODELS), mutated(MODELS)), data=st.data())
def test_an_answer_of_any_form_is_one_sentence(url, api, models, data):
    scores = data.draw(mutated(GOOD[api]))
    assert is_sentence(refusal(url, api, models, scores), url)
