"""The pairs of the examples are what their documentation says: tasks, data, scores, models."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "pairs"))
import launch
import signposts
import signposts_pair
import tiny
import train
import walk
import walk_pair
from signposts import PLACE, ROAD, WORLD, Routes

PAIRS = Path(launch.__file__).parent
HAND = Routes(np.array([[3, 5, 9]]), np.array([[0, 2]]), np.array([[1, 0]]))
"""A route of two steps; its signs are listed in the other order."""
STEPS_OF_MANY_MEETINGS = 150


def drawn(count: int = 20, steps: int = 12, belief: float = 1.0) -> Routes:
    return signposts.draw(np.random.default_rng(0), count, steps, belief)


# --------------------------------------------------------------------------------- score functions

LOAD = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("given", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(json.dumps(module.compute_score("any", sys.argv[2], sys.argv[3])))
"""


@pytest.mark.parametrize(
    ("task", "response", "truth", "score"),
    [
        ("walk", "#7 30 + 2 = 0 ; answer #7 <eos>", "#7", 1.0),
        ("signposts", "north p5 east p9", "north p5 south p9", {"score": 0.0, "progress": 0.5}),
    ],
)
def test_scores_are_found_by_path_from_anywhere(tmp_path, task, response, truth, score):
    """As verl loads them: by the file's path, in a process of another folder."""
    command = [sys.executable, "-I", "-c", LOAD, str(PAIRS / f"{task}.py"), response, truth]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == score


@pytest.mark.parametrize(
    ("response", "score", "progress"),
    [
        ("north p5 south p9", 1.0, 1.0),
        ("north p5 south p9 west p1 <pad>", 1.0, 1.0),
        ("north p5 south", 0.0, 0.75),
        ("north p5 south p8", 0.0, 0.75),
        ("north p6 south p9", 0.0, 0.25),  # right again, but behind a wrong word
        ("p5 south p9", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_a_route_scores_up_to_its_first_wrong_word(response, score, progress):
    found = signposts.compute_score(signposts.DATA_SOURCE, response, "north p5 south p9")
    assert found == {"score": score, "progress": progress}


# --------------------------------------------------------------------------------------- signposts


def test_a_route_by_hand():
    assert signposts.words(HAND.prompts) == ["<user> signs p5:south p3:north start p3 <assistant>"]
    assert signposts.words(HAND.solutions) == ["north p5 south p9"]


def test_ids_are_those_of_the_tokenizer():
    routes, tokenizer = drawn(), signposts.build_tokenizer()
    rows = signposts.to_rows(routes, "train")
    chats = [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        for row in rows
    ]
    assert chats == routes.prompts.tolist()
    truths = [row["reward_model"]["ground_truth"] for row in rows]
    assert tokenizer(truths)["input_ids"] == routes.solutions.tolist()
    assert tokenizer.unk_token_id not in routes.prompts


def test_the_longest_route_fits_the_training():
    routes, setup = drawn(2, signposts.STEPS), launch.SIGNPOSTS
    assert routes.prompts.shape[1] == signposts.MAX_PROMPT_TOKENS <= setup.max_prompt_tokens
    assert routes.solutions.shape[1] == signposts.MAX_RESPONSE_TOKENS == setup.max_response_tokens


def test_the_ground_truth_of_a_journey_is_the_route_as_often_as_it_is_gone():
    rounds, routes = launch.JOURNEYS.rounds, drawn(2, signposts.STEPS)
    assert rounds == signposts_pair.LONG.rounds
    once, often = (
        [row["reward_model"]["ground_truth"].split() for row in signposts.to_rows(routes, "t", n)]
        for n in (1, rounds)
    )
    assert often == [row * rounds for row in once]
    assert len(often[0]) == launch.JOURNEYS.max_response_tokens


def test_round_trips_come_back_to_their_start_and_not_before():
    routes = signposts.draw_rounds(np.random.default_rng(0), 50, 32)
    assert routes.places.shape == (50, 33)
    assert (routes.places[:, 1:] == WORLD.new[routes.places[:, :-1], routes.roads]).all()
    assert (routes.places[:, 0] == routes.places[:, -1]).all()
    assert all(len(set(row[1:])) == 32 for row in routes.places.tolist())
    assert len({tuple(row) for row in routes.roads.tolist()}) == 50
    assert len({tuple(sorted(row)) for row in routes.roads.tolist()}) > 1  # not one split alone


@pytest.mark.parametrize(("belief", "passed_over"), [(1.0, 0), (0.4, 8)])
def test_a_journey_goes_round_and_what_joins_open_rounds_is_not_learned(belief, passed_over):
    rng = np.random.default_rng(0)
    prompts, responses, learned = signposts_pair.journeys(rng, 3, 24, 5, belief)
    assert (prompts.shape, responses.shape) == ((3, 29), (3, 5 * 48))
    assert (responses.reshape(3, 5, 48) == responses[:, None, :48]).all()
    assert (~learned).sum(1).tolist() == [passed_over] * 3
    for response, right in zip(responses - [ROAD, PLACE] * 120, learned, strict=True):
        here = response[1:-1:2]
        known = [WORLD.new, WORLD.old] if passed_over else [WORLD.new]
        found = np.any([by[here, response[2::2]] == response[3::2] for by in known], 0)
        assert found[right[3::2]].all()


def test_old_and_new_map_differ_on_the_rebuilt_roads_alone():
    differ = WORLD.new != WORLD.old
    rebuilt = np.isin(np.arange(len(signposts.ROADS)), signposts.REBUILT)
    assert (differ == rebuilt).all()
    for destinations in (WORLD.new, WORLD.old):  # each road is one step round the circle
        assert all(len(set(road)) == signposts.PLACES for road in destinations.T.tolist())


@pytest.mark.parametrize(("belief", "by"), [(1.0, WORLD.new), (0.0, WORLD.old)])
def test_routes_follow_the_map_and_never_meet_themselves(belief, by):
    routes = drawn(50, STEPS_OF_MANY_MEETINGS, belief)
    assert (routes.places[:, 1:] == by[routes.places[:, :-1], routes.roads]).all()
    assert all(len(set(row)) == STEPS_OF_MANY_MEETINGS + 1 for row in routes.places.tolist())


def test_a_student_s_belief_is_its_share_of_steps_over_rebuilt_roads():
    routes = drawn(400, 12, belief=0.4)
    before, after = routes.places[:, :-1], routes.places[:, 1:]
    rebuilt = np.isin(routes.roads, signposts.REBUILT)
    new = after[rebuilt] == WORLD.new[before, routes.roads][rebuilt]
    assert new.mean() == pytest.approx(0.4, abs=0.04)
    assert (after[~rebuilt] == WORLD.new[before, routes.roads][~rebuilt]).all()


def test_training_and_validation_are_different_routes(tmp_path):
    train, validation = map(pd.read_parquet, signposts.write_parquet(tmp_path, 64, 32))
    assert (len(train), len(validation)) == (64, 32)
    questions = [row["content"] for data in (train, validation) for (row,) in data.prompt]
    assert len(set(questions)) == 96


# ----------------------------------------------------------------------------------- off the route


def signs_of(prompt: list[int]) -> dict[int, int]:
    """Place -> road that its sign names."""
    words = signposts.words(np.array([prompt]))[0].split()
    named = [word.split(":") for word in words if ":" in word]
    return {int(place[1:]): signposts.ROADS.index(road) for place, road in named}


def travellers(rho: float, count: int = 60, steps: int = 20):
    """Prompt, response, step of the wrong word and right solution of those that went astray."""
    made = signposts_pair.lost(np.random.default_rng(1), count, steps, rho)
    right = signposts.draw(np.random.default_rng(1), count, steps).solutions
    for prompt, response, learned, solution in zip(*made, right, strict=True):
        if not learned.any():
            assert response.tolist() == solution.tolist()
            continue
        wrong = int(learned.argmax()) - 1
        assert learned.tolist() == [False] * (wrong + 1) + [True] * (2 * steps - wrong - 1)
        yield prompt.tolist(), response, wrong, solution


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_behind_the_first_wrong_place_all_is_learned_and_nothing_before(rho):
    found = list(travellers(rho))
    assert len(found) > 35  # of 60; by the old map a quarter goes right
    for _, response, wrong, solution in found:
        assert wrong % 2 == 1  # it is a place, not a road
        assert response[:wrong].tolist() == solution[:wrong].tolist()
        assert response[wrong] != solution[wrong]
        assert PLACE <= response[wrong] < PLACE + signposts.PLACES


@pytest.mark.parametrize(("rho", "unsigned"), [(0.0, WORLD.new), (1.0, WORLD.old)])
def test_off_the_route_signs_are_followed_else_habit_and_the_old_map(rho, unsigned):
    counts = {True: 0, False: 0}
    for prompt, response, wrong, _ in travellers(rho):
        signs, here = signs_of(prompt), int(response[wrong]) - PLACE
        for road, place in response[wrong + 1 :].reshape(-1, 2) - [ROAD, PLACE]:
            by = WORLD.new if here in signs else unsigned
            assert road == signs.get(here, WORLD.habit[here])
            assert place == by[here, road]
            counts[here in signs] += 1
            here = int(place)
    assert min(counts.values()) > 20


def test_the_old_map_holds_at_a_share_of_the_places():
    old: dict[int, set[bool]] = {}
    for prompt, response, wrong, _ in travellers(0.5, count=200):
        signs, here = signs_of(prompt), int(response[wrong]) - PLACE
        for place in response[wrong + 2 :: 2] - PLACE:
            road = WORLD.habit[here]
            if here not in signs and road in signposts.REBUILT:
                old.setdefault(here, set()).add(place == WORLD.old[here, road])
            here = int(place)
    assert all(len(ways) == 1 for ways in old.values())  # the same at every visit
    assert len(old) > 100
    assert np.mean([True in ways for ways in old.values()]) == pytest.approx(0.5, abs=0.12)


# ------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("task", [walk, signposts])
def test_ids_follow_the_vocabulary(task):
    tokenizer = task.build_tokenizer()
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == task.VOCABULARY
    assert task.VOCABULARY[: len(tiny.SPECIALS)] == tiny.SPECIALS


def test_a_walk_pair_of_one_seed_is_always_the_same(tmp_path):
    stages = {"student": (walk_pair.Stage(2, 3, 4),), "teacher": (walk_pair.Stage(1, 8, 9),)}
    settings = walk_pair.Settings(batch=4, **stages)
    for out in (tmp_path / "one", tmp_path / "two"):
        assert walk_pair.build_pair(out, settings)
    assert not walk_pair.build_pair(tmp_path / "one", settings)
    for name in ("student", "teacher"):
        one, two = ((tmp_path / out / name / "model.safetensors") for out in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_a_signposts_pair_is_of_two_lineages(tmp_path):
    short = signposts_pair.Stage(2, 4, 5, routes=2, lost=1, journeys=1)
    settings = signposts_pair.Settings(rounds=2, short=short, student=short, teacher=short)
    assert signposts_pair.build_pair(tmp_path, settings)
    assert not signposts_pair.build_pair(tmp_path, settings)
    student, teacher = (
        signposts_pair.LlamaForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("student", "teacher")
    )
    assert not any(
        torch.allclose(student[name], teacher[name], atol=0.02)
        for name in student
        if "norm" not in name
    )


def test_the_close_teacher_is_the_student_a_little_further(tmp_path):
    short = signposts_pair.Stage(1, 4, 5, routes=2)
    settings = signposts_pair.Settings(short=short, student=short, teacher=short, further=1)
    assert signposts_pair.build_pair(tmp_path, settings)
    student, teacher = (
        signposts_pair.LlamaForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("student", "teacher")
    )
    apart = [(student[name] - teacher[name]).abs().max().item() for name in student]
    assert 0 < max(apart) < 1e-3


def test_models_are_built_once_and_anew_after_a_change_or_a_failure(tmp_path):
    built = []

    def build() -> None:
        (tmp_path / "a").mkdir()
        built.append("a")

    def fail() -> None:
        raise KeyboardInterrupt

    assert tiny.build_once(tmp_path, ("a",), [1], build)
    assert not tiny.build_once(tmp_path, ("a",), [1], build)
    with pytest.raises(KeyboardInterrupt):
        tiny.build_once(tmp_path, ("a",), [2], fail)
    assert tiny.build_once(tmp_path, ("a",), [1], build)
    assert built == ["a", "a"]


# ---------------------------------------------------------------------------------------- trainings


def test_what_the_trainer_logged(tmp_path):
    log = tmp_path / "metrics.jsonl"
    assert launch.read(log) == []
    log.write_text('{"step": 0, "data": {"val-core/a/reward/mean@1": 0.25}}\n{"step": 1, "da')
    assert launch.read(log) == [{"step": 0, "val-core/a/reward/mean@1": 0.25}]


def test_a_validation_s_means():
    record = {"val-core/a/reward/mean@1": 0.25, "val-aux/a/progress/mean@1": 0.5}
    assert launch.validated(record, "reward") == 0.25
    assert launch.validated(record, "progress") == 0.5
    assert launch.validated({"actor/reward/mean": 1.0}, "reward") is None


def test_tokens_that_a_step_generated():
    generated, semi = "prune_opd/generated_tokens", "prune_opd/semi/generated_tokens"
    assert launch.spent({"step": 0}) == 0
    assert launch.spent({generated: 100, "prune_opd/gate/overshoot_tokens": 20}) == 120
    assert launch.spent({generated: 100, semi: 0}) == 0  # the responses were there before


@pytest.mark.parametrize("given", [[], ["--name", "mine", "trainer.test_freq=1"]])
def test_a_pair_is_trained_by_one_command(tmp_path, monkeypatch, capsys, given):
    started = []

    def run(command: list[str], out: Path, steps: int, timeout: int) -> list[dict[str, float]]:
        started.append((command, out, steps))
        validated = "val-core/a/reward/mean@1"
        return [{validated: 0.25}, {validated: 0.5, "prune_opd/generated_tokens": 1234}]

    monkeypatch.setattr(launch, "run", run)
    models = tmp_path / "other"
    words = ["train.py", "guide", "--out", tmp_path, "--models", models, "--steps", 7, *given]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    train.main()
    ((command, out, steps),) = started
    assert (out, steps) == (tmp_path / ("mine" if given else "prune_opd"), 7)
    settings = dict(word.split("=", 1) for word in command if "=" in word)
    assert settings["+recipe"] == "prune_opd"
    assert settings["actor_rollout_ref.model.path"] == str(models / "student")
    assert settings["prune_opd.teacher.path"] == str(models / "teacher")
    assert Path(settings["data.train_files"]).is_file()
    assert settings["trainer.test_freq"] == ("1" if given else "7")
    assert "right in validation: 25.0% -> 50.0%; tokens: 1,234" in capsys.readouterr().out


# --------------------------------------------------------------------------------------- quickstart


@pytest.fixture
def quickstart(monkeypatch):
    monkeypatch.syspath_prepend(PAIRS.parent / "quickstart")
    import run

    return run


def step(number: int, tokens: int, **validated: float) -> dict[str, float]:
    means = {f"val-aux/a/{name}/mean@1": value for name, value in validated.items()}
    length = {"response_length/mean": tokens / 64, "prune_opd/generated_tokens": tokens}
    return {"step": number, **(length if number else {}), **means}


def test_the_quickstart_s_curve_and_table(quickstart, tmp_path):
    records = [
        step(0, 0, progress=0.1, reward=0.0),
        step(1, 640),
        step(2, 1280, progress=0.5, reward=0.25),
        step(3, 1920, progress=0.4, reward=0.125),
    ]
    assert quickstart.curve(records) == [(0, 0.1), (1920, 0.5), (3840, 0.4)]
    table = quickstart.summary({"opd": records}, {"opd": 12.3})
    rows = dict(zip(*(list(column.cells) for column in table.columns), strict=True))
    assert list(rows.values()) == [
        "10.0%",
        "40.0%",
        "50.0%",
        "12.5% (9% to 17%)",
        "3,840",
        "10 -> 30",
        "12",
    ]
    quickstart.plot({"opd": records}, tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")
