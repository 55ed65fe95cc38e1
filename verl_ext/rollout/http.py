"""Exchange of JSON with servers of others, who are not to be trusted with more than a question.

What is read is bounded, redirects are not followed, and neither an error nor a pickle holds the API
key: it is read from the environment where it is sent.
"""

import functools
import os
import ssl
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from verl_ext.files import parse_json
from verl_ext.rollout.rows import BadQuestion, BadScore, NoServer
from verl_ext.texts import shows, visible

CONNECT = 30
"""Seconds to reach a server, at most."""
REFUSALS = (400, 413, 422)
"""Statuses by which a server says that the request is at fault."""
REASON_BYTES, REASON = 4096, 300
"""Bytes that are read of a server's reason for an error, and characters that are shown of it."""


@dataclass
class Exchange:
    """Requests to servers, each with the same key.

    Args:
        api_key_env: name of the environment variable with the key, which is sent as a bearer token.
        certificates: in PEM format, to trust beside the system's.
    """

    api_key_env: str | None = None
    certificates: str | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the session out: it belongs to its event loop, and its headers hold the key."""
        return {"api_key_env": self.api_key_env, "certificates": self.certificates}

    async def json(self, method: str, url: str, most: int, body: Any = None) -> Any:
        """Send a request and return the answer's JSON.

        Args:
            method: of HTTP.
            url: whole.
            most: bytes that the answer may have.
            body: sent as JSON.

        Raises:
            NoServer: the environment has no key.
            BadQuestion: the server refuses the question.
            BadScore: the answer is too long, compressed, or no JSON.
            aiohttp.ClientError: the server cannot be reached, or has an error. Like the others it
                names the URL, and holds nothing of the request.
        """
        try:
            return _parsed(url, await self._answer(method, url, most, body))
        except aiohttp.ServerTimeoutError:  # also a TimeoutError, and would pass for the deadline's
            said = f"{url} cannot be reached within {CONNECT} s"
        except (BadQuestion, BadScore):
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if type(error) is aiohttp.ClientError:  # ours: aiohttp raises none of the base class
                raise
            said = f"{url} cannot be asked ({type(error).__name__}: {self.shown(str(error))})"
        # Outside of the handler: aiohttp's errors hold the headers of the request.
        raise aiohttp.ClientError(said)

    async def _answer(self, method: str, url: str, most: int, body: Any) -> bytes:
        # Compressed, a small answer could become a large one.
        async with self._session.request(
            method, url, json=body, allow_redirects=False, headers={"Accept-Encoding": "identity"}
        ) as response:
            if response.status >= 400:
                reason = await _read(response, REASON_BYTES)
                said = self.shown(reason[:REASON_BYTES].decode(errors="replace"))
                kind = BadQuestion if response.status in REFUSALS else aiohttp.ClientError
                raise kind(f"{url} answers {response.status}: {said}")
            if response.status >= 300:
                raise aiohttp.ClientError(
                    f"{url} answers {response.status}, a redirect to another address, which is not"
                    " followed: give the address itself"
                )
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise BadScore(f"{url} answers with a compressed text, which was not asked for")
            answer = await _read(response, most)
            if len(answer) > most:
                raise BadScore(f"{url} answers with more than the {most:,} bytes that were needed")
            return answer

    @functools.cached_property
    def _session(self) -> aiohttp.ClientSession:
        """Session, made where it is used: it belongs to its event loop and cannot be sent."""
        trust = ssl.create_default_context()
        if self.certificates:
            trust.load_verify_locations(cadata=self.certificates)
        return aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            connector=aiohttp.TCPConnector(limit=0, ssl=trust),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT),  # who asks has a deadline
        )

    @property
    def key(self) -> str:
        """API key; empty where there is none.

        Raises:
            NoServer: the environment has no such variable.
        """
        if not self.api_key_env:
            return ""
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise NoServer(
                f"the environment has no variable {self.api_key_env} with the API key, needed on"
                " every node"
            )
        return key

    def shown(self, text: str) -> str:
        """Write a text of a server's in one line for a log, unless it repeats the key."""
        if self.key and shows(text, self.key):
            return "(not shown, since it repeats the API key or a part of it)"
        return visible(" ".join(text.split()))[:REASON]

    async def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        if "_session" in vars(self):
            await self._session.close()
            del self._session


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Read an answer, or a piece of it that is longer than ``most`` bytes."""
    read = bytearray()
    async for piece in response.content.iter_any():
        read += piece
        if len(read) > most:
            break
    return bytes(read)


def _parsed(url: str, answer: bytes) -> Any:
    try:
        return parse_json(answer)
    except ValueError as error:
        said = f"{url} answers with what is {error}"
    raise BadScore(said)  # outside of the handler, since json's error holds the text
