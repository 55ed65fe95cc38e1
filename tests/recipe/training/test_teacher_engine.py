"""The worker asks verl for a teacher that the student's training engine holds, and never trains."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, PreTrainedTokenizerFast
from verl.workers.engine_workers import ActorRolloutRefWorker

from recipe.prune_opd.config import load_config
from recipe.prune_opd.training import teacher_workers as module
from recipe.prune_opd.training.worker import PruneOPDWorker


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A student and a teacher without weights."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")),
        unk_token="<unk>",
        eos_token="a",
        pad_token="a",
    )
    found = {}
    for name, rows in (("student", 16), ("teacher", 24)):
        found[name] = str(tmp_path_factory.mktemp(name))
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
        model = LlamaConfig(
            vocab_size=rows, num_hidden_layers=1, architectures=["LlamaForCausalLM"], **sizes
        )
        model.save_pretrained(found[name])
        tokenizer.save_pretrained(found[name])
    return found


@pytest.fixture
def asked(compose, folders, monkeypatch) -> Any:
    """What verl is asked for, by its name of an engine's keys and other overrides."""

    def ask(engine: str, *overrides: str) -> Any:
        config = compose(
            "+recipe=prune_opd",
            f"model_engine={engine}",
            f"actor_rollout_ref.model.path={folders['student']}",
            f"prune_opd.teacher.path={folders['teacher']}",
            *overrides,
        )
        seen: list[Any] = []
        passes: list[Any] = []
        parts = {"reset": lambda: None, "get_dispatch_collect": dict}
        built = SimpleNamespace(**parts, set_loss_fn=lambda given: passes.append(given))
        monkeypatch.setattr(module, "TrainingWorker", lambda config: seen.append(config) or built)
        worker = object.__new__(PruneOPDWorker)
        worker.config, worker.role = config.actor_rollout_ref, "ref"
        worker.prune_opd = load_config(config.prune_opd)
        worker.ref_worker_cls = partial(
            module.build_teachers, worker.config, worker.prune_opd.teacher
        )
        worker.set_dispatch_collect = lambda **given: None
        ActorRolloutRefWorker.init_model(worker)
        assert [one.vocab_size for one in passes] == [24]  # its own, whatever the student's is
        return seen[0]

    return ask


@pytest.mark.parametrize(
    ("engine", "keys", "optimizer"),
    [
        ("dp", "FSDPEngineConfig", "FSDPOptimizerConfig"),
        ("veomni", "VeOmniEngineConfig", "VeOmniOptimizerConfig"),
        ("megatron", "McoreEngineConfig", "McoreOptimizerConfig"),
    ],
)
def test_the_teacher_is_held_by_the_students_engine(asked, folders, engine, keys, optimizer):
    given = asked(engine)
    assert type(given.engine_config).__name__ == keys
    assert given.engine_config.forward_only
    assert type(given.optimizer_config).__name__ == optimizer
    assert given.model_config.path == folders["teacher"]
    assert given.model_config.hf_config.vocab_size == 24
    assert not given.model_config.lora.get("rank")


def test_megatrons_teacher_is_cut_as_the_student_is(asked):
    node = "actor_rollout_ref.actor.megatron"
    given = asked(
        "megatron", f"{node}.tensor_model_parallel_size=2", f"{node}.context_parallel_size=4"
    )
    engine = given.engine_config
    assert (engine.tensor_model_parallel_size, engine.context_parallel_size) == (2, 4)
    assert engine.use_remove_padding
