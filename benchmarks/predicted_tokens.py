"""Does a training generate the tokens that ``diagnose`` predicts? Three pairs, the recommended
settings, real runs.

    close       the walk pair's teacher, and as its student itself with a little noise on every
                weight
    drifting    the walk pair
    unrelated   the walk pair's student, and a teacher with fresh random weights

``diagnose`` recommends settings and predicts tokens for a student that does not change. Then these
settings are used:

    generated   batches of other prompts, sampled and scored here, one after the other under the
                budget's limit
    lr 0        the trainer, with a student that does not change
    lr 5e-4     the trainer, with a student that learns: what the prediction is not about

Target: `generated` and `lr 0` within 15 % of the prediction.

    python benchmarks/predicted_tokens.py --out runs/predicted     # 6 trainings of 3 to 5 minutes

on 2 cores. It goes on where it stopped; with ``--no-trainer`` it takes 5 minutes in all.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "pairs"))
import launch
import tiny
import walk
import walk_pair

from recipe.prune_opd.commands.diagnose.arguments import Arguments
from recipe.prune_opd.commands.diagnose.passes import Passes, examine_pair
from recipe.prune_opd.commands.diagnose.questions import choose
from recipe.prune_opd.commands.diagnose.recommend import Recommendation
from recipe.prune_opd.commands.pair.models import Pair
from recipe.prune_opd.method.pruning import find_drift

NOISE = 0.02
"""Standard deviation of the close student's noise, as a share of each tensor's own."""
LEARNING = 5e-4
SEED_OF_BATCHES = 1000
RESPONSES = launch.WALK.prompts * launch.WALK.responses_each
"""Of a batch."""
COLUMNS = (
    "pair",
    "verdict",
    "without pruning",
    "predicted",
    "generated",
    "lr 0",
    "lr 5e-4",
    "mean limits",
)


def build_models(out: Path) -> dict[str, tuple[Path, Path]]:
    """Name of each pair -> folders of student and teacher."""
    models = out / "models"
    walk_pair.build_pair(models, walk_pair.Settings())
    tokenizer = walk.build_tokenizer()
    torch.manual_seed(0)
    noisy = AutoModelForCausalLM.from_pretrained(models / "teacher")
    with torch.no_grad():
        for weight in noisy.parameters():
            weight.add_(NOISE * weight.std() * torch.randn_like(weight))
    tiny.save(noisy, tokenizer, models / "noisy")
    tiny.save(tiny.build_model(tokenizer), tokenizer, models / "random")
    return {
        "close": (models / "noisy", models / "teacher"),
        "drifting": (models / "student", models / "teacher"),
        "unrelated": (models / "student", models / "random"),
    }


def diagnose(student: Path, teacher: Path, data: Path, steps: int, file: Path) -> dict[str, Any]:
    """The command's answer, kept in ``file``."""
    if not file.is_file():
        command = [
            sys.executable,
            "-m",
            "recipe.prune_opd",
            "diagnose",
            str(student),
            str(teacher),
            "--json",
        ]
        settings = {
            "--data": data / "train.parquet",
            "--prompts": 64,
            "--samples": 2,
            "--batch-size": 32,
            "--max-prompt-length": 32,
            "--max-response-length": walk.MAX_RESPONSE_TOKENS,
            "--steps": steps,
            "--batch": RESPONSES,
            "--seed": 0,
        }
        command += [str(word) for setting in settings.items() for word in setting]
        file.write_text(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        )
    return json.loads(file.read_text())


def generate(
    student: str, teacher: str, data: Path, found: dict[str, Any], steps: int
) -> tuple[float, float]:
    """Tokens per response, and the limit, of batches that are sampled under the recommended limit
    as it moves."""
    config = Recommendation(found["recommended"]["settings"], []).build(teacher)
    budget = config.budget.resolved(walk.MAX_RESPONSE_TOKENS).build()
    models = Pair.read(student, teacher)
    tokens, limits = [], []
    for step in tqdm(range(steps), desc="generating", unit=" steps"):
        seed = SEED_OF_BATCHES + step
        asked = Arguments(
            student,
            teacher,
            data=data / "train.parquet",
            max_prompt_length=32,
            prompts=launch.WALK.prompts,
            seed=seed,
        )
        passes = Passes(samples=launch.WALK.responses_each, batch=64, seed=seed, ks=(config.topk,))
        questions, _ = choose(models.student, asked)
        prompts = [question.ids for question in questions]
        _, scores = examine_pair(models, passes, budget.limit, prompts)
        drift = find_drift(scores.at(config.topk), scores.mask, config.rules)
        tokens.append(scores.lengths.double().mean().item())
        limits.append(budget.limit)
        budget.update(drift.reliability.effective_length.tolist())
    return statistics.mean(tokens), statistics.mean(limits)


def train(
    out: Path, folder: Path, pair_: tuple[Path, Path], overrides: list[str], steps: int, lr: float
) -> list[dict]:
    """Records of the steps of a run."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(launch.training_steps(launch.read(folder / "metrics.jsonl"))) < steps:
        settings = {
            "actor_rollout_ref.model.path": pair_[0],
            "prune_opd.teacher.path": pair_[1],
            "actor_rollout_ref.actor.optim.lr": lr,
            "trainer.val_before_train": False,
            "trainer.test_freq": -1,
            "trainer.save_freq": -1,
        }
        given = [*overrides, *(f"{key}={value}" for key, value in settings.items())]
        command = launch.training_command(out, folder, "prune_opd", steps, given, launch.WALK)
        launch.train(command, folder, steps, timeout=900)
    return launch.training_steps(launch.read(folder / "metrics.jsonl"))


def per_response(records: list[dict]) -> tuple[float, float]:
    """Tokens generated, and the limit, means over the steps."""
    tokens = (
        sum(record["prune_opd/generated_tokens"] for record in records) / len(records) / RESPONSES
    )
    return tokens, sum(record["prune_opd/current_max_response_length"] for record in records) / len(
        records
    )


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/predicted"))
    parser.add_argument("--steps", type=int, default=16, help="of each run (%(default)s)")
    parser.add_argument(
        "--pairs", nargs="+", default=["close", "drifting", "unrelated"], help="which of them"
    )
    parser.add_argument("--no-trainer", action="store_true", help="predict and generate only")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    models = build_models(out)
    walk.write_parquet(out / "data", validation=launch.WALK.validation)
    table = Table(
        *COLUMNS,
        title=f"Tokens per response over {args.steps} steps of {RESPONSES}",
    )
    for name in args.pairs:
        found = diagnose(*models[name], out / "data", args.steps, out / f"{name}.json")
        expected = found["recommended"]["prediction"]
        student, teacher = map(str, models[name])
        measured = [generate(student, teacher, out / "data", found, args.steps)]
        for lr in () if args.no_trainer else (0.0, LEARNING):
            overrides = found["recommended"]["overrides"]
            measured.append(
                per_response(
                    train(out, out / f"{name}_lr_{lr}", models[name], overrides, args.steps, lr)
                )
            )
        table.add_row(
            name,
            found["verdict"]["name"],
            f"{expected['without_pruning']:.1f}",
            f"{expected['generated']:.1f} ({expected['low']:.1f} to {expected['high']:.1f})",
            *(
                f"{tokens:.1f} ({tokens / expected['generated'] - 1:+.1%})"
                for tokens, _ in measured
            ),
            *([""] * (3 - len(measured))),
            ", ".join(
                f"{limit:.0f}" for limit in (expected["limit"], *(limit for _, limit in measured))
            ),
        )
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
