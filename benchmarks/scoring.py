"""What do top k and log-probs of chosen ids cost, beside the log-prob of the sampled token alone?

    python benchmarks/scoring.py                  # on a CPU, and on a GPU where there is one
    python benchmarks/scoring.py --rows 1024      # 4 GB of memory are enough for this one

    plain      verl's log-prob of the sampled token, which every training has anyway. Of bfloat16
               logits it is rounded to bfloat16, which halves its time and leaves two digits
    entropy    that, and verl's entropy
    naive      log_softmax over all of the logits, topk, gather
    ours       the same numbers by verl_ext.logits.score
    all        those, the sampled token and the entropy, in one pass

and of the update, forward and backward:

    naive      log_softmax over all of the logits, gather
    verl       its forward_kl_topk, which is a loss over the teacher's candidates
    ours       verl_ext.logits.log_probs_at, the gradient in the logits' memory

Time: medians over rounds in which the passes take turns; on a CPU that of one thread. Memory: what
torch allocates beside the logits. A pass for which there is no memory is left out.
"""

import argparse
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import torch
from measuring import Work, medians, peak_bytes
from rich.console import Console
from rich.table import Table
from torch import Tensor
from verl.trainer.distillation.fsdp.losses import compute_forward_kl_topk
from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

from verl_ext.logits import log_probs_at, score

VOCABULARY, K = 151936, 16
SCORING_TARGET, UPDATE_TARGET, MEMORY_TARGET = 1.15, 1.0, 0.05
"""Of the time of ``plain``, of the time of the update's ``naive``, of the bytes of the logits."""
NEEDED = {"naive": 4, "verl": 5, "entropy": 3}
"""float32 tensors of the logits' shape that a pass holds at most."""
KL = SimpleNamespace(distillation_loss=SimpleNamespace(log_prob_min_clamp=None))


class Case:
    """Logits of one shape, dtype and device, and what is asked of them."""

    def __init__(self, rows: int, dtype: torch.dtype, device: str):
        generator = torch.Generator().manual_seed(0)
        tile = (3 * torch.randn(64, VOCABULARY, generator=generator)).to(device, dtype)
        self.logits = tile.repeat(-(-rows // 64), 1)[:rows]
        self.sampled, *ids = torch.randint(
            0, VOCABULARY, (K + 1, rows), generator=generator, device="cpu"
        ).to(device)
        self.ids = torch.stack(ids, -1)
        self.both = torch.cat([self.sampled.unsqueeze(-1), self.ids], -1)
        self.device = device

    def scoring(self) -> dict[str, Callable[[], Work]]:
        """Passes without a gradient."""
        logits = self.logits
        works: dict[str, Work] = {
            "plain": lambda: logprobs_from_logits(logits, self.sampled),
            "entropy": lambda: (
                logprobs_from_logits(logits, self.sampled),
                entropy_from_logits(logits),
            ),
            "naive": lambda: self._naive(logits),
            "ours": lambda: score(logits, K, VOCABULARY, self.ids),
            "all": lambda: score(logits, K, VOCABULARY, self.both, entropy=True),
        }
        return {name: lambda work=work: work for name, work in works.items()}

    def updates(self) -> dict[str, Callable[[], Work]]:
        """Passes with one, each on logits of its own that an operation made."""
        losses: dict[str, Callable[[Tensor], Tensor]] = {
            "naive": lambda logits: logits.float().log_softmax(-1).gather(-1, self.ids).sum(),
            "verl": self._forward_kl,
            "ours": lambda logits: log_probs_at(logits, self.ids, overwrite=True).sum(),
        }
        return {name: lambda loss=loss: self._differentiated(loss) for name, loss in losses.items()}

    def _naive(self, logits: Tensor) -> tuple[Tensor, ...]:
        log_probs = logits.float().log_softmax(-1)
        return *log_probs.topk(K), log_probs.gather(-1, self.ids)

    def _forward_kl(self, logits: Tensor) -> Tensor:
        ids = torch.nested.nested_tensor([self.ids], layout=torch.jagged)
        log_probs = torch.full(self.ids.shape, -3.0, device=self.device)
        theirs = torch.nested.nested_tensor([log_probs], layout=torch.jagged)
        found = compute_forward_kl_topk(logits.unsqueeze(0), theirs, ids, KL, "thd")
        return found["distillation_losses"].sum()

    def _differentiated(self, loss: Callable[[Tensor], Tensor]) -> Work:
        bias = torch.zeros((), device=self.device, dtype=self.logits.dtype, requires_grad=True)
        logits = self.logits.clone().add_(bias)

        def work() -> None:
            nonlocal logits
            loss(logits).backward()
            del logits

        return work


def fits(name: str, case: Case) -> bool:
    """Tell whether there is memory for a pass, with some to spare."""
    if case.device != "cpu":
        free, _ = torch.cuda.mem_get_info()
    else:
        free = psutil.virtual_memory().available
    return NEEDED.get(name, 1) * 4 * case.logits.numel() < 0.6 * free


def measure(table: Table, case: Case, kind: str, rounds: int, yardstick: str, target: float):
    """Add the rows of one kind of passes."""
    prepared = case.scoring() if kind == "scoring" else case.updates()
    works = {name: work for name, work in prepared.items() if fits(name, case)}
    times = medians(works, case.device, rounds)
    size = case.logits.nbytes
    for name, (median, least) in times.items():
        ours = name in ("ours", "all")
        share = peak_bytes(works[name](), case.device) / size
        ratio = f"{median / times[yardstick][0]:.2f}" if yardstick in times else ""
        table.add_row(
            f"{len(case.logits)}, {str(case.logits.dtype).removeprefix('torch.')}, {case.device}",
            kind,
            name,
            f"{median:.2f} ({least:.2f})",
            ratio,
            f"{target:.2f}" if name == "ours" else "",
            f"{share * size / 1e6:,.0f}",
            f"{share:.1%}",
            f"{MEMORY_TARGET:.0%}" if ours else "",
        )


def main() -> None:
    """Command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("rows, dtype, device", "pass", "", "s: median (least)", "x plain, or naive update")
    more = ("target", "MB beside the logits", "of them", "target")
    table = Table(*columns, *more, title=f"V = {VOCABULARY}, k = {K}")
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        for rows in args.rows:
            for dtype in (torch.bfloat16, torch.float32):
                case = Case(rows, dtype, device)
                measure(table, case, "scoring", args.rounds, "plain", SCORING_TARGET)
                measure(table, case, "update", args.rounds, "naive", UPDATE_TARGET)
                del case
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
