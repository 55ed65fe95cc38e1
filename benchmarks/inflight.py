"""How many tokens, teacher tokens and seconds does the in-flight gate cost and save, at which
chunk?

Real vLLM servers, student and teacher, the client and the gate that training uses, no training
around them. The pairs:

    walk       the walk pair, responses end by themselves or at 227 tokens
    drifting   the same two beyond the length they know: responses go on to 800 tokens
    same       the student is its own teacher: there is nothing to stop

Rows: verl's own generation up to the limit; the same followed (top-k log-probs reported, no
teacher); under the gate at each chunk. "perfect" is the sum over responses of the tokens before the
stop, so "generated / perfect" is what is generated beyond what a stop at the exact token would
cost. Teacher tokens are counted per generated token, those of prompts apart.

    python benchmarks/inflight.py --models runs/walk/models

Every stop is compared with the rule applied to the whole response, scored once by the teacher in
one piece.
"""

import argparse
import asyncio
import statistics
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import hydra
import ray
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from verl.single_controller.ray.base import RayResourcePool
from verl.workers.rollout.llm_server import LLMServerManager

from recipe.prune_opd.config import PruneOPDConfig, read_config
from recipe.prune_opd.method.drift import reliability
from recipe.prune_opd.records.tally import GateReport
from recipe.prune_opd.teacher.client import TeachingClient
from recipe.prune_opd.teacher.servers import follow_rollout, teacher_pool
from recipe.prune_opd.training.gated_response import GatedResponse, GatedTurn, find_events
from recipe.prune_opd.training.response import Request
from verl_ext.rollout.rows import Chunk, TopKRows

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "pairs"))
import walk
import walk_pair

CHUNKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Pair:
    """Two models, how long responses may get, and what an event costs."""

    name: str
    teacher: str
    limit: int
    ignore_eos: bool
    w_drop: float


PAIRS = (
    Pair("walk", "teacher", walk.MAX_RESPONSE_TOKENS, False, 0.03),
    Pair("drifting", "teacher", 800, True, 0.01),
    Pair("same", "student", 400, True, 0.01),
)


@dataclass(frozen=True)
class Row:
    """One way to generate a batch of responses of one pair."""

    seconds: float
    responses: int
    generated: int
    perfect: int
    """Tokens before the stop, over all responses."""
    teacher: int = 0
    """Teacher tokens, prompts not counted."""
    prompts: int = 0
    """Teacher tokens of prompts."""
    waited: float = 0.0
    stopped: int = 0
    differ: int = 0
    """Stops that differ from the rule on the whole response."""


class Bench:
    """The servers of one student and one teacher, and the prompts."""

    def __init__(self, models: Path, pair_: Pair, responses: int, block_size: int):
        self.pair, self.block_size = pair_, block_size
        self.config = compose(models, pair_, block_size)
        self.prune_opd = read_config(self.config)
        follow_rollout(self.config, self.prune_opd.topk)
        pool = teacher_pool(self.config, self.prune_opd)
        resources = RayResourcePool(
            pool.nodes(1), use_gpu=True, max_colocate_count=2, name_prefix=f"pool_{pair_.name}"
        )
        starting = pool.start(self.config, resources, 1)
        rollout = LLMServerManager.create(config=self.config)
        self.servers = starting.result()
        teacher = pool.client(self.config, self.servers)
        self.plain = rollout.get_client()
        self.gated = TeachingClient(
            rollout.get_client(),
            prune_opd=self.prune_opd,
            teacher=teacher,
            vocab_size=len(walk.VOCABULARY),
            teaches=False,
        )
        problems = walk.sample_problems(responses, seed=2)
        self.prompts = walk_pair.encode_prompts(walk.build_tokenizer(), problems).tolist()

    def params(self) -> dict[str, Any]:
        """Sampling parameters of training."""
        params = {
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": -1,
            "logprobs": True,
            "max_tokens": self.pair.limit,
        }
        return params | {"ignore_eos": self.pair.ignore_eos}

    def settings(self, chunk: int) -> PruneOPDConfig:
        """The configuration with another chunk."""
        gate = self.prune_opd.gate.changed(chunk=chunk)
        return self.prune_opd.changed(gate=gate)


def compose(models: Path, pair_: Pair, block_size: int) -> DictConfig:
    """verl's configuration for servers without a trainer."""
    folder = Path(find_spec("verl").submodule_search_locations[0]) / "trainer" / "config"
    overrides = [
        "+recipe=prune_opd",
        "+platform=cpu",
        f"actor_rollout_ref.model.path={models / 'student'}",
        f"prune_opd.teacher.path={models / pair_.teacher}",
        f"prune_opd.teacher.server.block_size={block_size}",
        f"prune_opd.drift.w_drop={pair_.w_drop}",
        "prune_opd.gate.enable=true",
        "data.max_prompt_length=32",
        f"data.max_response_length={pair_.limit}",
        "actor_rollout_ref.rollout.load_format=auto",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
    ]
    with hydra.initialize_config_dir(str(folder), version_base=None):
        config = hydra.compose("ppo_trainer", overrides)
    OmegaConf.resolve(config)
    return config


async def limit_only(bench: Bench) -> Row:
    """verl's own generation."""

    async def one(prompt: list[int]) -> int:
        output = await bench.plain.generate(
            uuid4().hex, prompt_ids=prompt, sampling_params=bench.params()
        )
        return len(output.token_ids)

    started = time.monotonic()
    lengths = await asyncio.gather(*(one(prompt) for prompt in bench.prompts))
    return Row(time.monotonic() - started, len(lengths), sum(lengths), 0)


async def followed(bench: Bench) -> Row:
    """Generation that reports its top-k in chunks of 64; afterwards the perfect stop of these
    responses."""
    done: list[tuple[list[int], list[int], TopKRows]] = []

    async def one(prompt: list[int]) -> None:
        tokens, rows = [], []
        topk = bench.prune_opd.topk
        async with bench.gated.follow(
            uuid4().hex, prompt, bench.params(), topk=topk, chunk=64
        ) as response:
            async for chunk in response:
                tokens += chunk.token_ids
                rows.append(chunk.rows)
        done.append((prompt, tokens, TopKRows.join(*rows)))

    started = time.monotonic()
    await asyncio.gather(*(one(prompt) for prompt in bench.prompts))
    seconds = time.monotonic() - started
    perfect = await asyncio.gather(*(effective_length(bench, *response) for response in done))
    return Row(seconds, len(done), sum(len(tokens) for _, tokens, _ in done), sum(perfect))


class Recorded(GatedTurn):
    """Keeps what it was about to forget: the student's rows, for the rule on the whole response."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.rows: list[TopKRows] = []
        self.unscored = Recorder(self.rows)


class Recorder(list[Chunk]):
    """A list that notes the rows of what is put into it."""

    def __init__(self, rows: list[TopKRows]):
        super().__init__()
        self.noted = rows

    def append(self, chunk: Chunk) -> None:
        """See ``list.append``."""
        self.noted.append(chunk.rows)
        super().append(chunk)


async def gated(bench: Bench, chunk: int) -> Row:
    """Under the gate, as in training; afterwards each stop against the rule on all that was
    generated."""
    client = bench.gated
    client.prune_opd = bench.settings(chunk)

    async def one(prompt: list[int]) -> Recorded:
        async with client.teacher.sequence(
            len(prompt), client.prune_opd.topk, client.vocab_size
        ) as sequence:
            params = bench.params()
            response = GatedResponse(client, prompt, params["max_tokens"], sequence)
            request = Request(uuid4().hex, prompt, params, {})
            turn = Recorded(response, client.prune_opd.new_gate(), request)
            await turn.run(chunk)
            return turn

    started = time.monotonic()
    responses = await asyncio.gather(*(one(prompt) for prompt in bench.prompts))
    seconds = time.monotonic() - started
    reports: list[GateReport] = [response.report for response in responses]
    if troubled := [report.error for report in reports if report.error]:
        raise RuntimeError(f"the teacher failed: {troubled[0]}")
    kept = [response.gate.stop or len(response.tokens) for response in responses]
    exact = await asyncio.gather(
        *(
            effective_length(
                bench, response.prompt_ids, response.tokens, TopKRows.join(*response.rows)
            )
            for response in responses
        )
    )
    prompts = sum(
        min(len(r.prompt_ids), report.teacher_tokens)
        for r, report in zip(responses, reports, strict=True)
    )
    return Row(
        seconds,
        len(responses),
        generated=sum(report.generated for report in reports),
        perfect=sum(kept),
        teacher=sum(report.teacher_tokens for report in reports) - prompts,
        prompts=prompts,
        waited=statistics.mean(report.waited for report in reports),
        stopped=sum(report.stopped for report in reports),
        differ=sum(a != b for a, b in zip(kept, exact, strict=True)),
    )


async def effective_length(
    bench: Bench, prompt: list[int], tokens: list[int], student: TopKRows
) -> int:
    """E of a whole response, by METHOD's formulas on one pass of the teacher over all of it."""
    client = bench.gated
    async with client.teacher.sequence(
        len(prompt), client.prune_opd.topk, client.vocab_size
    ) as sequence:
        sequence.private = 1  # nothing from a cache
        teacher = await sequence.score(prompt + tokens, deadline=600)
    events = torch.from_numpy(
        find_events(bench.prune_opd.rules.metric, student, teacher, tokens)
    ).unsqueeze(0)
    mask = torch.ones_like(events)
    return int(reliability(events, mask, bench.prune_opd.drift.w_drop, 0.0).effective_length)


async def measure(bench: Bench, chunks: list[int], repeats: int) -> dict[str, list[Row]]:
    """All rows of a pair; the repeats go round so that a slow minute of the machine hits every
    row."""
    await limit_only(bench)  # the first requests of a server are slow
    await gated(bench, chunks[0])
    rows: dict[str, list[Row]] = {
        name: [] for name in ("limit only", "followed", *map(str, chunks))
    }
    for _ in tqdm(range(repeats), desc=bench.pair.name):
        rows["limit only"].append(await limit_only(bench))
        rows["followed"].append(await followed(bench))
        for chunk in chunks:
            rows[str(chunk)].append(await gated(bench, chunk))
    return rows


def add_to(table: Table, pair_: Pair, rows: dict[str, list[Row]]) -> None:
    """The rows of a pair: sums over repeats, seconds as median and range."""
    reference = statistics.median(row.seconds for row in rows["limit only"])
    limit_perfect = sum(row.perfect for row in rows["followed"])
    for name, repeats in rows.items():
        generated, perfect = (
            sum(r.generated for r in repeats),
            sum(r.perfect for r in repeats) or limit_perfect,
        )
        seconds = sorted(row.seconds for row in repeats)
        gate = name.isdigit()
        table.add_row(
            pair_.name,
            f"chunk {name}" if gate else name,
            f"{generated / len(repeats):,.0f}",
            f"{generated / perfect:.3f}",
            (
                f"{(generated - perfect) / sum(r.stopped for r in repeats):.1f}"
                if sum(r.stopped for r in repeats)
                else ""
            ),
            (
                f"{sum(r.stopped for r in repeats)} of {sum(r.responses for r in repeats)}"
                if gate
                else ""
            ),
            f"{sum(r.teacher for r in repeats) / generated:.3f}" if gate else "",
            f"{sum(r.prompts for r in repeats) / len(repeats):,.0f}" if gate else "",
            f"{statistics.median(seconds):.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f})",
            f"{statistics.median(seconds) / reference:.2f}",
            f"{statistics.mean(r.waited for r in repeats):.3f}" if gate else "",
            f"{sum(r.differ for r in repeats)}" if gate else "",
        )
    table.add_row(
        pair_.name, "perfect stop", f"{limit_perfect / len(rows['followed']):,.0f}", "1.000"
    )
    table.add_section()


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        type=Path,
        required=True,
        help="folder of student/ and teacher/, trained if absent",
    )
    parser.add_argument(
        "--pairs", nargs="+", choices=[p.name for p in PAIRS], default=[p.name for p in PAIRS]
    )
    parser.add_argument("--chunks", nargs="+", type=int, default=list(CHUNKS))
    parser.add_argument("--responses", type=int, default=64, help="generated at once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--block-size", type=int, default=16, help="of the teacher's prefix cache, tokens"
    )
    args = parser.parse_args()
    models = args.models.resolve()
    walk_pair.build_pair(models, walk_pair.Settings())
    table = Table(
        "pair",
        "how",
        "generated",
        "generated / perfect",
        "overshoot per stop",
        "stopped",
        "teacher tokens per token",
        "its prompt tokens",
        "seconds",
        "against limit only",
        "waited (s, mean)",
        "stops that differ",
        title=(
            f"{args.responses} responses at once, {args.repeats} repeats, cache block"
            f" {args.block_size}"
        ),
    )
    for pair_ in PAIRS:
        if pair_.name in args.pairs:
            ray.init(num_cpus=32, num_gpus=8, include_dashboard=False, log_to_driver=False)
            bench = Bench(models, pair_, args.responses, args.block_size)
            add_to(table, pair_, asyncio.run(measure(bench, args.chunks, args.repeats)))
            ray.shutdown()
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
