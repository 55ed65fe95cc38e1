"""Logged numbers of a step, out of its ``Tally``; ``docs/metrics.md`` says what each means."""

from collections.abc import Iterable

from recipe.prune_opd.records.tally import Tally, logged_edges

MEANS = {"overlap": "overlap_ratio", "events": "event_rate", "reward": "reward_mean"}
"""Columns of a tally whose mean over tokens is logged for each of several teachers, by its name."""


def summarise(tally: Tally) -> dict[str, float]:
    """Means over all tokens of a batch, under their logged names.

    Args:
        tally: of the real responses.
    """
    total, responses = tally.total, len(tally)
    tokens = max(total["tokens"], 1.0)
    return {
        "prune_opd/overlap_ratio": total["overlap"] / tokens,
        "prune_opd/event_rate": total["events"] / tokens,
        "prune_opd/reliability_weight": total["weight"] / tokens,
        "prune_opd/loss_weight": total["loss_weight"] / tokens,
        "prune_opd/zero_weight_ratio": total["zero_weight"] / tokens,
        "prune_opd/generated_tokens": total["tokens"],
        "prune_opd/kept_tokens": total["effective_length"],
        "prune_opd/reward_mean": total["reward"] / tokens,
        "prune_opd/pruned_reward_mean": total["pruned_reward"] / tokens,
        "prune_opd/student_topk_mass": total["student_mass"] / tokens,
        "prune_opd/teacher_topk_mass": total["teacher_mass"] / tokens,
        "prune_opd/ended_ratio": total["ended"] / responses,
        "prune_opd/limit_hit_ratio": 1 - (total["ended"] + total["gate_stopped"]) / responses,
        **_means_by_position(tally),
    }


def summarise_task(tally: Tally) -> dict[str, float]:
    """What task rewards have of the loss, under its logged name.

    Args:
        tally: of the real responses.
    """
    task, distillation = tally.total["task"], tally.total["distillation"]
    both = task + distillation
    return {"prune_opd/task_reward/share": task / both if both else 0.0}


def summarise_teachers(tally: Tally, names: Iterable[str]) -> dict[str, float]:
    """Numbers of each of several teachers in a batch, under their logged names. One that scored no
    response has no means rather than made-up ones.

    Args:
        tally: of the real responses.
        names: of the teachers, in the order in which responses count them.
    """
    found: dict[str, float] = {}
    for number, name in enumerate(names):
        own, key = tally.column("teacher") == number, f"prune_opd/teacher/{name}"
        columns = {of: tally.column(of)[own] for of in ("tokens", "effective_length", *MEANS)}
        total = {of: values.sum().item() for of, values in columns.items()}
        found[f"{key}/responses"] = float(own.sum())
        found[f"{key}/generated_tokens"] = total["tokens"]
        if total["tokens"]:
            means = {logged: total[of] / total["tokens"] for of, logged in MEANS.items()}
            lengths = columns["effective_length"][columns["tokens"] > 0]
            means["effective_response_length_mean"] = lengths.mean().item()
            found |= {f"{key}/{logged}": value for logged, value in means.items()}
    return found


def _means_by_position(tally: Tally) -> dict[str, float]:
    """Means over the tokens of each bucket. A bucket that no response reached has no value rather
    than a made-up one."""
    edges = logged_edges(tally.longest)
    counts = tally.by_position("tokens", edges)
    names = {"overlap": "overlap_ratio", "events": "event_rate", "loss_weight": "loss_weight"}
    return {
        f"prune_opd/{logged}/from_{start}": value / count
        for name, logged in names.items()
        for start, value, count in zip(
            edges[:-1], tally.by_position(name, edges), counts, strict=True
        )
        if count
    }


def summarise_gate(tally: Tally) -> dict[str, float]:
    """Numbers of the gate in a batch, under their logged names.

    Args:
        tally: of the real responses, all of them generated under the gate.
    """
    total, waited = tally.total, tally.column("gate_waited")
    stopped = tally.column("gate_stopped") > 0
    metrics = {
        "prune_opd/gate/stopped_ratio": stopped.double().mean().item(),
        "prune_opd/gate/overshoot_tokens": total["gate_generated"]
        - total["tokens"]
        - total["missing"],
        "prune_opd/gate/teacher_tokens_per_token": total["gate_teacher_tokens"]
        / max(total["gate_generated"], 1.0),
        "prune_opd/gate/waited_mean": waited.mean().item(),
        "prune_opd/gate/waited_max": waited.max().item(),
        "prune_opd/gate/late_answers": total["gate_late"],
        "prune_opd/gate/failed_answers": total["gate_failed"],
        "prune_opd/gate/given_up": total["gate_given_up"],
    }
    if stopped.any():
        kept = tally.column("tokens") + tally.column("missing")
        metrics["prune_opd/gate/stop_position_mean"] = kept[stopped].mean().item()
    if total["gate_asked"]:
        metrics["prune_opd/gate/hidden_ratio"] = 1 - total["gate_waited"] / total["gate_asked"]
    if total["gate_tokens"]:
        metrics["prune_opd/gate/event_agreement"] = total["gate_agreed"] / total["gate_tokens"]
    return metrics


def summarise_scores(tally: Tally) -> dict[str, float]:
    """Numbers of the teacher's servers in a batch, under their logged names.

    Args:
        tally: of the real responses.
    """
    total, missing = tally.total, tally.total["missing"]
    metrics = {
        "prune_opd/teacher/missing_ratio": missing / max(total["tokens"] + missing, 1.0),
        "prune_opd/teacher/late_answers": total["score_late"],
        "prune_opd/teacher/failed_answers": total["score_failed"],
    }
    began, ended = (tally.column(f"score_{name}").tolist() for name in ("began", "ended"))
    asked = [(start, end) for start, end in zip(began, ended, strict=True) if end]
    if asked:
        last = max(start for start, _ in asked)
        early = sum(tally.column("score_early").tolist())
        after = sum(end - start for start, end in asked)
        hidden = early + sum(max(0.0, min(end, last) - start) for start, end in asked)
        metrics |= {
            "prune_opd/teacher/computed_tokens": total["score_computed"],
            "prune_opd/teacher/score_seconds_mean": after / len(asked),
            "prune_opd/teacher/hidden_ratio": hidden / max(early + after, 1e-9),
            "prune_opd/teacher/waited": max(end for _, end in asked) - last,
        }
    if total["score_candidates"]:
        outside, mass = total["score_outside"], total["score_outside_mass"]
        metrics |= {
            "prune_opd/teacher/outside_ratio": outside / total["score_candidates"],
            "prune_opd/teacher/outside_mass": mass / max(total["tokens"], 1.0),
        }
    return metrics
