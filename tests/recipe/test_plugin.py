"""verl finds our parts when it looks for them, and ``import verl`` alone loads nothing heavy."""

import subprocess
import sys
from importlib.metadata import entry_points


def test_installed_entry_points():
    def values(group: str) -> set[str]:
        return {point.value for point in entry_points(group=group)}

    assert values("verl.plugins") >= {"verl_ext.plugin", "recipe.prune_opd.plugin"}
    assert "verl_ext.cpu:disable_onednn_packing" in values("vllm.general_plugins")


def test_verl_finds_the_trainer():
    from verl.trainer.ppo.v1 import get_trainer_cls

    trainer = get_trainer_cls("prune_opd")
    assert (
        f"{trainer.__module__}.{trainer.__name__}"
        == "recipe.prune_opd.training.trainer.PruneOPDTrainer"
    )


def test_importing_verl_loads_the_plugins_and_nothing_heavy():
    prefixes = ("recipe", "verl_ext", "vllm", "verl.trainer")
    script = f"import sys, verl; print(*(m for m in sys.modules if m.startswith({prefixes})))"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    loaded = set(run.stdout.splitlines()[-1].split())
    assert {"recipe.prune_opd.plugin", "verl_ext.plugin"} <= loaded
    allowed = {"recipe", "recipe.prune_opd", "recipe.prune_opd.plugin"}
    assert loaded - allowed <= {
        f"verl_ext{name}" for name in ("", ".plugin", ".logs", ".texts", ".cpu", ".cpu.platform")
    }
