"""verl's own trainer and distillation train with drift weights, with nothing else of ours.

What is real: verl, Ray, TransferQueue, and the servers of student and teacher.
"""

import harness
import pytest

pytestmark = pytest.mark.e2e

TEACHER = "distillation.teacher_models.teacher_model"
STEPS = 3
SETTINGS = {
    "prune_opd.teacher.path": None,
    "prune_opd.dump_dir": None,
    "distillation.distillation_loss.topk": 8,
    "distillation.distillation_loss.w_drop": 0.1,
    "distillation.n_gpus_per_node": 1,
    f"{TEACHER}.inference.dtype": "float32",
    f"{TEACHER}.inference.free_cache_engine": False,
    f"+{TEACHER}.inference.enable_sleep_mode": False,
    "trainer.total_training_steps": STEPS,
}


@pytest.fixture(scope="session")
def weighted(tmp_path_factory):
    """A teacher that drifts from the student."""
    inputs = tmp_path_factory.mktemp("inputs")
    harness.build_inputs(inputs)
    settings = SETTINGS | {f"{TEACHER}.model_path": inputs / "noisy"}
    folder = tmp_path_factory.mktemp("weighted")
    run = harness.run(inputs, folder, settings, recipe="drift_weights")
    assert run.returncode == 0, run.output[-5000:]
    return run


def test_weights_fall_with_events(weighted):
    assert len(weighted.steps) == STEPS
    for step in weighted.steps:
        names = ("event_rate", "loss_weight", "zero_weight_ratio")
        events, weight, spent = (step[f"actor/distillation/{name}"] for name in names)
        assert 0.1 < events < 0.9
        assert 0 < spent < 1
        # R is at most 1 where it is not 0, and w_base is .5.
        assert 0.5 < weight <= 0.5 + 1 - spent


def test_the_student_is_trained(weighted):
    assert all(step["actor/grad_norm"] > 0 for step in weighted.steps)
    assert all(step["actor/distillation/loss_max"] > 0 for step in weighted.steps)
