"""Following of a response that somebody reads while an engine generates it. Knows no engine.

Shapes: N tokens, K candidates.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

from verl.workers.rollout.replica import TokenOutput

from verl_ext.rollout.rows import Chunk


class Following:
    """Reader's end of a response: whole chunks go into ``queue`` while the engine goes on.

    A chunk ends where prompt and response together are a multiple of ``chunk`` tokens, so that a
    teacher whose cache block divides ``chunk`` never computes a token twice. The last one ends with
    the response.
    """

    def __init__(self, prompt_length: int, topk: int, chunk: int):
        self.topk, self.chunk = topk, chunk
        self.queue: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self._prompt_length, self._reported = prompt_length, 0

    def due(self, generated: int, finished: bool) -> slice | None:
        """Choose the tokens of the response to report next, none of them twice.

        Args:
            generated: tokens of the response so far.
            finished: whether there will be more.
        """
        end = generated
        if not finished:
            end = (self._prompt_length + end) // self.chunk * self.chunk - self._prompt_length
        if end <= self._reported:
            return None
        begin, self._reported = self._reported, end
        return slice(begin, end)

    async def until(
        self, generation: Coroutine[Any, Any, TokenOutput]
    ) -> AsyncGenerator[Chunk | TokenOutput, None]:
        """Yield the chunks as they come, then what ``generation`` returns.

        Closed early, this cancels the generation.

        Raises:
            Exception: what ``generation`` raised.
        """
        done = asyncio.create_task(generation)
        done.add_done_callback(lambda _: self.queue.put_nowait(None))
        try:
            while (item := await self.queue.get()) is not None:
                yield item
            yield await done
        finally:
            done.cancel()
