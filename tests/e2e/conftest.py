"""Makes ``harness`` importable, and the models and problems of all runs; says which tests
`make test` leaves to `make test-all`.

The test folders are no packages, since verl installs one named ``tests``.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import harness

SLOW = {
    "vllm": {
        *("plain", "adopted", "output", "extended", "permuted", "filling", "semi", "scored"),
        *("weighted", "interrupted", "orphaned", "separate", "agents", "late", "resumed"),
        *("tools_gated", "rloo", "halted", "lost_trainer", "lost_server", "untrained_server"),
        *("lora", "several", "one_copy", "unlike", "clustered", "lost_rank", "reported", "killed"),
    },
    # What the engine has no part in is tested with vLLM: the trainer's own passes, its state.
    "sglang": {
        *("plain", "adopted", "same", "resumed", "permuted", "extended", "orphaned", "output"),
        *("filling", "semi", "scored", "weighted", "late", "separate", "interrupted"),
        *("agents", "tools_gated", "grpo", "rloo", "several", "one_copy", "unlike"),
        *("halted", "lost_trainer", "lost_server", "untrained_server", "lora"),
        *("clustered", "lost_rank", "reported", "killed"),
    },
}
"""Runs of a minute or more that rarely find anything, by their fixture."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of those runs."""
    for item in items:
        if SLOW[harness.ENGINE] & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the models and problems, which runs only read."""
    folder = tmp_path_factory.mktemp("inputs")
    harness.build_inputs(folder)
    return folder
