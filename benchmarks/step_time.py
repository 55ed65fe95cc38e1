"""What does the in-flight gate do to the time of a training step? verl's trainer, gate off and on.

    drifting   the walk pair beyond the length it knows: 800 tokens, most of them after the stop
    same       the student is its own teacher: nothing to stop, all that the gate does is cost

Each row is a run of its own of ``--steps`` steps under a fixed limit. The first step warms the
engines up and is left out. ``gen`` holds what the gate costs: log-probs, scoring, waiting. The
other parts of a step shrink with the tokens.

    python benchmarks/step_time.py --out runs/step_time      # 4 runs of about 4 minutes on 2 cores

On a CPU the teacher's server takes its time from the same cores as everything else.
"""

import argparse
import statistics
import sys
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "pairs"))
import launch
import walk
import walk_pair

LENGTHS = {"drifting": 800, "same": 400}
PARTS = ("step", "gen", "old_log_prob", "ref", "update_actor")


def overrides(name: str, gate: bool, models: Path) -> list[str]:
    """What a run adds to the walk task's command."""
    return [
        f"prune_opd.teacher.path={models / ('teacher' if name == 'drifting' else 'student')}",
        f"data.max_response_length={LENGTHS[name]}",
        "actor_rollout_ref.rollout.ignore_eos=true",
        "prune_opd.drift.w_drop=0.01",
        "prune_opd.budget.enable=false",
        "prune_opd.budget.init=null",
        "prune_opd.budget.min=null",
        f"prune_opd.gate.enable={gate}",
        "prune_opd.gate.chunk=32",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
    ]


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/step_time"))
    parser.add_argument(
        "--pairs", nargs="+", choices=list(LENGTHS), default=list(LENGTHS), help="(default: both)"
    )
    parser.add_argument("--steps", type=int, default=7, help="of each run (%(default)s)")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    walk_pair.build_pair(out / "models", walk_pair.Settings())
    walk.write_parquet(out / "data", validation=launch.WALK.validation)
    columns = [
        "pair",
        "gate",
        "tokens",
        *(f"{part} (s)" for part in PARTS),
        "step against off",
        "waited (s, mean)",
    ]
    table = Table(
        *columns, title=f"Medians over {args.steps - 1} steps, with the range of the whole step"
    )
    for name, gate in product(args.pairs, (False, True)):
        folder = out / f"{name}_gate_{'on' if gate else 'off'}"
        folder.mkdir(exist_ok=True)
        settings = overrides(name, gate, out / "models")
        command = launch.training_command(
            out, folder, "prune_opd", args.steps, settings, launch.WALK
        )
        launch.train(command, folder, args.steps, timeout=1200)
        steps = launch.training_steps(launch.read(folder / "metrics.jsonl"))[1:]
        times = {part: [step[f"timing_s/{part}"] for step in steps] for part in PARTS}
        median = {part: statistics.median(values) for part, values in times.items()}
        if not gate:
            off = median["step"]
        table.add_row(
            name,
            "on" if gate else "off",
            f"{statistics.median(map(launch.spent, steps)):,.0f}",
            f"{median['step']:.2f} ({min(times['step']):.2f} to {max(times['step']):.2f})",
            *(f"{median[part]:.2f}" for part in PARTS[1:]),
            f"{median['step'] / off:.2f}",
            f"{statistics.mean(s['prune_opd/gate/waited_mean'] for s in steps):.2f}"
            if gate
            else "",
        )
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
