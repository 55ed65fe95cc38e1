"""Keys of the method's rules: ``prune_opd.drift``, ``.budget`` and ``.gate``."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, Lt
from pydantic import Field

from recipe.prune_opd.config.base import (
    ELSEWHERE,
    Keys,
    Natural,
    Positive,
    Real,
    Seconds,
    Share,
    Weight,
    recipe,
    require,
)
from recipe.prune_opd.method.budget import BUDGETS, Budget, ResponseBudget
from recipe.prune_opd.method.drift import METRICS, DriftMetric
from recipe.prune_opd.method.gates import GATES, GateRule
from recipe.prune_opd.method.weights import WEIGHTS, TokenWeight

PAPER_MAX, PAPER_MIN, PAPER_INIT = 12288, 1024, 1024
SMALLEST_CHUNK, QUESTIONS = 64, 64
"""Chunk of a gate for which none is given, in tokens, and the most questions about a response. One
sends the whole sequence, so a token is sent half as often as a response asks."""


class DriftConfig(Keys):
    """Events that count as drift, and what they cost (METHOD: sections 1, 2)."""

    enable: bool = True
    """Multiply the reward by the tokens' weights. False: events are measured, the loss is that of
    plain OPD."""
    metric: str = "overlap_ratio"
    """Drift metric: ``overlap_ratio`` or ``teacher_top_p_accept``."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Parameters of a metric of your own."""
    threshold: Share = 0.7
    """γ: an overlap below it is an event. It depends on k: 0.7 asks for 12 of 16, or for 23 of
    32."""
    top_p: Share = 0.95
    """Nucleus of ``teacher_top_p_accept``: a sampled token outside it is an event."""
    w_drop: Annotated[Real, Ge(0)] = 0.01
    """Weight lost per event: reliability reaches 0 at the ceil(1 / w_drop)-th. 0: never."""
    scope: Literal["response", "turn"] = "response"
    """Where events are counted. ``response``: over all of it. ``turn``: anew in every turn of the
    student, behind what tools answered; a gate then goes by the turn, too."""
    w_base: Weight = 0.5
    """Weight added on every generated token. Not a floor: the weight runs from 1 + w_base down to
    w_base."""
    weights: str = "reliability"
    """Weight of a token in the loss. ``reliability``: the paper's, R + ``w_base``. ``importance``:
    IW-OPD's, from 1 + γ down by the share of the response's student-teacher discrepancy that lies
    before the token (``weights_args.gamma``, 0.5). ``first``: 1 on the first
    ``weights_args.tokens`` of a response, 0 behind. Events, R and effective lengths stay as they
    are."""
    weights_args: dict[str, Any] = Field(default_factory=dict)
    """Parameters of ``importance``, ``first``, or weights of your own."""

    def build(self) -> DriftMetric:
        """The metric with its parameters.

        Raises:
            ValueError: see ``Registry.build``.
        """
        return METRICS.build(self.metric, self.args, "prune_opd.drift.args", self._keys)

    def build_weights(self) -> TokenWeight:
        """The rule of the tokens' weights with its parameters.

        Raises:
            ValueError: see ``Registry.build``.
        """
        key = "prune_opd.drift.weights_args"
        return WEIGHTS.build(self.weights, self.weights_args, key, self._keys)

    @property
    def _keys(self) -> dict[str, Any]:
        """Keys that a rule may ask for by name."""
        return self.model_dump(
            exclude={"enable", "metric", "args", "weights", "weights_args", "scope"}
        )


class BudgetConfig(Keys):
    """Limits on a training response (METHOD: section 5). All lengths in tokens."""

    enable: bool = True
    """Move the limit after every batch. False: it stays at ``max``."""
    rule: str = "hits"
    """Rule that moves it. ``hits``: the paper's, a ``step`` at a time, by the share of responses
    that stay reliable up to the limit. ``quantile``: it jumps to a quantile of the effective
    lengths, or grows by a factor. ``random``: each prompt has its own, drawn from the lengths that
    another run kept, as a control of the gate."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Parameters of ``quantile`` (``growth``, 1.5; ``quantile``, 1 - ``hit_ratio`` / 2), of
    ``random`` (``records``, a folder; ``seed``, 0), or of a rule of your own."""
    init: Positive | None = None
    """First limit. Default 1024, or ``max`` where that is smaller; the paper takes 2048 for a close
    teacher."""
    min: Positive | None = None
    """The limit never falls below it. Default 1024, or ``max`` where that is smaller."""
    max: Positive | None = recipe(None, ELSEWHERE)
    """The limit never rises above it, in baselines too. Default: the rollout's response length, at
    most 12288."""
    step: Positive = 100
    """Tokens by which the limit changes; ``hits``."""
    hit_ratio: Annotated[Real, Ge(0), Le(1)] = 0.1
    """ρ: share of responses that must stay reliable up to the limit for it to grow."""
    margin: Natural = 100
    """Tokens before the limit from which a response counts as reaching it. ``quantile``: tokens
    above the quantile."""
    patience: Positive = 3
    """Batches in a row below ``hit_ratio`` until the limit shrinks. ``quantile``: batches of which
    the largest quantile counts."""

    def resolved(self, response_length: int) -> "BudgetConfig":
        """The same with its three lengths as numbers, for a rollout of ``response_length`` tokens.

        A default is lowered to fit; a value the user gave is never adjusted.

        Raises:
            ValueError: a given value does not fit.
        """
        rollout = f"the rollout's response length, {response_length} (data.max_response_length)"
        most = min(response_length, PAPER_MAX) if self.max is None else self.max
        require(most <= response_length, "budget.max", most, f"at most {rollout}")
        least = min(PAPER_MIN, most) if self.min is None else self.min
        require(least <= most, "budget.min", least, f"at most budget.max, {most}")
        init = max(least, min(PAPER_INIT, most)) if self.init is None else self.init
        bounds = f"from budget.min, {least}, to budget.max, {most}"
        require(least <= init <= most, "budget.init", init, bounds)
        return self.changed(init=init, min=least, max=most)

    @property
    def longest(self) -> int:
        """The largest limit; the lengths must be ``resolved``."""
        assert self.max is not None, "budget lengths are resolved at start"
        return self.max

    def build(self) -> Budget:
        """A budget at its start; its lengths must be ``resolved``.

        Raises:
            ValueError: see ``Registry.build``.
        """
        if not self.enable:
            return ResponseBudget(self.longest, self.longest, self.longest)
        keys = self.model_dump(exclude={"enable", "rule", "args"})
        budget = BUDGETS.build(self.rule, self.args, "prune_opd.budget.args", keys)
        self.check(budget)
        return budget

    def check(self, budget: Budget) -> None:
        """Refuse a limit that a rule must not give.

        Raises:
            ValueError: it is outside of 1 to ``longest``.
        """
        allowed = f"limits from 1 to budget.max, {self.longest}"
        found = f"{self.rule} with a limit of {budget.limit}"
        require(1 <= budget.limit <= self.longest, "budget.rule", found, allowed)


class GateConfig(Keys):
    """Stopping a response while it is generated, once teacher and student have parted."""

    enable: bool = False
    """Start the teacher's servers and stop responses. Needs devices for ``teacher.server``."""
    kind: str = "cumulative"
    """The rule. ``cumulative``: reliability has reached 0 (``drift.w_drop``). ``windowed``: of the
    last ``window`` tokens a share above ``rate`` are events. ``consecutive``: ``run_length`` events
    in a row. ``relative``: the share of events in the last ``window`` tokens is more than
    ``increase`` above that in the first ``window``. ``never``: nothing is stopped; responses are
    scored while they grow, which hides the work of ``teacher.home=server``."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Parameters of a rule of your own."""
    min_tokens: Positive = 1
    """Tokens that a stopped response keeps in any case. Not ``budget.min``."""
    window: Positive = 128
    """Tokens; ``windowed`` and ``relative``."""
    rate: Annotated[Real, Ge(0), Lt(1)] = 0.5
    """Events per token; ``windowed``."""
    run_length: Positive = 16
    """Events; ``consecutive``."""
    increase: Annotated[Real, Ge(0), Lt(1)] = 0.3
    """Events per token; ``relative``."""
    chunk: Positive | None = None
    """Tokens between two questions to the teacher. Small: stops sooner, asks more often. Default:
    64, doubled until a response at its limit asks at most 64 times: 128 for a limit above 4096, 256
    above 8192, 512 above 16384."""
    deadline: Seconds = 10.0
    """Seconds to wait for an answer. Past it the response goes on; the answer is waited for again
    at the next chunk."""
    retries: Natural = 2
    """Late, failed or useless answers a response bears. After one more it runs on to its limit
    without a gate."""

    def build(self, w_drop: float) -> GateRule:
        """The rule with its parameters.

        Raises:
            ValueError: see ``Registry.build``.
        """
        own = {"min_tokens", "window", "rate", "run_length", "increase"}
        keys = self.model_dump(include=own) | {"w_drop": w_drop}
        return GATES.build(self.kind, self.args, "prune_opd.gate.args", keys)

    def chunk_for(self, limit: float) -> int:
        """Tokens between two questions about a response of at most ``limit`` tokens."""
        if self.chunk is not None:
            return self.chunk
        chunk = SMALLEST_CHUNK
        while chunk * QUESTIONS < limit:
            chunk *= 2
        return chunk
