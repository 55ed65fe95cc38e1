"""Questions that occur twice: in the rows of one dataset, or in another file as well."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.prune_opd.checks.files import check_readable
from recipe.prune_opd.commands.prepare.problems import Problem, from_verl, read_parquet
from recipe.prune_opd.commands.terminal import progress

FENCES = re.compile(r"\\[()\[\]]|\\left(?![a-z])|\\right(?![a-z])|\\[,;:! ]|\.(?!\d)|[$\s?~{}]")


def normalise(question: str) -> str:
    """Reduce a question to what two writings of it have in common.

    That is without white space, dollar signs, braces and end marks, in one case.

    The point of ``1.5`` or ``.5`` is no end mark.
    """
    text = unicodedata.normalize("NFKC", question).casefold()
    return FENCES.sub("", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))


def questions_of(file: Path) -> set[str]:
    """Read the normalised questions of a parquet file in verl's format.

    Raises:
        ValueError: the file does not exist or is in another format.
    """
    check_readable("--against: ", file, "a parquet file in verl's format")
    found = set()
    for number, row in enumerate(progress(read_parquet(file), f"reading {file.name}", "row")):
        if "reward_model" not in row:
            raise ValueError(
                f"--against: {file} has no column 'reward_model', allowed: a parquet file in verl's"
                " format"
            )
        found.add(normalise(from_verl(row, f"{file}, row {number}").question))
    return found


@dataclass(frozen=True)
class Overlaps:
    """Row numbers of questions that occur elsewhere."""

    repeated: set[int]
    """Questions that an earlier row has."""
    contradictions: int
    """Repeated questions whose answer differs from the earlier row's."""
    shared: dict[Path, list[int]]
    """Rows whose question is in a file, by file."""
    first_ids: list[str]
    """Ids of the first ten rows that are shared."""

    @classmethod
    def of(cls, problems: list[Problem], others: dict[Path, set[str]]) -> "Overlaps":
        """Compare problems with each other and with the normalised questions of other files."""
        first: dict[str, str] = {}
        repeated, contradictions = set(), 0
        shared: dict[Path, list[int]] = {file: [] for file in others}
        for number, problem in enumerate(problems):
            question = normalise(problem.question)
            if question in first:
                repeated.add(number)
                contradictions += first[question] != problem.answer
            first.setdefault(question, problem.answer)
            for file, questions in others.items():
                if question in questions:
                    shared[file].append(number)
        rows = sorted({number for numbers in shared.values() for number in numbers})
        return cls(repeated, contradictions, shared, [problems[number].id for number in rows[:10]])

    @property
    def all(self) -> set[int]:
        """Rows that another row or file makes superfluous."""
        return self.repeated.union(*self.shared.values())

    def left_of(self, problems: list[Problem], origin: str) -> list[Problem]:
        """Problems without superfluous rows.

        Args:
            problems: those that were compared.
            origin: where they are from, for messages.

        Raises:
            ValueError: nothing is left.
        """
        left = [problem for number, problem in enumerate(problems) if number not in self.all]
        if not left:
            raise ValueError(
                f"{origin}: every question is in an --against file, nothing is left to write"
            )
        return left

    def counts(self) -> dict[str, Any]:
        """Numbers of rows by kind, for JSON."""
        return {
            "repeated_questions": len(self.repeated),
            "repeated_with_another_answer": self.contradictions,
            "shared": {str(file): len(rows) for file, rows in self.shared.items()},
        }
