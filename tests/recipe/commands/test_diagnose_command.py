"""Known pairs get their verdict from ``diagnose``, by the functions that train."""

import json
import os
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from recipe.prune_opd.__main__ import main
from recipe.prune_opd.commands.diagnose import examination
from recipe.prune_opd.commands.diagnose import passes as diagnose_passes
from recipe.prune_opd.commands.diagnose.arguments import Arguments
from recipe.prune_opd.commands.diagnose.passes import Passes, load_model, score_all
from recipe.prune_opd.commands.diagnose.ready import read_rollouts
from recipe.prune_opd.commands.diagnose.tokens import KINDS, kinds_of
from recipe.prune_opd.commands.pair.models import Pair
from recipe.prune_opd.commands.pair.sampling import Rollout, Sampling, sample
from recipe.prune_opd.commands.pair.scoring import (
    logits_of,
    logits_together,
    sampled_log_probs,
    score,
)
from recipe.prune_opd.method.drift import overlap_events, reliability
from verl_ext.logits import log_probs_at, top_log_probs

WORDS = [
    "<unk>",
    "<eos>",
    "<pad>",
    "<user>",
    "<assistant>",
    "<script>",
    "7",
    "+",
    *(f"w{i}" for i in range(88)),
]
TEMPLATE = (
    "{% for m in messages %}{{ '<' ~ m['role'] ~ '> ' ~ m['content'] ~ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
SMALL = [
    "--prompts",
    "8",
    "--samples",
    "1",
    "--max-response-length",
    "40",
    "--max-prompt-length",
    "16",
    "--steps",
    "9",
]


def save_model(
    folder: Path, seed: int = 0, words: list[str] = WORDS, context: int = 256, ends: int = 1
) -> str:
    """A model folder with random weights, sharp enough to have a ranking."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=ends,
    )
    model = LlamaForCausalLM(config)
    # What a model brings for sampling must not reach the responses.
    model.generation_config = GenerationConfig(
        eos_token_id=ends, do_sample=True, top_k=1, repetition_penalty=2.0
    )
    model.save_pretrained(folder)
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> SimpleNamespace:
    import pandas

    folder = tmp_path_factory.mktemp("models")
    data = folder / "train.parquet"
    rows = [{"prompt": [{"role": "user", "content": f"w{i} w{i + 1}"}]} for i in range(40)]
    pandas.DataFrame(rows).to_parquet(data)
    return SimpleNamespace(
        student=save_model(folder / "student"),
        other=save_model(folder / "other", seed=1),
        data=str(data),
        folder=folder,
    )


def answer_of(capsys, *args: str) -> dict:
    assert main(["diagnose", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *args: str) -> str:
    assert main(["diagnose", *args]) == 2
    return capsys.readouterr().err


# ----------------------------------------------------------------------------------------- verdicts


def test_a_student_that_is_its_own_teacher_is_close(models, capsys):
    found = answer_of(capsys, models.student, models.student, "--data", models.data, *SMALL)
    assert found["verdict"]["name"] == "close"
    assert found["overlap"]["mean"] == 1
    assert found["events"]["mean"] == 0
    assert found["effective_length"]["of_responses"] == pytest.approx(
        found["effective_length"]["of_responses"]
    )
    assert found["effective_length"]["mean"] == found["responses"]["mean_length"]
    assert found["mass"]["teacher_on_student"] == pytest.approx(
        found["mass"]["student_mass"], abs=1e-6
    )
    ungated = [cell for cell in found["grid"] if cell["budget"]["init"] == 40]
    assert ungated
    assert all(cell["saved"] == pytest.approx(0, abs=1e-9) for cell in ungated)


def near(models, folder: Path) -> str:
    """The student with a little noise, which leaves 13 to 16 of the top 16."""
    from transformers import AutoModelForCausalLM

    teacher = save_model(folder / "near")
    model, generator = (
        AutoModelForCausalLM.from_pretrained(teacher),
        torch.Generator().manual_seed(0),
    )
    with torch.no_grad():
        for values in model.parameters():
            values.add_(0.01 * values.std() * torch.randn(values.shape, generator=generator))
    model.save_pretrained(teacher)
    return teacher


def test_the_verdict_is_judged_at_the_k_and_threshold_of_its_bounds(models, tmp_path, capsys):
    pair = (models.student, near(models, tmp_path), "--data", models.data, *SMALL)
    plain = answer_of(capsys, *pair)
    strict = answer_of(capsys, *pair, "--threshold", "1")
    wide = answer_of(capsys, *pair, "--topk", "40", "--topks", "40")
    assert strict["events"]["mean"] > 0.1 > plain["events"]["mean"]
    assert (
        plain["verdict"]["name"] == strict["verdict"]["name"] == wide["verdict"]["name"] == "close"
    )
    said = "; judged at k = 16 and γ = 0.7, of which the bounds are, whatever is planned"
    assert (
        strict["verdict"]["reason"]
        == wide["verdict"]["reason"]
        == plain["verdict"]["reason"] + said
    )
    assert {cell["topk"] for cell in wide["grid"]} == {40}


def test_a_verdict_at_too_small_a_k_says_so(models, capsys):
    found = answer_of(
        capsys, models.student, models.student, "--data", models.data, *SMALL, "--topk", "4"
    )
    assert "judged at k = 8, for which the bounds are not calibrated" in found["verdict"]["reason"]


def test_a_teacher_with_other_random_weights_is_unrelated(models, capsys):
    found = answer_of(capsys, models.student, models.other, "--data", models.data, *SMALL)
    assert found["verdict"]["name"] == "unrelated"
    assert found["overlap"]["mean"] == pytest.approx(16 / 96, abs=0.1)
    prediction = found["recommended"]["prediction"]
    assert prediction["saved"] > 0.5
    assert prediction["low"] <= prediction["generated"] <= prediction["high"]


def test_the_answer_has_every_combination_once_and_kinds_sum_up(models, capsys):
    options = (
        "--topks",
        "4",
        "--thresholds",
        "0.5",
        "--w-drops",
        "0.1",
        "0.3",
        "--gates",
        "off",
        "relative",
    )
    found = answer_of(capsys, models.student, models.other, "--data", models.data, *SMALL, *options)
    cells = {
        (cell["topk"], cell["threshold"], cell["w_drop"], cell["gate"]) for cell in found["grid"]
    }
    assert len(cells) == len(found["grid"]) == 2 * 2 * 2 * 2
    assert {cell[0] for cell in cells} == {4, 16}
    assert {cell[1] for cell in cells} == {0.5, 0.7}
    kinds, positions = found["kinds"], found["overlap"]["by_position"]
    assert sum(kind["tokens"] for kind in kinds.values()) == found["responses"]["tokens"]
    assert sum(row["tokens"] for row in positions) == found["responses"]["tokens"]
    assert {"words", "digits", "symbols", "whitespace", "special"} == set(kinds)


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(models, capsys):
    answers = [
        answer_of(
            capsys, models.student, models.other, "--data", models.data, *SMALL, "--seed", seed
        )
        for seed in ("3", "3", "4")
    ]
    assert answers[0] == answers[1]
    assert answers[0]["overlap"] != answers[2]["overlap"]


# ------------------------------------------------------------------------------------------- passes


@pytest.fixture(scope="module")
def loaded(models):
    pair = Pair.read(models.student, models.student)
    return pair, load_model(pair, pair.student, Passes())


def random_ids(number: int, seed: int) -> list[int]:
    return torch.randint(8, 96, (number,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_chunks_with_a_cache_give_the_logits_of_one_pass(loaded):
    _, model = loaded
    ids = random_ids(37, 0)
    rollout = Rollout(0, ids[:9], ids[9:])
    with torch.no_grad():
        whole = model(input_ids=torch.tensor([ids])).logits[0, 8:-1]
        for chunk in (1, 5, 9, 10, 36, 100, None):
            pieces = list(logits_of(model, rollout, chunk))
            assert max(map(len, pieces)) <= (chunk or 36)
            torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-4, rtol=0)


def test_a_padded_batch_gives_the_logits_of_each_by_itself(loaded):
    _, model = loaded
    rollouts = [Rollout(0, random_ids(4, 1), random_ids(9, 2)), Rollout(1, [3], random_ids(20, 3))]
    with torch.no_grad():
        for rows, rollout in zip(logits_together(model, rollouts), rollouts, strict=True):
            (alone,) = logits_of(model, rollout)
            torch.testing.assert_close(rows, alone, atol=1e-4, rtol=0)


def test_scores_are_those_of_the_training_functions(loaded):
    _, model = loaded
    rollout = Rollout(0, [3, 8, 9, 4], random_ids(21, 1))
    at = torch.randint(0, 96, (21, 4), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([rollout.ids])).logits[0, 3:-1]
        found = score(logits_of(model, rollout, 6), 16, 90, at, 0.5)
        sampled = sampled_log_probs(model, rollout)
    ids, log_probs = top_log_probs(logits / 0.5, 16, 90)
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.log_probs, log_probs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.at, log_probs_at(logits / 0.5, at), atol=1e-4, rtol=1e-4)
    expected = logits.log_softmax(-1)[range(21), rollout.response_ids]
    torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=1e-4)


def test_log_probs_that_are_not_numbers_are_refused(loaded):
    pair, _ = loaded
    broken, student = load_model(pair, pair.student, Passes()), pair.student
    rollouts, refusal = [Rollout(0, [3], [8, 9])], r"STUDENT.*gives NaN in float32"
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
        with pytest.raises(ValueError, match=refusal):
            score_all(broken, student, rollouts, Passes(), 1.0, 96)
        with pytest.raises(FloatingPointError):
            sample(broken, student, [[3]], Sampling(4))


def test_a_student_that_overflows_while_it_writes_is_refused(models, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    large = save_model(tmp_path / "large")
    model = AutoModelForCausalLM.from_pretrained(large)
    with torch.no_grad():
        model.lm_head.weight.sign_().mul_(3e38)
    model.save_pretrained(large)
    error = refused(capsys, large, models.student, "--data", models.data, *SMALL)
    assert error.splitlines()[-1].startswith(f"diagnose: STUDENT: {large} gives NaN in float32, ")


def test_sampling_is_from_the_whole_distribution_and_stops_at_the_end(loaded):
    """The model's own top_k = 1 would give one response many times over."""
    pair, model = loaded
    ends = frozenset(pair.student.ends)
    prompts = [[3, 8, 4]] * 40 + [[3, 9, 10, 11, 4]] * 40
    with torch.no_grad():
        found = sample(model, pair.student, prompts, Sampling(30, ends, batch=16))
        whole = sample(model, pair.student, prompts[:20], Sampling(30))
    assert len({tuple(response) for response in found}) > 40
    assert max(map(len, found)) == 30
    for response in found:
        assert all(token not in ends for token in response[:-1])
        assert len(response) == 30 or response[-1] in ends
    assert {len(response) for response in whole} == {30}  # nothing ends them


def test_the_first_sampled_token_has_the_models_probabilities(loaded):
    pair, model = loaded
    prompt = [3, 8, 4]
    how = Sampling(1, frozenset(pair.student.ends), temperature=2.0, batch=4000)
    with torch.no_grad():
        expected = (model(input_ids=torch.tensor([prompt])).logits[0, -1] / 2).softmax(-1)
        found = sample(model, pair.student, [prompt] * 4000, how)
    first = torch.tensor([response[0] for response in found])
    counts = torch.bincount(first, minlength=96) / 4000
    assert (counts - expected).abs().max() < 0.03


def test_an_id_without_a_token_is_never_sampled(tmp_path):
    """A padded embedding: the last 6 of its 96 rows are of no token."""
    folder = save_model(tmp_path / "padded", words=WORDS[:90])
    pair = Pair.read(folder, folder)
    with torch.no_grad():
        model = load_model(pair, pair.student, Passes())
        found = sample(model, pair.student, [[3, 8, 4]] * 200, Sampling(4, batch=200))
    assert max(map(max, found)) == 89


def test_kinds_of_tokens_by_the_tokenizer(loaded):
    pair, _ = loaded
    kinds = kinds_of(
        pair.student, torch.tensor([[WORDS.index("7"), WORDS.index("+"), 1, WORDS.index("w3")]])
    )
    assert [KINDS[i] for i in kinds[0].tolist()] == ["digits", "symbols", "special", "words"]


# ---------------------------------------------------------------------------------- ready responses


def rollouts_file(folder: Path, *rows: object) -> str:
    file = folder / "rollouts.jsonl"
    file.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    return str(file)


def read(file: str, pair: Pair, **given: object) -> list[Rollout]:
    return read_rollouts(Arguments("", "", rollouts=Path(file), **given), pair)[0]


def test_ready_responses_as_ids_text_and_messages_are_the_same(tmp_path, loaded):
    pair, _ = loaded
    rows = [
        {"prompt_ids": [3, 8, 4], "response_ids": [9, 10, 1]},
        {"prompt": "<user> w0 <assistant>", "response": "w1 w2"},
        {"prompt": [{"role": "user", "content": "w0"}], "response": "w1 w2", "ended": True},
        {"prompt": "<user> w1 <assistant>", "response": "w1 w2", "ended": False},
    ]
    found = read(rollouts_file(tmp_path, *rows), pair)
    assert found[0] == found[1] == found[2] == Rollout(0, [3, 8, 4], [9, 10, 1])
    assert found[3] == Rollout(1, [3, 9, 4], [9, 10])


def test_what_was_sampled_can_be_read_again(models, tmp_path, capsys):
    first = answer_of(
        capsys, models.student, models.other, "--data", models.data, *SMALL, "--out", str(tmp_path)
    )
    file = tmp_path / "diagnosis.rollouts.jsonl"
    again = answer_of(capsys, models.student, models.other, "--rollouts", str(file), *SMALL)
    for name in ("responses", "overlap", "events", "kinds", "grid", "recommended", "verdict"):
        assert again[name] == first[name]


def test_ready_responses_have_the_events_of_training(models, tmp_path, capsys, loaded):
    """The whole way on one response against the functions that weigh tokens in training."""
    _, student = loaded
    pair = Pair.read(models.student, models.other)
    teacher = load_model(pair, pair.teacher, Passes())
    prompt, response = [3, 8, 4], random_ids(30, 5)
    file = rollouts_file(tmp_path, {"prompt_ids": prompt, "response_ids": response})
    found = answer_of(capsys, models.student, models.other, "--rollouts", file, *SMALL)
    with torch.no_grad():
        ours, theirs = (
            top_log_probs(
                model(input_ids=torch.tensor([prompt + response])).logits[0, 2:-1], 16, 96
            )[0].unsqueeze(0)
            for model in (student, teacher)
        )
    from recipe.prune_opd.method.drift import overlap_ratio

    mask, overlap = torch.ones(1, 30).bool(), overlap_ratio(ours, theirs)
    events = overlap_events(overlap, mask, 0.7)
    assert found["overlap"]["mean"] == pytest.approx(overlap.mean().item())
    assert found["events"]["mean"] == pytest.approx(events.float().mean().item())
    effective = reliability(events, mask, found["effective_length"]["w_drop"], 0.5).effective_length
    assert found["effective_length"]["of_responses"] == effective.tolist()
    assert any("neither end by themselves" in note for note in found["notes"])
    assert found["events"]["low"] is None  # one prompt


def test_responses_beyond_the_limit_are_cut(tmp_path, loaded):
    pair, _ = loaded
    file = rollouts_file(tmp_path, {"prompt_ids": [3], "response_ids": [9] * 50})
    (found,) = read(file, pair, max_response_length=40)
    assert len(found.response_ids) == 40


# ---------------------------------------------------------------------------------------- bad input

BAD_LINES = {
    "no JSON": ("{", "line 1 is no JSON"),
    "no object": ([1], r"line 1 holds '\[1\]', allowed: a JSON object"),
    "nothing": ({}, "line 1: got the keys none, allowed: prompt_ids as ids, or prompt as text"),
    "another key": (
        {"input": "x", "output": "y"},
        "got the keys input, output, allowed: prompt_ids",
    ),
    "no response": (
        {"prompt": "w1"},
        "got the keys prompt, allowed: response_ids as ids, or response as text",
    ),
    "prompt is a number": ({"prompt": 3, "response": "w1"}, "got prompt = '3', allowed"),
    "response is a list": ({"prompt": "w1", "response": ["w1"]}, "got response = "),
    "id too large": (
        {"prompt_ids": [3, 96], "response": "w1"},
        r"prompt_ids: got \[3, 96\], allowed: .* 0 to 95",
    ),
    "id is text": ({"prompt_ids": ["3"], "response": "w1"}, "prompt_ids: got "),
    "id is true": ({"prompt_ids": [True], "response": "w1"}, "prompt_ids: got "),
    "empty prompt": ({"prompt_ids": [], "response": "w1"}, "has an empty prompt"),
    "empty response": ({"prompt_ids": [3], "response_ids": []}, "has an empty response"),
    "empty text, not ended": (
        {"prompt": "w1", "response": "", "ended": False},
        "has an empty response",
    ),
}


@pytest.mark.parametrize(("row", "message"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_named(tmp_path, loaded, row, message):
    pair, _ = loaded
    expected = f"--rollouts: .*rollouts.jsonl, line 1.*{message.removeprefix('line 1')}"
    with pytest.raises(ValueError, match=expected):
        read(rollouts_file(tmp_path, row), pair)


@pytest.fixture
def no_weights(monkeypatch):
    """Whatever is refused must be refused before."""

    def load(*_):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(diagnose_passes, "load_model", load)


@pytest.mark.usefixtures("no_weights")
def test_bad_input_is_one_sentence_before_weights_are_loaded(models, tmp_path, capsys):
    pair, data = (models.student, models.student), ("--data", models.data)
    text, empty = tmp_path / "text.parquet", tmp_path / "empty.jsonl"
    import pandas

    pandas.DataFrame([{"prompt": "w1 w2"}]).to_parquet(text)
    empty.write_text("\n")
    page, latin = tmp_path / "pair.html", tmp_path / "latin.jsonl"
    page.mkdir()
    latin.write_bytes(
        b'{"prompt": "w1", "response": "w2"}\n{"prompt": "caf\xe9", "response": "w2"}\n'
    )
    cases = {
        pair: "--data, --rollouts: got neither, allowed: one of them",
        (*pair, *data, "--rollouts", "x.jsonl"): "--data, --rollouts: got both",
        (
            "nowhere/model/at/all",
            models.student,
            *data,
        ): "STUDENT: nowhere/model/at/all does not exist",
        (*pair, *SMALL, "--data", "gone.parquet"): "--data: gone.parquet does not exist",
        (*pair, *SMALL, "--rollouts", "gone.jsonl"): "--rollouts: gone.jsonl does not exist",
        (*pair, *SMALL, "--rollouts", str(empty)): "holds no responses",
        (
            *pair,
            *SMALL,
            "--data",
            str(text),
        ): "row 0 of column 'prompt' holds 'w1 w2', allowed: a list of messages",
        (*pair, *SMALL, *data, "--prompt-key", "question"): "has no column 'question'",
        (
            *pair,
            *data,
            "--max-prompt-length",
            "2",
            "--max-response-length",
            "9",
        ): "no prompt of at most 2 tokens",
        (*pair, *data, *SMALL, "--topk", "97"): "lower prune_opd.topk to at most 96",
        (
            *pair,
            *data,
            *SMALL,
            "--topks",
            "97",
        ): "--topks: got 97, allowed: at most the common vocabulary, 96",
        (
            *pair,
            *data,
            "--max-response-length",
            "1000",
        ): "context: contexts of 256 and 256 tokens; needed: 2,024",
        (*pair, *data, *SMALL, "--device", "cuda:99"): "--device: got cuda:99",
        (*pair, *data, *SMALL, "--out", str(empty / "report")): "--out: ",
        (*pair, *data, *SMALL, "--out", str(page)): f"--out: {page} is a folder, allowed: ",
        (
            *pair,
            *SMALL,
            "--rollouts",
            str(latin),
        ): f"--rollouts: {latin}, line 2 is no JSON in UTF-8 (",
    }
    for args, message in cases.items():
        error = refused(capsys, *args)
        assert message in error
        assert len(error.splitlines()) == 1


@pytest.mark.usefixtures("no_weights")
def test_models_of_different_tokens_are_refused(models, tmp_path, capsys):
    swapped = [*WORDS]
    swapped[20], swapped[21] = swapped[21], swapped[20]
    teacher = save_model(tmp_path / "teacher", words=swapped)
    error = refused(capsys, models.student, teacher, "--data", models.data, *SMALL)
    assert "token ids: 2 of 96 ids mean different tokens" in error


def test_an_engine_that_is_not_there_is_named(models, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    error = refused(
        capsys, models.student, models.student, "--data", models.data, *SMALL, "--engine", "vllm"
    )
    assert "--engine: vllm cannot be imported" in error


@pytest.mark.parametrize(
    "option",
    [
        ("--threshold", "0"),
        ("--threshold", "1.5"),
        ("--prompts", "0"),
        ("--temperature", "0"),
        ("--gates", "x"),
        ("--gates",),
        ("--topks",),
        ("--topks", "0"),
        ("--w-drops", "0.1", "2"),
        ("--chat-template-kwargs", "[1]"),
        ("--dtype", "int8"),
        ("--engine", "sglang"),
    ],
)
def test_options_outside_their_range_are_refused(models, capsys, option):
    with pytest.raises(SystemExit) as stopped:
        main(["diagnose", models.student, models.student, "--data", models.data, *option])
    assert stopped.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_different_end_tokens_are_noted(models, tmp_path, capsys):
    teacher = save_model(tmp_path / "teacher", ends=5)
    found = answer_of(capsys, models.student, teacher, "--data", models.data, *SMALL)
    assert any(
        "student: 1 (<eos>); teacher: 1 (<eos>), 5 (<script>)" in note for note in found["notes"]
    )


def test_a_teacher_with_less_context_is_noted(models, tmp_path, capsys):
    teacher = save_model(tmp_path / "teacher", context=50)
    found = answer_of(capsys, models.student, teacher, "--data", models.data, *SMALL)
    assert any("contexts of 256 and 50 tokens; needed: 56" in note for note in found["notes"])


# ------------------------------------------------------------------------------------------- output


def test_tables_and_files(models, tmp_path, capsys):
    out = tmp_path / "deep" / "report"
    assert (
        main(
            [
                "diagnose",
                models.student,
                models.other,
                "--data",
                models.data,
                *SMALL,
                "--out",
                str(out),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    answer = json.loads((out / "diagnosis.json").read_text())
    for line in answer["recommended"]["overrides"]:
        assert f"    {line}" in printed
    assert str(out / "diagnosis.html") in printed
    assert "unrelated" in printed
    page = (out / "diagnosis.html").read_text()
    assert answer["verdict"]["name"] in page
    assert "://" not in page
    assert page.count("<svg") == 3


def test_the_page_can_be_a_file(models, tmp_path, capsys):
    file = tmp_path / "pair.html"
    answer_of(
        capsys, models.student, models.other, "--data", models.data, *SMALL, "--out", str(file)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "pair.html",
        "pair.json",
        "pair.rollouts.jsonl",
    ]


def test_what_models_write_is_escaped(models, tmp_path, capsys):
    script = WORDS.index("<script>")
    row = {"prompt_ids": [3, script, 4], "response_ids": [script, 8, script, 9, 1]}
    answer_of(
        capsys,
        models.student,
        models.other,
        "--rollouts",
        rollouts_file(tmp_path, row),
        *SMALL,
        "--out",
        str(tmp_path),
    )
    page = (tmp_path / "diagnosis.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3
    assert "<mark>" in page


def test_tokens_that_look_like_markup_are_printed_as_they_are(models, tmp_path, capsys):
    words = [word if word != "<script>" else "[/INST]" for word in WORDS]
    student, teacher = (
        save_model(tmp_path / "student", words=words),
        save_model(tmp_path / "t", words=words, ends=5),
    )
    assert main(["diagnose", student, teacher, "--data", models.data, *SMALL]) == 0
    assert "5 ([/INST])" in " ".join(capsys.readouterr().out.split())


OPTIONS = (
    "--data --rollouts --prompts --samples --prompt-key --chat-template-kwargs"
    " --max-response-length --max-prompt-length --topk --threshold --steps --batch --temperature"
    " --teacher-temperature --topks --thresholds --w-drops --gates --engine --batch-size --chunk"
    " --dtype --device --seed --trust-remote-code --out --json --metric --top-p --top-ps"
    " --other-teacher --recoveries --recovery-gap --reward-function --reward-name --solutions"
    " --gradients"
)


def test_every_option_is_one_that_scripts_of_users_have_and_in_its_page():
    page = (Path(__file__).parents[3] / "docs" / "diagnose.md").read_text()
    names = {field.name for field in fields(Arguments)} - {"student", "teacher"}
    options = {f"--{name.replace('_', '-')}" for name in names}
    assert options == set(OPTIONS.split())
    assert sorted(option for option in options if f"`{option}" not in page) == []


def test_json_has_no_nan():
    assert examination.without_nan({"a": [float("nan"), 1.5]}) == {"a": [None, 1.5]}


# ------------------------------------------------------------------------------------------- output


class Found:
    """What a long computation found."""

    answer = {"student": "s"}  # noqa: RUF012
    examples: list = []  # noqa: RUF012
    rollouts = [{"prompt_ids": [3], "response_ids": [9]}]  # noqa: RUF012


@pytest.fixture
def computed(monkeypatch):
    monkeypatch.setattr(examination, "diagnose", lambda args: Found)
    monkeypatch.setattr(Arguments, "check", lambda args: None)


def test_on_a_full_disk_what_was_computed_is_printed_and_the_responses_are_kept(
    computed, tmp_path, capsys, monkeypatch, full_disk
):
    monkeypatch.setattr(Found, "answer", {"student": "s" * 200})
    with full_disk():
        assert main(["diagnose", "a", "b", "--json", "--out", str(tmp_path / "report")]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out) == {"student": "s" * 200}
    file = tmp_path / "report/diagnosis.json"
    assert said.err == f"diagnose: --out: {file} cannot be written (File too large)\n"
    assert [one.name for one in file.parent.iterdir()] == ["diagnosis.rollouts.jsonl"]


@pytest.mark.parametrize("name", ["diagnosis.html", "diagnosis.json", "diagnosis.rollouts.jsonl"])
def test_a_device_is_refused_before_anything_is_computed(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(examination, "diagnose", lambda args: pytest.fail("computed"))
    monkeypatch.setattr(Arguments, "check", lambda args: None)
    os.mkfifo(tmp_path / name)
    assert "is a pipe or a device, allowed" in refused(capsys, "a", "b", "--out", str(tmp_path))


def test_half_a_surrogate_pair_in_a_response_names_the_line(loaded, tmp_path):
    pair, _ = loaded
    for row in (
        {"prompt_ids": [3], "response": "\ud800"},
        {"prompt": "\ud800", "response_ids": [9]},
        {"prompt": [{"role": "user", "content": "\ud800"}], "response_ids": [9]},
    ):
        with pytest.raises(ValueError, match=r"--rollouts: .*, line 1: got (response|prompt) = "):
            read(rollouts_file(tmp_path, row), pair)
