"""A teacher behind URLs gives the right rows in each dialect, or names what is wrong.

Connections are real; the servers are ours and answer as vLLM's and SGLang's do.
"""

import asyncio
import contextlib
import datetime
import functools
import gzip
import ipaddress
import json
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import cloudpickle
import numpy as np
import pytest
from aiohttp import web

from verl_ext.rollout.rotation import PATIENCE
from verl_ext.rollout.rows import BadQuestion, BadScore, NoServer, Score, check_shape
from verl_ext.rollout.url_teacher import BYTES, DIALECTS, OTHER_BYTES, UrlTeacher
from verl_ext.texts import shows

K, VOCAB, MODEL, CONTEXT = 3, 40, "org/teacher", 500
KEY, ENV = "sk-4fQ81zWtY0aB3x", "TEST_TEACHER_KEY"
both = pytest.mark.parametrize("dialect", ["vllm", "sglang"])


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV, KEY)


@functools.cache
def distribution(before: tuple[int, ...]) -> tuple[list[int], list[float]]:
    """All ids by falling probability, and their log-probs, after some tokens; none like those after
    others."""
    rng = np.random.default_rng((len(before), *before))
    log_probs = -np.sort(rng.random(VOCAB)) * 9
    log_probs -= np.log(np.exp(log_probs).sum())
    return rng.permutation(VOCAB).tolist(), log_probs.tolist()


def sequence(length: int, *ranks: int) -> list[int]:
    """Tokens of the given ranks in turn."""
    token_ids: list[int] = []
    for t in range(length):
        token_ids.append(distribution(tuple(token_ids))[0][ranks[t % len(ranks)] - 1])
    return token_ids


RANKS = (1, K, K + 1, 2, VOCAB, K + 2)
TEXT = sequence(20, *RANKS)
LAST = TEXT[7]
"""Stands for the last id of a vocabulary, which SGLang reports as 0."""


def text_of(token: int) -> str:
    return f"<{token}>"


def vllm_answer(body: dict[str, Any]) -> Any:
    """All rows, the token itself first in its row. JSON knows no other keys than strings."""
    token_ids, topk = body["prompt"], body["prompt_logprobs"]
    entries: list[Any] = [None]
    for t in range(1, len(token_ids)):
        ids, log_probs = distribution(tuple(token_ids[:t]))
        ranks = [ids.index(token_ids[t]), *range(topk)]
        values = [
            {"logprob": log_probs[r], "rank": r + 1, "decoded_token": text_of(ids[r])}
            for r in ranks
        ]
        entries.append({str(ids[r]): value for r, value in zip(ranks, values, strict=True)})
    return {"id": "cmpl-1", "choices": [{"index": 0, "text": "x", "prompt_logprobs": entries}]}


def sglang_answer(body: dict[str, Any]) -> Any:
    """Rows from the one that was asked for on, the first of them empty."""
    token_ids, start, topk = body["input_ids"], body["logprob_start_len"], body["top_logprobs_num"]

    def triple(t: int, rank: int) -> list[Any]:
        ids, log_probs = distribution(tuple(token_ids[:t]))
        return [
            log_probs[rank],
            ids[rank],
            text_of(ids[rank]) if body["return_text_in_logprobs"] else None,
        ]

    places = [
        (t, distribution(tuple(token_ids[:t]))[0].index(token_ids[t]))
        for t in range(start, len(token_ids))
    ]
    own: list[Any] = [triple(t, rank) for t, rank in places]
    top: list[Any] = [[triple(t, rank) for rank in range(topk)] for t, _ in places]
    for row, token in zip(own, token_ids[start:], strict=True):
        row[1] = 0 if token == LAST else row[1]
    own[0], top[0] = [None, token_ids[start], None], None
    return {"text": "x", "meta_info": {"input_token_logprobs": own, "input_top_logprobs": top}}


ANSWERS = {"vllm": vllm_answer, "sglang": sglang_answer}
PATHS = {"vllm": "/v1/completions", "sglang": "/generate"}
MODELS = {"object": "list", "data": [{"id": MODEL, "max_model_len": CONTEXT}, {"id": "adapter"}]}


class Server:
    """Knows a distribution for every context; ``faults`` are what it does instead, one a
    question."""

    def __init__(self, dialect: str, *faults: Any, models: Any = None):
        self.dialect, self.faults, self.models = dialect, list(faults), models
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.hold: asyncio.Event | None = None

    async def _question(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append((request.method, request.path, dict(request.headers), body))
        fault = self.faults.pop(0) if self.faults else None
        if self.hold is not None:
            await self.hold.wait()
        if isinstance(fault, int):
            return web.Response(status=fault, text="no such luck")
        if isinstance(fault, str):
            return web.Response(text=fault)
        if fault == ():
            request.transport.close()
        answer = ANSWERS[self.dialect](body)
        return web.json_response(fault(answer) if callable(fault) else answer)

    async def _models(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, request.path, dict(request.headers), None))
        return web.json_response(self.models or MODELS)

    @asynccontextmanager
    async def start(self, trust: ssl.SSLContext | None = None) -> AsyncIterator[str]:
        """Its URL."""
        app = web.Application()
        app.router.add_post(PATHS[self.dialect], self._question)
        app.router.add_get("/v1/models", self._models)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=trust).start()
            yield f"http{'s' if trust else ''}://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


def run(body: Callable[[UrlTeacher], Awaitable[Any]], *servers: Server, **given: Any) -> Any:
    """What ``body`` gives of a teacher on servers that run meanwhile."""

    async def main() -> Any:
        async with AsyncExitStack() as stack:
            urls = [await stack.enter_async_context(server.start()) for server in servers]
            teacher = UrlTeacher(urls, MODEL, servers[0].dialect, **given)
            try:
                return await body(teacher)
            finally:
                await close(teacher)

    return asyncio.run(main())


async def close(teacher: UrlTeacher) -> None:
    await teacher._http.close()


async def asked(
    teacher: UrlTeacher, token_ids: list[int] = TEXT, start: int = 7, topk: int = K
) -> Score:
    """An answer that passed the check of its shape, as any that is used."""
    score = await teacher.score(token_ids, start, topk)
    check_shape(score, len(token_ids) - start, topk)
    return score


def check(score: Score, token_ids: list[int], start: int, topk: int = K) -> None:
    """Every token from ``start`` on has the row of its own context."""
    rows = [distribution(tuple(token_ids[:t])) for t in range(start, len(token_ids))]
    own = [
        log_probs[ids.index(token)]
        for (ids, log_probs), token in zip(rows, token_ids[start:], strict=True)
    ]
    np.testing.assert_array_equal(score.rows.ids, [ids[:topk] for ids, _ in rows])
    np.testing.assert_array_equal(
        score.rows.log_probs, np.float32([values[:topk] for _, values in rows])
    )
    np.testing.assert_array_equal(score.sampled, np.float32(own))
    assert (score.rows.ids.dtype, score.rows.log_probs.dtype, score.sampled.dtype) == (
        np.int32,
        np.float32,
        np.float32,
    )
    assert (score.computed, score.ahead, score.private) == (len(token_ids), None, 0)


async def until(condition: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), 60)


# ------------------------------------------------------------------------------------------ answers


def test_every_dialect_is_spoken_here() -> None:
    assert {*DIALECTS} == {*ANSWERS}


@both
@pytest.mark.parametrize("start", [1, 2, 7, 19])
@pytest.mark.parametrize("topk", [1, K, 5])
def test_rows_are_those_of_the_tokens_from_the_start_on(
    dialect: str, start: int, topk: int
) -> None:
    score = run(lambda teacher: asked(teacher, start=start, topk=topk), Server(dialect))
    check(score, TEXT, start, topk)


@both
@pytest.mark.parametrize("rank", range(1, K + 3))
def test_rows_are_by_rank_whether_or_not_the_token_is_among_them(dialect: str, rank: int) -> None:
    token_ids = sequence(12, rank)
    if dialect == "vllm":
        (choice,) = vllm_answer({"prompt": token_ids, "prompt_logprobs": K})["choices"]
        sizes = {len(entry) for entry in choice["prompt_logprobs"][1:]}
        assert sizes == {K if rank <= K else K + 1}
    score = run(lambda teacher: asked(teacher, token_ids, 4), Server(dialect))
    check(score, token_ids, 4)
    assert (score.rows.ids == np.array(token_ids[4:])[:, None]).any(1).tolist() == [rank <= K] * 8


@pytest.mark.parametrize("backwards", [False, True])
def test_a_row_need_not_come_in_order(backwards: bool) -> None:
    def shuffled(answer: Any) -> Any:
        entries = answer["choices"][0]["prompt_logprobs"]
        entries[1:] = [dict(sorted(entry.items(), reverse=backwards)) for entry in entries[1:]]
        return answer

    check(run(asked, Server("vllm", shuffled)), TEXT, 7)


def test_vllm_is_asked_with_ids() -> None:
    server = Server("vllm")
    run(asked, server)
    ((method, path, headers, body),) = server.requests
    assert (method, path, headers["Content-Type"]) == (
        "POST",
        "/v1/completions",
        "application/json",
    )
    assert body == {
        "model": MODEL,
        "prompt": TEXT,
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": K,
    }


@pytest.mark.parametrize("start", [1, 7])
def test_sglang_is_asked_with_ids(start: int) -> None:
    """Its first row is always empty, so the rows begin one token early."""
    server = Server("sglang")
    run(lambda teacher: asked(teacher, start=start), server)
    ((method, path, headers, body),) = server.requests
    assert (method, path, headers["Content-Type"]) == ("POST", "/generate", "application/json")
    assert body == {
        "input_ids": TEXT,
        "sampling_params": {"max_new_tokens": 1, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": start - 1,
        "top_logprobs_num": K,
        "return_text_in_logprobs": False,
    }


def rows_in(answer: Any) -> tuple[list[Any], list[Any]]:
    """The lists of an answer that hold the tokens themselves and their candidates, one and the same
    with vLLM."""
    if "choices" in answer:
        entries = answer["choices"][0]["prompt_logprobs"]
        return entries, entries
    return answer["meta_info"]["input_token_logprobs"], answer["meta_info"]["input_top_logprobs"]


def without_own_log_prob(answer: Any) -> Any:
    own, _ = rows_in(answer)
    if "choices" in answer:
        (last,) = (value for value in own[-1].values() if value["rank"] > K)
        last["logprob"] = None
    else:
        own[-1][0] = None
    return answer


@both
def test_a_token_without_a_log_prob_of_its_own_is_no_number(dialect: str) -> None:
    token_ids = sequence(20, K + 1)
    score = run(lambda teacher: asked(teacher, token_ids), Server(dialect, without_own_log_prob))
    assert np.isnan(score.sampled).tolist() == [False] * 12 + [True]
    assert np.isfinite(score.rows.log_probs).all()


# ------------------------------------------------------------------------------------------- no use


def edit(change: Callable[[list[Any], list[Any]], Any]) -> Callable[[Any], Any]:
    """An answer with its lists changed."""

    def edited(answer: Any) -> Any:
        change(*rows_in(answer))
        return answer

    return edited


def fewer_candidates(answer: Any) -> Any:
    """As of a server that allows no more than K - 1."""
    if "choices" in answer:
        entries = answer["choices"][0]["prompt_logprobs"]
        entries[1:] = [{i: v for i, v in entry.items() if v["rank"] != K} for entry in entries[1:]]
    else:
        top = answer["meta_info"]["input_top_logprobs"]
        top[1:] = [row[:-1] for row in top[1:]]
    return answer


def one_candidate_less(answer: Any) -> Any:
    _, top = rows_in(answer)
    if "choices" in answer:
        top[-1] = {str(TEXT[-1]): top[-1][str(TEXT[-1])]}
    else:
        top[-1] = top[-1][:-1]
    return answer


NO_USE = {
    "nothing": lambda answer: None,
    "number": lambda answer: 3,
    "list": lambda answer: [],
    "empty": lambda answer: {},
    "error": lambda answer: {"error": {"message": "overloaded"}},
    "other dialect": lambda answer: (sglang_answer if "choices" in answer else vllm_answer)(
        {
            "input_ids": TEXT,
            "logprob_start_len": 6,
            "top_logprobs_num": K,
            "return_text_in_logprobs": True,
        }
        | {"prompt": TEXT, "prompt_logprobs": K}
    ),
    "not asked for": lambda answer: {"choices": [{"prompt_logprobs": None}], "meta_info": {}},
    "no choice": lambda answer: {"choices": [], "meta_info": None},
    "no rows": edit(lambda own, top: (own.clear(), top.clear())),
    "too short": edit(lambda own, top: (own.pop(), None if own is top else top.pop())),
    "too long": edit(
        lambda own, top: (own.append(own[-1]), None if own is top else top.append(top[-1]))
    ),
    "row too few": edit(lambda own, top: top.pop()),
    "row of nothing": edit(lambda own, top: top.__setitem__(-1, None)),
    "row of text": edit(lambda own, top: top.__setitem__(-1, "text")),
    "empty row": edit(lambda own, top: top.__setitem__(-1, {} if own is top else [])),
    "candidates of nothing": edit(
        lambda own, top: top.__setitem__(-1, dict.fromkeys(top[-1]) if own is top else [None] * K)
    ),
    "candidates without keys": edit(
        lambda own, top: top.__setitem__(
            -1, {key: {} for key in top[-1]} if own is top else [[]] * K
        )
    ),
    "fewer candidates": fewer_candidates,
    "one candidate less": one_candidate_less,
}


@both
@pytest.mark.parametrize("fault", NO_USE)
def test_an_answer_of_another_form_is_refused(dialect: str, fault: str) -> None:
    with pytest.raises(BadScore):
        run(asked, Server(dialect, NO_USE[fault]), api_key_env=ENV)


@both
@pytest.mark.parametrize("text", ["", "<html>busy</html>", '{"choices": ['])
def test_an_answer_that_is_no_json_is_refused(dialect: str, text: str) -> None:
    with pytest.raises(BadScore):
        run(asked, Server(dialect, text))


@both
def test_rows_of_other_tokens_are_refused(dialect: str) -> None:
    """As many as were asked for, but one token early."""

    def early(own: list[Any], top: list[Any]) -> None:
        for rows in [own] if own is top else [own, top]:
            rows.insert(1, rows[1])
            rows.pop()

    with pytest.raises(BadScore):
        run(asked, Server(dialect, edit(early)))


@both
def test_a_refusal_names_the_dialect(dialect: str) -> None:
    with pytest.raises(BadScore, match=f"an answer that is not {dialect}'s"):
        run(asked, Server(dialect, lambda answer: {}))


# ------------------------------------------------------------------------------------------- errors


@both
@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 429, 500, 503])
def test_an_error_names_the_server_its_status_and_its_reason(dialect: str, status: int) -> None:
    """And tells what the question is to blame for from what the server is."""

    async def body(teacher: UrlTeacher) -> None:
        with pytest.raises(
            BadQuestion if status in (400, 413, 422) else aiohttp.ClientError
        ) as error:
            await teacher.score(TEXT, 7, K)
        assert (
            str(error.value) == f"{teacher.urls[0]}{PATHS[dialect]} answers {status}: no such luck"
        )
        check(await asked(teacher), TEXT, 7)

    run(body, Server(dialect, status), api_key_env=ENV)


@both
def test_a_long_reason_is_cut(dialect: str) -> None:
    class Verbose(Server):
        async def _question(self, request: web.Request) -> web.Response:
            return web.Response(status=500, text="x" * 100_000)

    with pytest.raises(aiohttp.ClientError) as error:
        run(asked, Verbose(dialect))
    assert len(str(error.value)) < 1000


@both
def test_a_server_that_hangs_up_is_an_error(dialect: str) -> None:
    with pytest.raises(aiohttp.ClientError):
        run(asked, Server(dialect, ()), api_key_env=ENV)


@both
def test_a_server_that_is_not_there_is_an_error(dialect: str) -> None:
    async def main() -> str:
        async with Server(dialect).start() as url:
            pass
        teacher = UrlTeacher([url], MODEL, dialect)
        try:
            with pytest.raises(aiohttp.ClientError) as error:
                await teacher.score(TEXT, 7, K)
            assert url.removeprefix("http://") in str(error.value)
        finally:
            await close(teacher)

    asyncio.run(main())


# ------------------------------------------------------------------------------------------ the key


@both
def test_the_key_is_a_bearer_token_of_every_request(dialect: str) -> None:
    async def body(teacher: UrlTeacher) -> None:
        await teacher.examine(teacher.urls[0], TEXT, K)
        await teacher.score(TEXT, 7, K)

    server = Server(dialect)
    run(body, server, api_key_env=ENV)
    assert [headers.get("Authorization") for _, _, headers, _ in server.requests] == [
        f"Bearer {KEY}"
    ] * 3


@both
@pytest.mark.parametrize("key", [None, ""])
def test_without_a_key_none_is_sent(dialect: str, key: str | None) -> None:
    server = Server(dialect)
    run(asked, server, api_key_env=key)
    assert "Authorization" not in server.requests[0][2]


def assert_hidden(error: BaseException) -> None:
    """The key, and the halves of it, are in no part of an error that somebody might log."""
    seen: BaseException | None = error
    while seen is not None:
        said = f"{seen!r} {seen} {vars(seen)} {getattr(seen, 'request_info', '')}"
        assert not shows(said, KEY)
        seen = seen.__cause__ or seen.__context__


REPEATS = {
    "as it is": lambda text: text,
    "in lines": lambda text: "\n".join(text),
    "in two": lambda text: f"{text[: len(text) // 2]} ... {text[len(text) // 2 :]}",
    "as JSON": lambda text: "".join(f"\\u{ord(letter):04x}" for letter in text),
    "in a URL": lambda text: "".join(f"%{ord(letter):02x}" for letter in text),
    "in HTML": lambda text: "".join(f"&#{ord(letter)};" for letter in text),
    "cut": lambda text: "x" * 280 + text,
    "loud": str.upper,
}


@both
@pytest.mark.parametrize("write", REPEATS.values(), ids=REPEATS)
def test_the_key_is_in_no_error_even_where_the_server_repeats_it(
    dialect: str, write: Callable[[str], str]
) -> None:
    class Parrot(Server):
        async def _question(self, request: web.Request) -> web.Response:
            return web.Response(status=401, text=write(request.headers["Authorization"]))

    with pytest.raises(aiohttp.ClientError, match=r"answers 401: \(not shown") as error:
        run(asked, Parrot(dialect), api_key_env=ENV)
    assert_hidden(error.value)


@pytest.mark.parametrize("part", ["id", "log-prob"])
def test_the_key_in_the_place_of_a_number_is_not_shown(part: str) -> None:
    def echo(answer: Any) -> Any:
        own, _ = rows_in(answer)
        if part == "id":
            own[9][f"Bearer {KEY}"] = own[9].pop(str(TEXT[9]))
        else:
            own[9][str(TEXT[9])]["logprob"] = f"Bearer {KEY}"
        return answer

    with pytest.raises(BadScore, match="not shown") as error:
        run(asked, Server("vllm", echo), api_key_env=ENV)
    assert_hidden(error.value)


@both
@pytest.mark.parametrize("fault", [401, 400, (), "no JSON", lambda answer: {}])
def test_no_error_holds_the_key(dialect: str, fault: Any) -> None:
    """aiohttp's have the request with its headers, JSON's the whole text."""
    with pytest.raises(Exception) as error:  # noqa: PT011  # whatever it is
        run(asked, Server(dialect, fault), api_key_env=ENV)
    assert_hidden(error.value)


@both
def test_the_key_is_in_no_pickle_before_or_after_use(dialect: str) -> None:
    async def body(teacher: UrlTeacher) -> None:
        before = cloudpickle.dumps(teacher)
        await asked(teacher)
        for sent in (before, cloudpickle.dumps(teacher), repr(teacher).encode()):
            assert KEY.encode() not in sent

    run(body, Server(dialect), api_key_env=ENV)


def test_who_asks_without_the_variable_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV)
    server = Server("vllm")
    with pytest.raises(NoServer, match=f"no variable {ENV} with the API key, needed on every node"):
        run(asked, server, api_key_env=ENV)
    assert not server.requests


# ------------------------------------------------------------------------------- hostile servers


@both
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(dialect: str, status: int) -> None:
    other = Server(dialect)

    async def main() -> None:
        async with other.start() as elsewhere:

            class Redirecting(Server):
                async def _question(self, request: web.Request) -> web.Response:
                    return web.Response(status=status, headers={"Location": elsewhere})

            async with Redirecting(dialect).start() as url:
                teacher = UrlTeacher([url], MODEL, dialect, ENV)
                said = rf"^{url}{PATHS[dialect]} answers {status}, a redirect .* not followed"
                with pytest.raises(aiohttp.ClientError, match=said):
                    await asked(teacher)
                await close(teacher)

    asyncio.run(main())
    assert not other.requests


def long_answers(dialect: str, status: int, sent: list[int]) -> Server:
    """Answers without an end; ``sent`` counts the bytes that were taken."""

    class Long(Server):
        async def _question(self, request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(status=status)
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                while sum(sent) < 10**9:
                    await response.write(b" " * 2**16)
                    sent.append(2**16)
            return response

    return Long(dialect)


@both
@pytest.mark.parametrize(("status", "kind"), [(200, BadScore), (500, aiohttp.ClientError)])
def test_no_more_is_read_than_an_answer_needs(dialect: str, status: int, kind: type) -> None:
    sent: list[int] = []
    with pytest.raises(kind, match=r"more than the|answers 500"):
        run(asked, long_answers(dialect, status, sent))
    most = OTHER_BYTES + BYTES * len(TEXT) * (K + 1)
    assert sum(sent) < most + 2**24  # what lies in the sockets' buffers comes on top


def test_a_compressed_answer_is_refused_unread() -> None:
    class Bomb(Server):
        async def _question(self, request: web.Request) -> web.Response:
            self.requests.append(("", "", dict(request.headers), None))
            body = gzip.compress(b" " * 10**7)
            return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    server = Bomb("vllm")
    with pytest.raises(BadScore, match="compressed"):
        run(asked, server)
    assert server.requests[0][2]["Accept-Encoding"] == "identity"


@both
def test_the_longest_honest_answer_is_read(dialect: str) -> None:
    """Texts of 100 characters at every candidate."""

    def texts(answer: Any) -> Any:
        return json.loads(json.dumps(answer).replace("<", "<" + "x" * 100))

    check(run(asked, Server(dialect, texts)), TEXT, 7)


def test_what_nests_too_deep_is_no_json() -> None:
    with pytest.raises(BadScore, match="no JSON"):
        run(asked, Server("vllm", "[" * 200_000))


@pytest.mark.parametrize("value", ["1.5", "4294967297", "1e300", "NaN", "1" * 400])
def test_an_id_that_is_no_int32_is_no_id(value: str) -> None:
    def odd(answer: Any) -> Any:
        answer["meta_info"]["input_top_logprobs"][-1][0][1] = json.loads(value)
        return answer

    try:
        score = run(asked, Server("sglang", odd))
    except BadScore:
        return
    assert score.rows.ids[-1, 0] == -1


# ------------------------------------------------------------------------------------- many servers


def counts(*servers: Server) -> list[int]:
    return [len(server.requests) for server in servers]


def test_many_questions_are_under_way_at_once() -> None:
    """Who asks bounds them, not the client."""
    server, count = Server("sglang"), 150

    async def body(teacher: UrlTeacher) -> None:
        server.hold = asyncio.Event()
        tasks = [asyncio.create_task(asked(teacher)) for _ in range(count)]
        await until(lambda: len(server.requests) == count)
        server.hold.set()
        assert len(await asyncio.gather(*tasks)) == count

    run(body, server)


async def outcomes(teacher: UrlTeacher, count: int) -> list[type]:
    """Of questions one after another."""
    return [
        type((await asyncio.gather(asked(teacher), return_exceptions=True))[0])
        for _ in range(count)
    ]


@both
@pytest.mark.parametrize(
    "fault", [500, 429, (), "no JSON"], ids=["error", "busy", "hangs up", "garbage"]
)
def test_where_a_server_fails_the_others_are_asked(dialect: str, fault: Any) -> None:
    servers = [Server(dialect, *[fault] * 99), Server(dialect), Server(dialect)]

    async def body(teacher: UrlTeacher) -> None:
        kinds = await outcomes(teacher, 60)
        assert kinds.count(Score) >= 59
        assert counts(*servers)[0] <= 1
        assert min(counts(*servers)[1:]) > 0

    run(body, *servers)


def test_a_lone_server_is_asked_again_whatever_it_did() -> None:
    server = Server("vllm", *[500] * 9)
    assert (
        run(lambda teacher: outcomes(teacher, 11), server)
        == [aiohttp.ClientError] * 9 + [Score] * 2
    )


@both
def test_a_server_that_is_never_heard_of_is_out(dialect: str) -> None:
    server = Server(dialect)

    async def body(teacher: UrlTeacher) -> None:
        server.hold = asyncio.Event()
        for _ in range(PATIENCE):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asked(teacher), 0.1)
        with pytest.raises(NoServer):
            await asked(teacher)
        server.hold.set()

    run(body, server)


# ---------------------------------------------------------------------------------- other processes


@both
def test_it_can_be_sent_to_another_process_before_it_is_used(dialect: str) -> None:
    async def body(teacher: UrlTeacher) -> None:
        sent = cloudpickle.loads(cloudpickle.dumps(teacher))
        assert sent == teacher
        try:
            check(await asked(sent), TEXT, 7)
        finally:
            await close(sent)

    run(body, Server(dialect), api_key_env=ENV)


@both
def test_it_can_be_sent_after_it_has_examined(dialect: str) -> None:
    async def body(teacher: UrlTeacher) -> None:
        await teacher.examine(teacher.urls[0], TEXT, K)
        assert cloudpickle.loads(cloudpickle.dumps(teacher)) == teacher
        check(await asked(teacher), TEXT, 7)

    run(body, Server(dialect))


# -------------------------------------------------------------------------------------- examination


def examined(
    server: Server, probe: list[int] = TEXT, **given: Any
) -> tuple[dict[str, int | None], dict[int, str]]:
    return run(lambda teacher: teacher.examine(teacher.urls[0], probe, K), server, **given)


@both
def test_an_examination_tells_models_contexts_and_texts(dialect: str) -> None:
    server = Server(dialect)
    models, texts = examined(server)
    assert models == {MODEL: CONTEXT, "adapter": None}
    seen = {i for t in range(1, len(TEXT)) for i in distribution(tuple(TEXT[:t]))[0][:K]}
    if dialect == "vllm":
        seen |= {*TEXT[1:]}
    assert texts == {i: text_of(i) for i in seen}
    assert [path for _, path, _, _ in server.requests] == ["/v1/models", PATHS[dialect]]
    body = server.requests[1][3]
    assert body["prompt" if dialect == "vllm" else "input_ids"] == TEXT


@both
def test_where_the_model_is_not_served_nothing_is_scored(dialect: str) -> None:
    models = {"data": [{"id": "another", "max_model_len": 7}]}
    server = Server(dialect, models=models)
    assert examined(server) == ({"another": 7}, {})
    assert len(server.requests) == 1


@both
@pytest.mark.parametrize(
    "fault", ["fewer candidates", "one candidate less", "too short", "too long", "empty"]
)
def test_an_examination_refuses_answers_that_would_be_no_use(dialect: str, fault: str) -> None:
    with pytest.raises(BadScore):
        examined(Server(dialect, NO_USE[fault]))


@both
def test_an_examination_refuses_logits(dialect: str) -> None:
    """vLLM reports them where it is started with another logprobs_mode."""

    def logits(answer: Any) -> Any:
        return json.loads(
            re.sub(r"-\d+\.\d+", lambda number: str(20 + float(number[0])), json.dumps(answer))
        )

    with pytest.raises(BadScore, match="logits"):
        examined(Server(dialect, logits))


def test_what_vllm_writes_for_minus_infinity_is_that() -> None:
    def impossible(answer: Any) -> Any:
        answer["choices"][0]["prompt_logprobs"][9][str(TEXT[9])]["logprob"] = -9999.0
        return answer

    score = run(asked, Server("vllm", impossible))
    assert np.isneginf(score.sampled).tolist() == [t == 9 for t in range(7, len(TEXT))]


@both
def test_texts_are_asked_for_in_an_examination_only(dialect: str) -> None:
    """A server that writes them for every candidate of a training's tokens has much to do."""

    async def body(teacher: UrlTeacher) -> None:
        await teacher.examine(teacher.urls[0], TEXT, K)
        await teacher.score(TEXT, 7, K)

    server = Server(dialect)
    run(body, server)
    texts = [sent.get("return_text_in_logprobs") for *_, sent in server.requests[1:]]
    assert texts == ([True, False] if dialect == "sglang" else [None, None])


@both
def test_an_examination_raises_the_servers_errors(dialect: str) -> None:
    with pytest.raises(BadQuestion, match="answers 400: no such luck") as error:
        examined(Server(dialect, 400), api_key_env=ENV)
    assert_hidden(error.value)


def test_a_server_of_the_other_dialect_does_not_know_the_path() -> None:
    async def main() -> None:
        async with Server("vllm").start() as url:
            with pytest.raises(aiohttp.ClientError, match=rf"^{url}/generate answers 404"):
                await UrlTeacher([url], MODEL, "sglang").examine(url, TEXT, K)

    asyncio.run(main())


# -------------------------------------------------------------------------------------------- https


def by_cryptography(key_file: Path, certificate_file: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "teacher")])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    )
    builder = builder.serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
    certificate = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    encoding = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(encoding, *plain))
    certificate_file.write_bytes(certificate.public_bytes(encoding))


def by_openssl(key_file: Path, certificate_file: Path) -> None:
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=teacher",
    ]
    command += [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(key_file),
        "-out",
        str(certificate_file),
    ]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed one of 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    files = folder / "key.pem", folder / "certificate.pem"
    for make in (by_cryptography, by_openssl):
        try:
            make(*files)
            return files[1], files[0]
        except (ImportError, OSError, subprocess.CalledProcessError):
            continue
    pytest.skip("no way to make a certificate: neither cryptography nor openssl")


async def over_https(certificate: tuple[Path, Path], dialect: str, ca_file: Path | None) -> Score:
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.load_cert_chain(*certificate)
    async with Server(dialect).start(trust) as url:
        teacher = UrlTeacher([url], MODEL, dialect, ENV, ca_file.read_text() if ca_file else None)
        try:
            return await asked(teacher)
        finally:
            await close(teacher)


@both
def test_a_certificate_of_ones_own_is_trusted_where_it_is_given(
    certificate: tuple[Path, Path], dialect: str
) -> None:
    check(asyncio.run(over_https(certificate, dialect, certificate[0])), TEXT, 7)


@both
def test_a_certificate_nobody_knows_is_an_error(
    certificate: tuple[Path, Path], dialect: str
) -> None:
    with pytest.raises(aiohttp.ClientError, match="certificate"):
        asyncio.run(over_https(certificate, dialect, None))
