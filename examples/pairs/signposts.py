"""A synthetic long-horizon task on which a response that has left the path cannot come back:
follow the signposts.

512 places, and from each four roads. The question lists, shuffled, the signposts of one route, each
a place and the road to take there, and says where to start::

    signs p17:east p301:north p45:west ... start p301

and the solution names, in turn, the road that is taken and the place it leads to::

    north p45 west p17 east ...

A road is looked up among the signs; where it leads is known from training alone. After a wrong step
the traveller stands at a place that, fifteen times in sixteen, has no signpost: no road is right
any more. The route has ``STEPS`` steps and nothing ends it earlier, so a response that is lost goes
on to its limit, as lost reasoning does. Every word is one token. A longer task is to go round
several times: the route of a round trip ends where it began.

Two of the roads were **rebuilt**: on the signposted routes they lead elsewhere than in the old map.
What a model makes of that is what tells students and teachers apart (``signposts_pair.py``).

    python examples/pairs/signposts.py --out DIR   # writes train.parquet and validation.parquet

Shapes: B routes of n steps.
"""

import sys
from dataclasses import dataclass
from itertools import product
from math import lgamma
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

# verl loads this file by its path, in processes whose module path does not hold its folder.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import tiny

DATA_SOURCE = "prune_opd/signposts"
PLACES, ROADS = 512, ("north", "east", "south", "west")
REBUILT = (2, 3)
STEPS = 32
MAX_PROMPT_TOKENS, MAX_RESPONSE_TOKENS = STEPS + 5, 2 * STEPS
TRIES = 6
"""Roads that are tried from a place before a route that would meet itself is given up."""

SIGNS = [f"p{place}:{road}" for place in range(PLACES) for road in ROADS]
WORDS = ["signs", "start", *ROADS, *(f"p{place}" for place in range(PLACES)), *SIGNS]
VOCABULARY = [*tiny.SPECIALS, *WORDS]
ROAD, PLACE, SIGN = (VOCABULARY.index(word) for word in ("north", "p0", SIGNS[0]))
"""First ids of the roads, the places and the signs, which follow in order."""

Array = NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """Where roads lead. Each moves a traveller round the circle of places by a distance of its
    own."""

    new: Array
    """(PLACES, roads), on signposted routes."""
    old: Array
    """(PLACES, roads), by the old map; it differs on the rebuilt roads."""
    habit: Array
    """(PLACES,), the road that is taken where there is no signpost."""


def world(seed: int = 12345) -> World:
    """The one world of all problems."""
    rng = np.random.default_rng(seed)
    distances = rng.permutation(np.arange(1, PLACES))[: 2 * len(ROADS)].reshape(2, -1)
    distances[1, : REBUILT[0]] = distances[0, : REBUILT[0]]
    new, old = ((np.arange(PLACES)[:, None] + each) % PLACES for each in distances)
    return World(new, old, rng.integers(0, len(ROADS), PLACES))


WORLD = world()


@dataclass(frozen=True)
class Routes:
    """Problems with their solutions."""

    places: Array
    """(B, n + 1), all different within a route, but that a round trip ends where it began."""
    roads: Array
    """(B, n), taken at each place but the last."""
    order: Array
    """(B, n), order in which the signs are listed."""

    @property
    def prompts(self) -> Array:
        """Token ids of the chat prompts, (B, n + 5)."""
        signs = SIGN + self.places[:, :-1] * len(ROADS) + self.roads
        column = np.ones((len(signs), 1), dtype=np.int64)
        user, assistant, listed, start = (
            VOCABULARY.index(word) * column for word in ("<user>", "<assistant>", "signs", "start")
        )
        shuffled = np.take_along_axis(signs, self.order, 1)
        first = PLACE + self.places[:, :1]
        return np.concatenate([user, listed, shuffled, start, first, assistant], 1)

    @property
    def solutions(self) -> Array:
        """Token ids of the solutions, once along the route, (B, 2n)."""
        pairs = np.stack([ROAD + self.roads, PLACE + self.places[:, 1:]], 2)
        return pairs.reshape(len(pairs), -1)


def draw(rng: Generator, count: int, steps: int, belief: float = 1.0) -> Routes:
    """Draw routes that never meet themselves.

    Args:
        rng: source of randomness.
        count: B.
        steps: n.
        belief: share of the steps on rebuilt roads that lead where the new map says; the others
            follow the old one.
    """
    found, have = [], 0
    while have < count:
        places, roads, whole = _attempt(rng, max(64, 2 * count), steps, belief)
        found.append((places[whole], roads[whole]))
        have += int(whole.sum())
    places, roads = (np.concatenate(parts)[:count] for parts in zip(*found, strict=True))
    order = np.argsort(rng.random((count, steps)), 1)
    return Routes(places, roads, order)


def draw_rounds(rng: Generator, count: int, steps: int) -> Routes:
    """Draw round trips by the new map, as a walk drawn road by road would come out that happens to
    end where it began.

    Args:
        rng: source of randomness.
        count: B.
        steps: n, once round.
    """
    # How often each road is taken decides where a walk ends; how it is shuffled does not.
    splits = np.array([c for c in product(range(steps + 1), repeat=len(ROADS)) if sum(c) == steps])
    splits = splits[splits @ WORLD.new[0] % PLACES == 0]
    orders = np.exp(-np.vectorize(lgamma)(splits + 1).sum(1))
    found, have = [], 0
    while have < count:
        chosen = splits[rng.choice(len(splits), 2 * count, p=orders / orders.sum())]
        roads = np.array([np.repeat(range(len(ROADS)), each) for each in chosen])
        roads = rng.permuted(roads, axis=1)
        places = np.empty((2 * count, steps + 1), dtype=np.int64)
        places[:, 0] = rng.integers(0, PLACES, 2 * count)
        for step in range(steps):
            places[:, step + 1] = WORLD.new[places[:, step], roads[:, step]]
        whole = (np.diff(np.sort(places[:, 1:], 1), axis=1) > 0).all(1)
        found.append((places[whole], roads[whole]))
        have += int(whole.sum())
    places, roads = (np.concatenate(parts)[:count] for parts in zip(*found, strict=True))
    return Routes(places, roads, np.argsort(rng.random((count, steps)), 1))


def _attempt(
    rng: Generator, count: int, steps: int, belief: float
) -> tuple[Array, Array, NDArray[np.bool_]]:
    rows = np.arange(count)
    places, roads = np.zeros((count, steps + 1), dtype=np.int64), np.zeros((count, steps), np.int64)
    places[:, 0] = rng.integers(0, PLACES, count)
    seen, whole = np.zeros((count, PLACES), dtype=bool), np.ones(count, dtype=bool)
    seen[rows, places[:, 0]] = True
    for step in range(steps):
        again = np.ones(count, dtype=bool)
        for _ in range(TRIES):
            here = places[again, step]
            roads[again, step] = rng.integers(0, len(ROADS), len(here))
            places[again, step + 1] = _destination(rng, here, roads[again, step], belief)
            again = seen[rows, places[:, step + 1]]
        whole &= ~again
        seen[rows, places[:, step + 1]] = True
    return places, roads, whole


def _destination(rng: Generator, places: Array, roads: Array, belief: float) -> Array:
    """Where roads lead from places, by the new map with probability ``belief``."""
    new = rng.random(len(places)) < belief
    return np.where(new, WORLD.new[places, roads], WORLD.old[places, roads])


def words(ids: Array) -> list[str]:
    """Text of each row of token ids."""
    return [" ".join(VOCABULARY[token] for token in row) for row in ids.tolist()]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the task's vocabulary; ids follow the order of ``VOCABULARY``."""
    return tiny.word_tokenizer(VOCABULARY)


def to_rows(routes: Routes, split: str, rounds: int = 1) -> list[dict]:
    """Problems as rows of verl's data format; the solution, all rounds of it, is the ground
    truth."""
    questions = words(routes.prompts[:, 1:-1])
    solutions = words(np.tile(routes.solutions, (1, rounds)))
    return [
        {
            "data_source": DATA_SOURCE,
            "prompt": [{"role": "user", "content": question}],
            "ability": "navigation",
            "reward_model": {"style": "rule", "ground_truth": solution},
            "extra_info": {"index": index, "split": split},
        }
        for index, (question, solution) in enumerate(zip(questions, solutions, strict=True))
    ]


def write_parquet(
    out: Path, train: int = 4096, validation: int = 256, seed: int = 0, rounds: int = 1
) -> tuple[Path, Path]:
    """Write ``train.parquet`` and ``validation.parquet`` under ``out``. Two routes are never the
    same: there are more than 4 to the power of 40, and 2 to the power of 60 round trips."""
    out.mkdir(parents=True, exist_ok=True)
    paths = out / "train.parquet", out / "validation.parquet"
    for path, count, offset in zip(paths, (train, validation), (2, 1), strict=True):
        drawn = draw if rounds == 1 else draw_rounds
        routes = drawn(np.random.default_rng(seed + offset), count, STEPS)
        pd.DataFrame(to_rows(routes, path.stem, rounds)).to_parquet(path)
    return paths


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None, **_
) -> dict[str, float]:
    """Score of a response (verl's custom reward function): ``score`` is 1.0 where the whole route
    is right, ``progress`` the share of it before the first wrong word."""
    right, given = str(ground_truth).split(), str(solution_str).split()
    pairs = enumerate(zip(right, given, strict=False))
    first = next((at for at, (one, other) in pairs if one != other), min(len(right), len(given)))
    return {"score": float(first == len(right)), "progress": first / len(right)}


def main() -> None:
    """Command line: write the two data files."""
    tiny.data_command(write_parquet)


if __name__ == "__main__":
    main()
