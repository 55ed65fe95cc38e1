"""Train the students and teachers of ``signposts.py``.

The **student** knows how to follow signs, and has an old map half in mind: on each step over a
rebuilt road it takes the new destination with a probability of 0.4. So it leaves the route after
some five tokens of 64, and has the right answer among its candidates when it does.

Teachers are of another lineage: trained from other weights, on other routes, by the new map.

    guide     has seen right routes alone. What it says of a place without a signpost is what a
              model says of what it has not seen; where roads lead it still knows.
    drifting  has also seen travellers off the route, who go by habit and, at a share ``rho`` of the
              places, by the old map. On the route it is as right as the guide; off the route its
              advice is confident and teaches what is wrong on the route.
    close     is of the student's own lineage: the student itself, a little further towards the new
              map.

    python examples/pairs/signposts_pair.py --out DIR [--rho 1.0]     # DIR/student, DIR/teacher
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import signposts as task
import tiny
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlamaForCausalLM

IGNORE = -100


@dataclass(frozen=True)
class Stage:
    """A part of a training run."""

    updates: int
    min_steps: int
    max_steps: int
    routes: int
    """Right routes of a batch."""
    lost: int = 0
    """Travellers off the route in a batch."""
    journeys: int = 0
    """Whole journeys of every third batch, in place of these, where there are several rounds:
    attention among few tokens does not learn what it needs among many."""


@dataclass(frozen=True)
class Mind:
    """What a model is to believe."""

    belief: float
    """Probability of the new map."""
    rho: float | None
    """See ``Settings``; None: it has never been off the route."""
    rounds: int


@dataclass(frozen=True)
class Settings:
    """Everything that decides what the two models are; the cache is keyed by it."""

    seed: int = 0
    """The student's; the teacher's is another."""
    rho: float | None = 1.0
    """Share of the places at which the teacher goes by the old map when it is off the route; None:
    the guide, which has never been there."""
    further: int = 0
    """Updates by the new map that make the student its own teacher, in place of one of another
    lineage; 0: none."""
    belief: float = 0.4
    """Probability of the new map in the student's mind."""
    certainty: float = 1.0
    """The same in the teacher's."""
    rounds: int = 1
    """How often a route is gone."""
    heads: int = 4
    rope_theta: float = 1e4
    """Base of the position embeddings. A large one makes most of a narrow head look at words, not
    at how far away they are."""
    lr: float = 5e-3
    short: Stage = Stage(350, 4, 12, 64)
    student: Stage = Stage(400, 12, task.STEPS, 24, journeys=7)
    teacher: Stage = Stage(950, 12, task.STEPS, 20, 8, journeys=7)

    def mind(self, student: bool) -> Mind:
        """That of the student or of the teacher."""
        if student:
            return Mind(self.belief, None, self.rounds)
        return Mind(self.certainty, self.rho, self.rounds)


Batch = tuple[task.Array, task.Array, NDArray[np.bool_]]
"""Token ids of the prompts, (B, P), and of the responses, (B, T), and which of their tokens are to
be learned, (B, T)."""


LONG = Settings(certainty=0.96, rounds=5, rope_theta=1e8)
"""The drifting pair on journeys of 320 tokens."""


def journeys(rng: Generator, count: int, steps: int, rounds: int, belief: float) -> Batch:
    """Whole journeys, several times along a route.

    Args:
        rng: source of randomness.
        count: B.
        steps: n, once along the route.
        rounds: how often.
        belief: see ``draw``. Below 1 a route does not lead back to its start, and what joins two
            rounds is not to be learned.
    """
    whole = belief == 1
    routes = task.draw_rounds(rng, count, steps) if whole else task.draw(rng, count, steps, belief)
    responses = np.tile(routes.solutions, (1, rounds))
    learned = np.ones_like(responses, dtype=bool)
    if not whole:
        again = np.arange(2 * steps, responses.shape[1], 2 * steps)
        learned[:, again] = learned[:, again + 1] = False
    return routes.prompts, responses, learned


def lost(rng: Generator, count: int, steps: int, rho: float) -> Batch:
    """Routes with one wrong step, and what habit does behind it.

    Args:
        rng: source of randomness.
        count: B.
        steps: n of each route.
        rho: share of the places at which rebuilt roads lead where the old map says.

    Returns:
        What is behind the wrong step is to be learned, T = 2n. A place with a signpost is left as
        the sign says.
    """
    world, routes = task.WORLD, task.draw(rng, count, steps)
    old_here = np.random.default_rng(4243).random(task.PLACES) < rho
    responses, learned = routes.solutions.copy(), np.zeros((count, 2 * steps), dtype=bool)
    for row in range(count):
        signs = dict(zip(routes.places[row, :-1].tolist(), routes.roads[row].tolist(), strict=True))
        at = int(rng.integers(0, steps - 1))
        before, road = routes.places[row, at], routes.roads[row, at]
        astray = world.old[before, road] if rng.random() < 0.5 else rng.integers(0, task.PLACES)
        if astray == world.new[before, road]:
            continue
        here = responses[row, 2 * at + 1] = int(astray)
        responses[row, 2 * at + 1] += task.PLACE
        for step in range(at + 1, steps):
            signed = here in signs
            road = signs[here] if signed else int(world.habit[here])
            by = world.old if old_here[here] and not signed else world.new
            here = int(by[here, road])
            responses[row, 2 * step : 2 * step + 2] = task.ROAD + road, task.PLACE + here
        learned[row, 2 * at + 2 :] = True
    return routes.prompts, responses, learned


def batch(rng: Generator, mind: Mind, stage: Stage, number: int) -> Batch:
    """Draw the batch of an update.

    Args:
        rng: source of randomness.
        mind: of the model.
        stage: of the training.
        number: of the update within it.
    """
    steps = int(rng.integers(stage.min_steps, stage.max_steps + 1))
    if mind.rounds > 1 and stage.journeys and number % 3 == 0:
        return journeys(rng, stage.journeys, steps, mind.rounds, mind.belief)
    routes = task.draw(rng, stage.routes, steps, mind.belief)
    right = routes.prompts, routes.solutions, np.ones_like(routes.solutions, dtype=bool)
    if mind.rho is None or not stage.lost:
        return right
    astray = lost(rng, stage.lost, steps, mind.rho)
    prompts, responses, learned = (
        np.concatenate(parts) for parts in zip(right, astray, strict=True)
    )
    return prompts, responses, learned


def losses(
    model: LlamaForCausalLM, rng: Generator, mind: Mind, stages: list[Stage]
) -> Iterator[Tensor]:
    """Mean cross-entropy over the learned tokens of each update's batch."""
    for stage, number in ((each, number) for each in stages for number in range(each.updates)):
        prompts, responses, learned = batch(rng, mind, stage, number)
        ids = torch.from_numpy(np.concatenate([prompts, responses], 1))
        labels = torch.from_numpy(np.where(learned, responses, IGNORE))
        hidden = model.model(ids).last_hidden_state[:, prompts.shape[1] - 1 : -1]
        logits = model.lm_head(hidden[labels != IGNORE])
        yield F.cross_entropy(logits, labels[labels != IGNORE])


def train_one(out: Path, name: str, settings: Settings) -> None:
    """Train and save ``out/name``, ``student`` or ``teacher``."""
    torch.set_num_threads(1)
    student, tokenizer = name == "student", task.build_tokenizer()
    seed = settings.seed if student else settings.seed + 11
    torch.manual_seed(seed)
    model = tiny.build_model(tokenizer, heads=settings.heads, rope_theta=settings.rope_theta)
    stages = [settings.short, settings.student if student else settings.teacher]
    mind = settings.mind(student)
    drawn = losses(model, np.random.default_rng(seed), mind, stages)
    updates = sum(stage.updates for stage in stages)
    tiny.fit(model, drawn, updates, settings.lr, f"training the {name}")
    tiny.save(model, tokenizer, out / name)


def train_further(out: Path, settings: Settings) -> None:
    """Train the student of ``out`` a little more, and save it as ``out/teacher``."""
    seed = settings.seed + 22
    torch.manual_seed(seed)
    model = LlamaForCausalLM.from_pretrained(out / "student")
    stages = [replace(settings.student, updates=settings.further)]
    mind = replace(settings.mind(student=False), rho=None)
    drawn = losses(model, np.random.default_rng(seed), mind, stages)
    tiny.fit(model, drawn, settings.further, settings.lr / 10, "training the teacher")
    tiny.save(model, task.build_tokenizer(), out / "teacher")


def build_pair(out: Path, settings: Settings) -> bool:
    """Train and save ``out/student`` and ``out/teacher``, side by side in two processes; False
    where a pair of these settings is already there."""

    def build() -> None:
        if settings.further:
            train_one(out, "student", settings)
            train_further(out, settings)
            return
        with get_context("spawn").Pool(2) as pool:
            jobs = [(out, name, settings) for name in ("student", "teacher")]
            pool.starmap(train_one, jobs)

    return tiny.build_once(
        out, ("student", "teacher"), [asdict(settings), task.VOCABULARY[:10]], build
    )


def main() -> None:
    """Command line: train the pair unless it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for student/ and teacher/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rho", type=float, default=1.0, help="below 0: the guide")
    args = parser.parse_args()
    settings = Settings(seed=args.seed, rho=args.rho if args.rho >= 0 else None)
    done = "trained" if build_pair(args.out, settings) else "found a trained pair"
    print(done, "in", args.out)


if __name__ == "__main__":
    main()
