"""Draw docs/problem.png: tokens per response that a run generates, and those that stay reliable.

    python docs/problem.py LOG.csv

The log is of a run of the paper's release, a row per step, with the columns ``step``,
``max_response_length``, ``response_length_mean`` and ``effective_length_mean``. Prints which share
of the tokens was generated after reliability had run out.
"""

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt

FIRST = 30


def main(log: Path) -> None:
    """Draw the picture beside this file and print the shares."""
    with log.open() as lines:
        rows = [
            {name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)
        ]
    step, limit, generated, reliable = (
        [row[name] for row in rows]
        for name in ("step", "max_response_length", "response_length_mean", "effective_length_mean")
    )
    figure, axes = plt.subplots(figsize=(8, 3), dpi=110)
    axes.plot(step, limit, color="#999", lw=1, ls=":", label="limit")
    axes.plot(step, generated, color="#c44e52", lw=1.4, label="generated")
    axes.plot(step, reliable, color="#4c72b0", lw=1.4, label="still reliable (R > 0)")
    axes.fill_between(step, reliable, generated, color="#c44e52", alpha=0.12, lw=0)
    axes.set(xlabel="step", ylabel="tokens per response, mean", xlim=(1, step[-1]), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", ncol=3, fontsize=9)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"))
    for name, end in ((f"first {FIRST} steps", FIRST), ("all steps", len(rows))):
        print(f"{name}: {1 - sum(reliable[:end]) / sum(generated[:end]):.1%} beyond R = 0")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
