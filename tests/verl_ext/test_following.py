"""A reader gets every token of a growing response once, in whole chunks, then the result."""

import asyncio
from contextlib import aclosing
from itertools import pairwise

import pytest

from verl_ext.rollout.following import Following


def ends(following: Following, counts: list[int]) -> list[int]:
    """Where the reported parts end, which follow on each other."""
    parts = [following.due(count, finished=count == counts[-1]) for count in counts]
    reported = [part for part in parts if part is not None]
    assert reported[0].start == 0
    assert all(a.stop == b.start < b.stop for a, b in pairwise(reported))
    return [part.stop for part in reported]


@pytest.mark.parametrize("prompt", [1, 7, 8, 9])
@pytest.mark.parametrize("step", [1, 5, 30])
def test_chunks_end_where_prompt_and_response_are_a_multiple(prompt: int, step: int) -> None:
    found = ends(Following(prompt, 16, chunk=8), [*range(1, 50, step), 50])
    assert all((prompt + end) % 8 == 0 for end in found[:-1])
    assert found[-1] == 50
    if step == 1:
        assert found[:-1] == [end for end in range(1, 50) if (prompt + end) % 8 == 0]


def test_a_chunk_is_reported_as_soon_as_it_is_whole() -> None:
    following = Following(3, 16, chunk=8)
    found = {count: following.due(count, finished=False) for count in range(1, 15)}
    assert {count: part for count, part in found.items() if part} == {
        5: slice(0, 5),
        13: slice(5, 13),
    }


def test_a_response_that_ends_with_a_chunk_has_no_empty_one() -> None:
    following = Following(4, 16, chunk=8)
    assert following.due(12, finished=False) == slice(0, 12)
    assert following.due(12, finished=True) is None


def test_the_reader_gets_what_is_reported_and_then_the_result() -> None:
    async def main() -> list[object]:
        following = Following(1, 16, chunk=8)

        async def generate() -> str:
            for item in ("a", "b"):
                following.queue.put_nowait(item)
                await asyncio.sleep(0)
            return "result"

        return [item async for item in following.until(generate())]

    assert asyncio.run(main()) == ["a", "b", "result"]


def test_the_reader_gets_the_error() -> None:
    async def main() -> None:
        following = Following(1, 16, chunk=8)

        async def generate() -> str:
            following.queue.put_nowait("a")
            raise RuntimeError("out of memory")

        items = following.until(generate())
        assert await anext(items) == "a"
        with pytest.raises(RuntimeError, match="out of memory"):
            await anext(items)

    asyncio.run(main())


def test_a_reader_who_goes_away_cancels_the_generation() -> None:
    async def main() -> bool:
        following, cancelled = Following(1, 16, chunk=8), False

        async def generate() -> str:
            nonlocal cancelled
            following.queue.put_nowait("a")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled = True
                raise
            return "result"

        async with aclosing(following.until(generate())) as items:
            async for _ in items:
                break
        await asyncio.sleep(0)
        return cancelled

    assert asyncio.run(main())
