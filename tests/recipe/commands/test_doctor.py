"""Every planted fault of a pair is found by ``doctor``, and none in a sound pair."""

import json
import os
import re
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from recipe.prune_opd.__main__ import main
from recipe.prune_opd.commands.doctor import health, stored, weights
from recipe.prune_opd.commands.doctor.arguments import Arguments
from recipe.prune_opd.commands.doctor.command import exit_code
from recipe.prune_opd.commands.pair import models
from recipe.prune_opd.commands.pair.findings import ERROR, OK, SKIPPED, WARNING, Finding
from recipe.prune_opd.commands.pair.models import Pair

WORDS = ["<unk>", "<eos>", "<pad>", "<user>", "<assistant>", "<end>", *(f"w{i}" for i in range(90))]
TEMPLATE = (
    "{% for m in messages %}{{ '<' ~ m['role'] ~ '> ' ~ m['content'] ~ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
PLAN = Arguments("", "", max_prompt_length=16, max_response_length=200, tokens=12)


def examine(student: str, teacher: str, plan: Arguments) -> list[Finding]:
    return health.examine(replace(plan, student=student, teacher=teacher))


def save_model(
    folder: Path,
    words: list[str] = WORDS,
    rows: int = 96,
    template: str | None = TEMPLATE,
    ends: list[int] | None = None,
    eos: str | None = "<eos>",
    pad: str | None = "<pad>",
    context: int = 512,
    tied: bool = False,
    seed: int = 0,
) -> str:
    """A model folder with weights: Llama of one layer, word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(seed)
    end = None if eos is None else words.index(eos)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=end,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=ends or end)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token=eos, pad_token=pad, bos_token=None
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return str(folder)


def change_weights(folder: Path, change) -> None:
    """Rewrite the checkpoint of a model folder."""
    file = Path(folder) / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def save_data(file: Path, words: int = 4, key: str = "prompt", rows: int = 8) -> Path:
    content = " ".join(f"w{i}" for i in range(words))
    row = {key: [{"role": "user", "content": content}], "data_source": "d"}
    if file.suffix == ".parquet":
        import pandas

        pandas.DataFrame([row] * rows).to_parquet(file)
    else:
        file.write_text((json.dumps(row) + "\n") * rows)
    return file


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> SimpleNamespace:
    """A student and a teacher with the same weights, and data."""
    folder = tmp_path_factory.mktemp("sound")
    return SimpleNamespace(
        student=save_model(folder / "student"),
        teacher=save_model(folder / "teacher"),
        data=save_data(folder / "train.parquet"),
    )


def named(findings: list[Finding], name: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.name == name]
    return finding


def troubles(findings: list[Finding]) -> dict[str, str]:
    return {
        finding.name: finding.status for finding in findings if finding.status in (WARNING, ERROR)
    }


# -------------------------------------------------------------------------------------- sound pairs


def test_nothing_is_found_in_a_sound_pair(sound):
    findings = examine(sound.student, sound.teacher, replace(PLAN, data=sound.data))
    assert troubles(findings) == {}
    assert exit_code(findings) == 0
    assert {f.name for f in findings if f.status == SKIPPED} == {"rollout engine"}
    assert "8 prompts: 6 tokens on average, 6 at most" in named(findings, "prompts").evidence
    assert "overlap 1.000, 0 drift events" in named(findings, "own teacher").evidence
    assert (
        "overlap of the top 16 on 21 sampled tokens: 1.00" in named(findings, "agreement").evidence
    )


SOUND_VARIANTS = {
    "tied head against an untied one": {"tied": True},
    "padded embedding": {"rows": 128},
    "another template of the same effect": {"template": TEMPLATE + "{# a comment #}"},
    "end token named twice": {"ends": [1, 1]},
    "longer context": {"context": 4096},
}


@pytest.mark.parametrize("variant", SOUND_VARIANTS.values(), ids=SOUND_VARIANTS.keys())
def test_harmless_differences_are_not_flagged(sound, tmp_path, monkeypatch, variant):
    monkeypatch.setattr(weights, "UNRELATED_OVERLAP", 0)  # other shapes have other random weights
    teacher = save_model(tmp_path / "teacher", **variant)
    findings = examine(sound.student, teacher, replace(PLAN, data=sound.data))
    assert troubles(findings) == {}
    student = teacher
    assert troubles(examine(student, sound.teacher, PLAN)) == {}


def test_without_data_its_own_prompts_are_used_and_nothing_is_claimed_of_the_data(sound):
    findings = examine(sound.student, sound.teacher, PLAN)
    assert named(findings, "prompts").status == SKIPPED
    assert named(findings, "own teacher").status == OK


# ----------------------------------------------------------------------------------- planted faults


def swapped(words: list[str]) -> list[str]:
    words = [*words]
    words[20], words[21] = words[21], words[20]
    return words


def with_nan(folder: str) -> None:
    change_weights(
        folder, lambda weights: weights["model.norm.weight"].view(-1)[3:4].fill_(float("nan"))
    )


def too_large(folder: str) -> None:
    change_weights(folder, lambda weights: weights["lm_head.weight"].mul_(1e8))


def without_head(folder: str) -> None:
    change_weights(folder, lambda weights: weights.pop("lm_head.weight"))


FAULTS = {
    "swapped token ids": ({}, {"words": swapped(WORDS)}, {}, "token ids", ERROR, "2 of 96 ids"),
    "another token at one id": (
        {},
        {"words": [*WORDS[:40], "<tool>", *WORDS[41:]]},
        {},
        "token ids",
        ERROR,
        "40: 'w34' and '<tool>'",
    ),
    "token of one model only": (
        {"rows": 97},
        {"words": [*WORDS, "<tool>"], "rows": 97},
        {},
        "token ids",
        WARNING,
        "96 ('<tool>')",
    ),
    "teacher's vocabulary smaller": (
        {},
        {"words": WORDS[:90], "rows": 90},
        {},
        "vocabulary",
        ERROR,
        "rows of the embeddings: 96 and 90",
    ),
    "tokens without a row": ({"rows": 90}, {}, {}, "vocabulary", ERROR, "tokens: 96 and 96"),
    "k above the vocabulary": ({}, {}, {"topk": 97}, "vocabulary", ERROR, "k = 97"),
    "another end in generation_config": (
        {},
        {"ends": [1, 5]},
        {},
        "end tokens",
        WARNING,
        "1 (<eos>), 5 (<end>)",
    ),
    "no end token": ({"eos": None}, {}, {}, "end tokens", ERROR, "student: none"),
    "end token that is no token": (
        {"ends": [1000]},
        {"ends": [1000]},
        {},
        "end tokens",
        ERROR,
        "1000 (unknown)",
    ),
    "no padding token": ({"pad": None}, {}, {}, "padding token", WARNING, "none"),
    "other chat template": (
        {},
        {"template": TEMPLATE.replace("' ' }}", "' w1 ' }}")},
        {},
        "chat template",
        WARNING,
        "w1 <assistant>",
    ),
    "no chat template": ({"template": None}, {}, {}, "chat template", ERROR, "has none"),
    "teacher without chat template": (
        {},
        {"template": None},
        {},
        "chat template",
        WARNING,
        "has none",
    ),
    "student's context too short": ({"context": 215}, {}, {}, "context", ERROR, "needed: 216"),
    "teacher's context too short": ({}, {"context": 215}, {}, "context", WARNING, "needed: 216"),
    "float16": ({}, {}, {"dtype": "float16"}, "dtype", WARNING, "float16"),
    "too little memory": (
        {},
        {},
        {"gpu_memory": 1e-4, "gpus": 1},
        "memory",
        ERROR,
        "on each of 1 GPUs",
    ),
    "another teacher": ({}, {"seed": 7}, {}, "agreement", WARNING, "overlap of the top 16"),
}


@pytest.mark.parametrize(
    ("student", "teacher", "plan", "name", "status", "evidence"), FAULTS.values(), ids=FAULTS.keys()
)
def test_planted_faults_are_found(sound, tmp_path, student, teacher, plan, name, status, evidence):
    ours = save_model(tmp_path / "student", **student) if student else sound.student
    theirs = save_model(tmp_path / "teacher", **teacher) if teacher else sound.teacher
    plan = replace(PLAN, data=sound.data, **plan)
    findings = examine(ours, theirs, replace(plan, no_weights=name != "agreement"))
    finding = named(findings, name)
    assert finding.status == status
    assert evidence in finding.evidence
    assert finding.change
    assert exit_code(findings) == {ERROR: 2, WARNING: 1}[status]


BROKEN = {
    "NaN": (with_nan, "bfloat16", "1 tensors hold NaN or infinity, the first: model.norm.weight"),
    "overflow": (
        too_large,
        "float16",
        "in float16 the log-probs of 21 of 21 sampled tokens are not",
    ),
    "tensor missing": (
        without_head,
        "bfloat16",
        "1 tensors are not in the checkpoint, the first: lm_head.weight",
    ),
}


@pytest.mark.parametrize(("fault", "dtype", "evidence"), BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_broken_weights_are_found(sound, tmp_path, who, fault, dtype, evidence):
    broken = save_model(tmp_path / "broken")
    fault(broken)
    pair = (broken, sound.teacher) if who == "student" else (sound.student, broken)
    findings = examine(*pair, replace(PLAN, data=sound.data, dtype=dtype))
    finding = named(findings, f"{who}'s weights")
    assert finding.status == ERROR
    assert evidence in finding.evidence
    assert exit_code(findings) == 2


def test_weights_that_are_not_there_are_found(sound, tmp_path):
    folder = save_model(tmp_path / "empty")
    (Path(folder) / "model.safetensors").unlink()
    findings = examine(folder, sound.teacher, PLAN)
    assert named(findings, "student's weights").status == ERROR
    assert named(findings, "agreement").status == SKIPPED


def test_a_cut_off_checkpoint_is_a_finding_beside_the_others(sound, tmp_path):
    folder = save_model(tmp_path / "cut")
    file = Path(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    findings = examine(folder, sound.teacher, PLAN)
    assert named(findings, "student's weights").status == ERROR
    assert "SafetensorError" in named(findings, "student's weights").evidence
    assert named(findings, "token ids").status == OK
    assert named(findings, "agreement").status == SKIPPED
    assert named(examine(sound.student, folder, PLAN), "teacher's weights").status == ERROR


def test_a_model_that_overflows_in_float32_is_found(sound, tmp_path):
    folder = save_model(tmp_path / "large")
    change_weights(folder, lambda weights: weights["lm_head.weight"].sign_().mul_(3e38))
    findings = examine(folder, sound.teacher, PLAN)
    assert "log-probs in float32 are not" in named(findings, "student's weights").evidence


def test_padding_that_leaks_is_found(sound, monkeypatch):
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def leaking(self, *args, attention_mask=None, **kwargs):
        output = forward(self, *args, **kwargs)
        if attention_mask is not None:
            output.logits[1:] = output.logits[1:].flip(-1)  # rows with padding
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", leaking)
    finding = named(examine(sound.student, sound.teacher, PLAN), "own teacher")
    assert finding.status == ERROR
    assert "attn_implementation" in finding.change


def test_a_model_that_does_not_fit_is_left_out(sound, monkeypatch):
    monkeypatch.setattr(models, "free_memory", lambda device: 1e3)
    findings = examine(sound.student, sound.teacher, PLAN)
    assert named(findings, "student's weights").status == SKIPPED
    assert "needed in float32, 1 kB free" in named(findings, "student's weights").evidence
    assert exit_code(findings) == 0


# --------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_faults_of_the_data_are_found(sound, tmp_path, suffix):
    plan = replace(PLAN, no_weights=True)
    long = replace(plan, data=save_data(tmp_path / f"long{suffix}", words=15))
    finding = named(examine(sound.student, sound.teacher, long), "prompts")
    assert finding.status == WARNING
    assert "17 at most; 8 above 16" in finding.evidence
    assert "filter_overlong_prompts" in finding.change
    column = replace(plan, data=save_data(tmp_path / f"column{suffix}", key="question"))
    finding = named(examine(sound.student, sound.teacher, column), "prompts")
    assert finding.status == ERROR
    assert "has no column 'prompt'" in finding.evidence
    assert (
        named(
            examine(sound.student, sound.teacher, replace(column, prompt_key="question")), "prompts"
        ).status
        == OK
    )


def test_prompts_that_are_no_chats_are_found(sound, tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps({"prompt": "w1 w2"}) + "\n")
    finding = named(
        examine(sound.student, sound.teacher, replace(PLAN, data=file, no_weights=True)), "prompts"
    )
    assert finding.status == ERROR
    assert "row 0 of column 'prompt' holds 'w1 w2'" in finding.evidence


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_the_template_is_asked_about_every_set_of_roles(sound, tmp_path, suffix):
    """The fourth row alone has a system prompt, which the template refuses."""
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    )
    student = save_model(tmp_path / "student", template=template)
    prompt = [{"role": "user", "content": "w1"}]
    file = tmp_path / f"d{suffix}"
    rows = [{"prompt": prompt}] * 3 + [{"prompt": [{"role": "system", "content": "w2"}, *prompt]}]
    if suffix == ".parquet":
        import pandas

        pandas.DataFrame(rows).to_parquet(file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = replace(PLAN, data=file, max_rows=2, no_weights=True)
    finding = named(examine(student, sound.teacher, plan), "chat template")
    assert finding.status == ERROR
    assert finding.evidence.startswith("the student's refuses ")
    assert "'system'" in finding.evidence
    finding = named(examine(sound.student, sound.teacher, plan), "chat template")
    assert (finding.status, finding.evidence[:30]) == (OK, "3 prompts come out alike; the ")


def test_a_row_beyond_those_whose_length_is_taken_is_looked_at(sound, tmp_path):
    prompt = [{"role": "user", "content": "w1"}]
    answered = [*prompt, {"role": "assistant", "content": "w2"}]
    file = tmp_path / "d.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": one}) + "\n" for one in [prompt] * 5 + [answered])
    )
    finding = named(
        examine(
            sound.student, sound.teacher, replace(PLAN, data=file, max_rows=2, no_weights=True)
        ),
        "prompts",
    )
    assert finding.status == ERROR
    assert f"{file}, row 5 of column 'prompt' holds" in finding.evidence
    assert "ends with a turn of assistant" in finding.evidence


def test_only_the_first_rows_are_read(sound):
    plan = replace(PLAN, data=sound.data, max_rows=5, no_weights=True)
    assert (
        "the first 5 of 8 prompts"
        in named(examine(sound.student, sound.teacher, plan), "prompts").evidence
    )


def test_a_template_that_refuses_a_prompt_is_found(sound, tmp_path):
    template = "{% if messages[0]['role'] == 'user' %}{{ raise_exception('no') }}{% endif %}"
    student = save_model(tmp_path / "student", template=template)
    finding = named(
        examine(student, sound.teacher, replace(PLAN, no_weights=True)), "chat template"
    )
    assert finding.status == ERROR
    assert "refuses" in finding.evidence


def test_the_template_takes_its_arguments(sound, tmp_path):
    student = save_model(
        tmp_path / "student", template=TEMPLATE + "{% if think %} w1 w2{% endif %}"
    )
    plan = replace(PLAN, data=sound.data, no_weights=True)
    assert named(examine(student, student, plan), "prompts").evidence.startswith(
        "8 prompts: 6 tokens"
    )
    plan = replace(plan, chat_template_kwargs={"think": True})
    assert named(examine(student, student, plan), "prompts").evidence.startswith(
        "8 prompts: 8 tokens"
    )
    assert named(examine(student, sound.teacher, plan), "chat template").status == WARNING


# ------------------------------------------------------------------------------- context, turn ends


def test_the_model_without_a_shape_is_named(sound):
    pair = Pair.read(sound.student, sound.teacher)
    pair.teacher.config = SimpleNamespace(model_type="other")
    finding = stored.memory(pair, PLAN)
    assert finding.evidence.startswith("TEACHER: model_type 'other' has no num_attention_heads")


def test_special_tokens_alone_count_as_the_end_of_a_turn(sound, tmp_path):
    student = save_model(tmp_path / "student", template=TEMPLATE.replace("~ ' ' }}", "~ ' w1 ' }}"))
    assert (
        named(examine(student, student, replace(PLAN, no_weights=True)), "end tokens").status == OK
    )


def test_scaling_counts_for_the_teacher_alone(sound, tmp_path):
    """verl gives the rollout ``max_position_embeddings`` as it stands, and the run would not
    start."""
    folder = Path(save_model(tmp_path / "yarn", context=100))
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 100,
    }
    config["rope_parameters"]["rope_theta"] = 10000.0
    (folder / "config.json").write_text(json.dumps(config))
    plan = replace(PLAN, no_weights=True)
    finding = named(examine(sound.student, str(folder), plan), "context")
    assert (finding.status, finding.evidence) == (OK, "contexts of 512 and 400 tokens; needed: 216")
    finding = named(examine(str(folder), sound.teacher, plan), "context")
    assert (finding.status, finding.evidence) == (
        ERROR,
        "contexts of 100 and 512 tokens; needed: 216",
    )


def test_a_turn_that_ends_with_no_end_token_is_found(sound, tmp_path):
    template = TEMPLATE.replace("~ ' ' }}", "~ ' <pad> ' }}")
    student = save_model(tmp_path / "student", template=template)
    finding = named(examine(student, student, replace(PLAN, no_weights=True)), "end tokens")
    assert finding.status == WARNING
    assert "the chat template ends a turn with 2 (<pad>)" in finding.evidence


def test_texts_that_are_cut_differently_are_found(sound, tmp_path):
    teacher = save_model(tmp_path / "teacher")
    file = Path(teacher) / "tokenizer.json"
    settings = json.loads(file.read_text())
    settings["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(settings))
    (tmp_path / "d.jsonl").write_text(
        json.dumps({"prompt": [{"role": "user", "content": "W1 w2"}]}) + "\n"
    )
    plan = replace(PLAN, data=tmp_path / "d.jsonl", no_weights=True)
    finding = named(examine(sound.student, teacher, plan), "tokenization")
    assert finding.status == WARNING
    assert "1 of 1 texts give other ids, the first: 'W1 w2'" in finding.evidence


# ------------------------------------------------------------------------------------------- engine


class FakeLLM:
    """What ``engines`` uses of vLLM, on transformers; ``shift`` is added to every log-prob. It logs
    as vLLM does."""

    shift = 0.0

    def __init__(self, model, dtype, seed, enforce_eager, max_model_len, trust_remote_code):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.llm_engine = SimpleNamespace(
            engine_core=SimpleNamespace(shutdown=lambda: self.stopped.append(self))
        )

    def generate(self, prompts, sampling):
        os.write(1, b"INFO a log\n")
        return [
            self.answer(prompt["prompt_token_ids"], each.max_tokens)
            for prompt, each in zip(prompts, sampling, strict=True)
        ]

    @torch.no_grad()
    def answer(self, ids, tokens):
        made, log_probs = [], []
        for _ in range(tokens):
            row = (
                self.model(input_ids=torch.tensor([ids + made]))
                .logits[0, -1]
                .float()
                .log_softmax(-1)
            )
            made.append(int(row.argmax()))
            log_probs.append({made[-1]: SimpleNamespace(logprob=float(row.max()) + self.shift)})
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=made, logprobs=log_probs)])


@pytest.fixture
def fake(monkeypatch) -> type[FakeLLM]:
    vllm = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = FakeLLM, lambda **given: SimpleNamespace(**given)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(FakeLLM, "stopped", [], raising=False)
    return FakeLLM


@pytest.mark.parametrize(("shift", "status"), [(0.0, OK), (0.2, WARNING), (1.0, ERROR)])
def test_an_engine_that_computes_something_else_is_found(sound, fake, monkeypatch, shift, status):
    monkeypatch.setattr(fake, "shift", shift)
    finding = named(
        examine(sound.student, sound.teacher, replace(PLAN, engine=True)), "rollout engine"
    )
    assert finding.status == status
    assert "log-probs of 36 tokens by vLLM differ by" in finding.evidence
    assert len(fake.stopped) == 1


@pytest.mark.parametrize("method", ["__init__", "generate"])
def test_an_engine_that_fails_is_a_finding_beside_the_others(sound, fake, monkeypatch, method):
    def fail(*args, **kwargs):
        raise RuntimeError("no memory\nfor this")

    monkeypatch.setattr(fake, method, fail)
    findings = examine(sound.student, sound.teacher, replace(PLAN, engine=True))
    assert named(findings, "rollout engine").status == ERROR
    assert named(findings, "rollout engine").evidence == "vLLM does not run: no memory"
    assert named(findings, "agreement").status == OK
    assert len(fake.stopped) == (method == "generate")


@pytest.mark.usefixtures("fake")
def test_what_an_engine_prints_does_not_mix_with_the_answer(sound, capfd):
    assert main(["doctor", sound.student, sound.teacher, "--engine", "--json", *LENGTHS]) == 0
    captured = capfd.readouterr()
    statuses = {
        finding["name"]: finding["status"] for finding in json.loads(captured.out)["findings"]
    }
    assert statuses["rollout engine"] == OK
    assert "INFO a log" in captured.err


def test_an_engine_that_is_not_installed_is_a_warning(sound, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setitem(sys.modules, "sglang", None)
    finding = named(
        examine(sound.student, sound.teacher, replace(PLAN, engine=True)), "rollout engine"
    )
    assert finding.status == WARNING
    assert "neither vLLM nor SGLang" in finding.evidence


FAKE_SGLANG = """
import math, os

class Engine:
    def __init__(self, model_path, dtype, context_length, trust_remote_code, **options):
        print("INFO a log")
        {start}

    def generate(self, input_ids, sampling_params, return_logprob):
        rows = [(math.log(1 / 96), 1, None)] * sampling_params["max_new_tokens"]
        return [{{"meta_info": {{"output_token_logprobs": rows}}}} for _ in input_ids]

    def shutdown(self):
        print("INFO gone")
"""


@pytest.fixture
def with_sglang(tmp_path, monkeypatch):
    """Puts a stand-in where a process of its own finds it, and hides vLLM."""

    def put(start: str) -> None:
        (tmp_path / "sglang.py").write_text(FAKE_SGLANG.format(start=start))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(sys.modules, "vllm", None)
        monkeypatch.delitem(sys.modules, "sglang", raising=False)

    yield put
    sys.modules.pop("sglang", None)


def test_without_vllm_sglang_is_asked(sound, with_sglang, capfd):
    """Its answers are even here, and so are those of a model with small random weights, nearly."""
    with_sglang("pass")
    assert main(["doctor", sound.student, sound.teacher, "--engine", "--json", *LENGTHS]) in (0, 1)
    captured = capfd.readouterr()
    (finding,) = [
        row for row in json.loads(captured.out)["findings"] if row["name"] == "rollout engine"
    ]
    assert finding["evidence"].startswith("log-probs of 96 tokens by SGLang differ by 0.0")
    assert "INFO a log" in captured.err
    assert "INFO gone" in captured.err


@pytest.mark.parametrize(
    ("start", "evidence"),
    [
        ("raise RuntimeError('no memory')", "SGLang does not run: no memory"),
        (
            "os.kill(os.getpid(), 9)",
            "SGLang does not run: the engine's process died, its log on standard error",
        ),
    ],
)
def test_a_failing_sglang_is_a_finding_beside_the_others(sound, with_sglang, start, evidence):
    with_sglang(start)
    findings = examine(sound.student, sound.teacher, replace(PLAN, engine=True))
    assert named(findings, "rollout engine").status == ERROR
    assert named(findings, "rollout engine").evidence.startswith(evidence)
    assert named(findings, "agreement").status == OK


# ------------------------------------------------------------------------------------- command line


LENGTHS = ["--max-prompt-length", "16", "--max-response-length", "200"]


OPTIONS = (
    "--data --prompt-key --chat-template-kwargs --max-rows --max-prompt-length"
    " --max-response-length --topk --gpus --gpu-memory --dtype --trust-remote-code --no-weights"
    " --tokens --device --engine --json"
)


def test_options_are_those_that_scripts_of_users_have():
    names = {field.name for field in fields(Arguments)} - {"student", "teacher"}
    assert {f"--{name.replace('_', '-')}" for name in names} == set(OPTIONS.split())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--topk", "0"], "got 0, allowed: a whole number >= 1"),
        (["--gpu-memory", "0"], "got 0, allowed: a number > 0"),
        (["--gpu-memory", "inf"], "got inf, allowed: a number > 0"),
        (["--chat-template-kwargs", "[1]"], "got [1], allowed: a JSON object"),
        (["--chat-template-kwargs", "{"], "got {, allowed: a JSON object"),
        (["--dtype", "int8"], "invalid choice 'int8' for argument '--dtype'"),
        (["--no-engine"], "Unrecognized"),
    ],
)
def test_an_option_outside_its_range_is_refused(option, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "a", "b", *option])
    assert stopped.value.code == 2
    said = " ".join(re.sub("[│|]", " ", capsys.readouterr().err).split())
    assert option[0] in said
    assert message in said


def test_the_table_and_the_exit_code(sound, tmp_path, capsys):
    assert main(["doctor", sound.student, sound.teacher, "--no-weights", *LENGTHS]) == 0
    assert "skipped" in capsys.readouterr().out
    teacher = save_model(tmp_path / "teacher", ends=[1, 5])
    assert main(["doctor", sound.student, teacher, "--no-weights", *LENGTHS]) == 1
    assert "-> the teacher rates the student's end as unlikely" in " ".join(
        capsys.readouterr().out.split()
    )


def test_json_is_for_machines(sound, capsys):
    assert (
        main(
            [
                "doctor",
                sound.student,
                sound.teacher,
                "--no-weights",
                "--json",
                "--topk",
                "97",
                *LENGTHS,
            ]
        )
        == 2
    )
    answer = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == 2
    assert answer["findings"][0] == {
        "name": "vocabulary",
        "status": "error",
        "evidence": "tokens: 96 and 96; rows of the embeddings: 96 and 96; k = 97",
        "change": "lower prune_opd.topk to at most 96",
    }


def test_bad_input_is_one_sentence(sound, tmp_path, capsys):
    pointer, cloned = tmp_path / "d.parquet", save_model(tmp_path / "cloned")
    for file in (pointer, Path(cloned) / "model.safetensors"):
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    capsys.readouterr()
    for arguments in (
        [str(tmp_path / "nowhere"), sound.teacher],
        [sound.student, str(tmp_path)],
        [sound.student, sound.teacher, "--data", str(tmp_path / "no.parquet")],
        [sound.student, sound.teacher, "--data", str(pointer)],
        [sound.student, cloned],
        [sound.student, sound.teacher, "--device", "nowhere"],
        [sound.student, sound.teacher, "--device", "cuda:99"],
    ):
        assert main(["doctor", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("doctor: ")
        assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        ({"model": {}}, "'added_tokens' is missing"),
        ({"added_tokens": [], "model": {}}, "Exception: "),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_one_sentence(
    sound, tmp_path, capsys, tokenizer, reason
):
    folder = Path(save_model(tmp_path / "student"))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    capsys.readouterr()
    assert main(["doctor", str(folder), sound.teacher]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        f"doctor: STUDENT: {folder} holds no model configuration with tokenizer ({reason}"
    )
    assert error.count("\n") == 1


def test_every_finding_is_explained_in_its_page(sound):
    page = (Path(__file__).resolve().parents[3] / "docs" / "doctor.md").read_text()
    for finding in examine(sound.student, sound.teacher, replace(PLAN, no_weights=True)):
        assert f"\n| {finding.name} |" in page
