"""Homes of the teacher: one contract for what a place can tell, takes, and how it is asked.

A place of the user's own is a subclass of ``Home``, named ``package.module:Name`` in
``prune_opd.teacher.home``.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import DictConfig

from recipe.prune_opd.config import PruneOPDConfig, TeacherConfig, require
from recipe.prune_opd.method.drift import METRICS
from recipe.prune_opd.method.registry import Registry
from recipe.prune_opd.method.reward import STRATEGIES
from recipe.prune_opd.method.weights import WEIGHTS

if TYPE_CHECKING:
    from recipe.prune_opd.checks.models import Model
    from verl_ext.rollout.teacher_pool import TeacherPool

OF_STUDENT = ("student_on_teacher",)
"""Parts of ``Scores`` that the student tells, wherever the teacher is."""
LACKS = {
    "teacher_on_student": "cannot score the student's candidates",
    "sampled": "cannot score the sampled tokens",
}


class Home(ABC):
    """A place of the teacher.

    Args:
        prune_opd: the configuration.
    """

    delivers: tuple[str, ...]
    """Optional parts of ``Scores`` it can tell, beside its own top k."""
    lacks: ClassVar[dict[str, str]] = LACKS
    """Why it does not tell the others, for messages."""
    reference_model: ClassVar[bool] = False
    """The teacher is verl's reference model: a worker of the trainer scores with it."""
    has_files: ClassVar[bool] = True
    """``teacher.path`` holds its weights, which this run loads."""
    several: ClassVar[bool] = False
    """Serves several teachers, see ``clients``; in a worker of the trainer it need do nothing."""

    def __init__(self, prune_opd: PruneOPDConfig):
        self.prune_opd = prune_opd

    @property
    def is_asked(self) -> bool:
        """Tell whether servers score responses, while they are generated or right after."""
        return self.prune_opd.gate.enable or not self.reference_model

    @property
    def asks_on_student(self) -> bool:
        """Tell whether servers score the student's candidates. Then these are, everywhere, the ones
        that the rollout reported: servers are asked before the trainer's own pass."""
        return not self.reference_model and "teacher_on_student" in self.prune_opd.rules.needs

    @property
    def follows(self) -> bool:
        """Tell whether the rollout's servers report their top k of what they generate."""
        given = self.prune_opd
        return given.gate.enable or self.asks_on_student or given.student == "rollout"

    @property
    def cacheable(self) -> bool:
        """Tell whether its scores of a response stay the same while the student is trained: its own
        top k and the sampled tokens do, the student's candidates do not."""
        return "teacher_on_student" not in self.prune_opd.rules.needs

    @property
    def worker_method(self) -> str:
        """Name of the method of ``PruneOPDWorker`` that brings the teacher's scores of a batch."""
        return "compute_ref_log_prob" if self.reference_model else "read_served_scores"

    @property
    def held(self) -> TeacherConfig | None:
        """The teacher's configuration, where a worker of the trainer holds a copy of it."""
        return self.prune_opd.teacher if self.reference_model else None

    def check(self, config: DictConfig) -> None:
        """Refuse settings that do not go with this home.

        Args:
            config: verl's composed configuration, its own checks passed.

        Raises:
            ValueError: names the key, what was found and what is allowed.
        """
        given = self.prune_opd
        alone = self.several or not given.teacher.models
        allowed = f"none with teacher.home={given.teacher.home}, which serves one, teacher.path"
        require(alone, "teacher.models", list(given.teacher.models), allowed)
        known = (*self.delivers, *OF_STUDENT)
        lacking = [part for part in given.rules.needs if part not in known]
        if lacking:
            names, found = next(
                (names, found) for names, found, needs in _readers(given) if lacking[0] in needs
            )
            fit = [name for name in names if set(names.find(name).needs) <= set(known)]
            why = self.lacks.get(lacking[0], f"does not deliver {lacking[0]}")
            allowed = f"{', '.join(fit)} with teacher.home={given.teacher.home}, which {why}"
            require(False, names.key.removeprefix("prune_opd."), found, allowed)
        wide = given.teacher.server.wide_topk
        allowed = f"at least topk, {given.topk}, where the student's candidates are asked about"
        unasked = self.asks_on_student and not wide
        require(not unasked, "teacher.server.wide_topk", wide, allowed)
        allowed = (
            "false where teacher servers are asked about the student's candidates: these are"
            " reported by the rollout, which a cached response does not have"
        )
        cached = given.semi.enable and self.asks_on_student
        require(not cached, "semi.enable", given.semi.enable, allowed)
        if given.student == "rollout":
            self._check_rollout_tells()

    def _check_rollout_tells(self) -> None:
        """Refuse a rollout that tells the student's part, where nobody listens to it, where it is a
        cached one, or where the strategy has the trainer tell another part."""
        given = self.prune_opd
        allowed = "trainer where no servers are asked: gate.enable is false and teacher.home is"
        require(self.is_asked, "student", given.student, f"{allowed} {given.teacher.home}")
        allowed = "trainer with semi.enable: a cached response has no such report"
        require(not given.semi.enable, "student", given.student, allowed)
        pure = "student_on_teacher" not in given.rules.needs
        allowed = f"trainer with strategy={given.strategy}, for which the trainer scores, too"
        require(pure, "student", given.student, allowed)

    def check_models(  # noqa: B027  # nothing to ask where nobody is asked
        self, config: DictConfig, student: "Model", teacher: "Model"
    ) -> None:
        """Refuse a teacher that cannot be asked; called for each where there are several.

        Args:
            config: verl's composed configuration.
            student: its configuration and tokenizer.
            teacher: the same.

        Raises:
            ValueError: names the key, what was found and what is needed.
        """

    def pool(self, config: DictConfig) -> "TeacherPool | None":
        """Servers that this run must start, on devices of their own."""
        return None

    @abstractmethod
    def client(self, config: DictConfig, servers: Any) -> Any:
        """Build what the rollout workers ask about responses.

        Args:
            config: verl's configuration.
            servers: of ``pool``, started; None where there are none.

        Returns:
            A ``verl_ext.rollout.client.ScoringClient`` or what has its methods; None where nobody
            is asked.
        """

    def clients(self, config: DictConfig, servers: Any) -> list[Any]:
        """What the rollout workers ask, one for each teacher, in the order of ``teacher.paths``.

        Args:
            config: verl's configuration.
            servers: of ``pool``, started; None where there are none.

        Returns:
            One ``client`` each; none where nobody is asked.
        """
        one = self.client(config, servers)
        return [] if one is None else [one]

    def __str__(self) -> str:
        return self.prune_opd.teacher.home


def _readers(given: PruneOPDConfig) -> list[tuple[Registry[Any], str, tuple[str, ...]]]:
    """Rules that may read optional parts of ``Scores``: their registry, their name, the parts."""
    rules, drift = given.rules, given.drift
    weights = rules.weights.needs if rules.applied else ()
    return [
        (METRICS, drift.metric, rules.metric.needs),
        (WEIGHTS, drift.weights, weights),
        (STRATEGIES, given.strategy, rules.strategy.needs),
    ]


HOMES: Registry[Home] = Registry(
    "prune_opd.teacher.home",
    Home,
    worker_group="recipe.prune_opd.teacher.worker_group:WorkerGroup",
    lora_base="recipe.prune_opd.teacher.worker_group:LoraBase",
    server="recipe.prune_opd.teacher.servers:Servers",
    url="recipe.prune_opd.teacher.urls:Urls",
)


def build_home(prune_opd: PruneOPDConfig) -> Home:
    """The home that the configuration names.

    Raises:
        ValueError: see ``Registry.build``.
    """
    teacher = prune_opd.teacher
    return HOMES.build(
        teacher.home, teacher.args, "prune_opd.teacher.args", {"prune_opd": prune_opd}
    )
