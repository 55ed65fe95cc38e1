"""The documentation names every key, refusal and metric there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from recipe.prune_opd.__main__ import COMMANDS
from recipe.prune_opd.method.budget import BUDGETS
from recipe.prune_opd.method.drift import reliability
from recipe.prune_opd.method.gates import GATES
from recipe.prune_opd.method.pruning import Drift
from recipe.prune_opd.method.reward import Scores, TopK
from recipe.prune_opd.method.weights import WEIGHTS
from recipe.prune_opd.records import metrics
from recipe.prune_opd.records.tally import COLUMNS

ROOT = Path(__file__).resolve().parents[1]


def text(name):
    return (ROOT / name).read_text()


def test_what_is_generated_is_current():
    """``python docs/generate.py`` was run after the last change of a key."""
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "stale: nothing\n"), done.stderr


def test_every_generated_part_is_there():
    parts = re.findall(r"<!-- generated: (\w+)", text("docs/configuration.md"))
    wanted = [
        "keys",
        "gate_keys",
        "server_keys",
        "refused_with_gate",
        "refused",
        "refused_by_engine",
        "numbers",
        "kinds",
    ]
    assert parts == wanted
    assert "generated: url_keys" in text("docs/teachers.md")
    assert "generated: records_keys" in text("docs/records.md")
    assert text("docs/configuration.md").count("| `gate.chunk` |") == 1


@pytest.mark.parametrize("kind", GATES)
def test_every_gate_is_in_the_configuration_and_formulas_pages(kind):
    for page in ("docs/configuration.md", "docs/formulas.md"):
        assert f"\n| `{kind}` |" in text(page)


def test_every_rule_of_weights_and_of_the_limit_is_in_the_formulas_page():
    page = text("docs/formulas.md")
    assert [name for name in WEIGHTS if f"\n| `{name}`" not in page] == []
    assert [name for name in BUDGETS if f"rule={name}`" not in page] == []


def test_every_recipe_is_in_the_configuration_page():
    recipes = {file.stem for file in (ROOT / "recipe/prune_opd/conf/recipe").glob("*.yaml")}
    page = text("docs/configuration.md")
    assert {name for name in recipes if f"`{name}`" not in page} == {"prune_opd_base"}


def test_every_metric_is_in_the_metrics_page(tally_of):
    page = text("docs/metrics.md")
    logged = metrics.summarise(tally_of({"tokens": 1}))
    names = {re.sub(r"/from_\d+$", "", name.removeprefix("prune_opd/")) for name in logged}
    assert sorted(name for name in names if name not in page) == []


def test_every_metric_of_the_gate_is_in_the_metrics_page(tally_of):
    gate = {name: 1 for name in COLUMNS if name.startswith("gate_")}
    logged = metrics.summarise_gate(tally_of({"tokens": 1} | gate))
    names = [name.removeprefix("prune_opd/") for name in logged]
    assert "gate/event_agreement" in names
    assert "gate/stop_position_mean" in names
    page = text("docs/metrics.md")
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_every_metric_of_the_teachers_servers_is_in_the_metrics_page(tally_of):
    score = {name: 1 for name in COLUMNS if name.startswith("score_")}
    logged = metrics.summarise_scores(tally_of({"tokens": 1} | score))
    names = [name.removeprefix("prune_opd/") for name in logged]
    assert "teacher/hidden_ratio" in names
    page = text("docs/metrics.md")
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_every_value_of_the_records_is_in_their_page(tally_of):
    import torch

    from recipe.prune_opd.records.recorder import step_record
    from recipe.prune_opd.records.samples import token_data

    record = step_record(tally_of({"tokens": 1}), limit=4, next_limit=4)
    token = torch.ones(1, 1).long()
    own = TopK(token.unsqueeze(-1), token.unsqueeze(-1).float())
    drift = Drift(
        token.bool(), token, token.bool(), reliability(token, token, w_drop=0.1, w_base=0)
    )
    sample = token_data(Scores(token, own, own), drift, 1, str)
    names = [
        *sample,
        *(name for name in record if not isinstance(record[name], dict)),
        *record["positions"],
    ]
    names += [f"{group}.{name}" for group in ("share", "tokens") for name in record[group]]
    assert {"limit", "tokens.saved", "teacher_entropy", "pieces"} <= set(names)
    page = text("docs/records.md")
    assert [
        name for name in names if f"`{name}`" not in page and f"`positions.{name}`" not in page
    ] == []
    assert [name for name in record["length"] if f"`{name}`" not in page] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command):
    assert f"| [`{command}`](docs/" in text("README.md")


def test_the_readme_is_short_and_has_the_commands_and_the_six_lines():
    readme = text("README.md")
    assert len(readme.splitlines()) <= 120
    for line in ("make quickstart", "make test", "pip install '.[vllm]'", "O_t = ", "M   += "):
        assert line in readme


PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))
PAGES += sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("examples/*/README.md"))


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page):
    """To files that there are, and to headings of pages."""
    for link in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.M)
            anchors = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in anchors, link


def test_every_test_that_the_page_of_faults_names_is_there():
    there = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.M)
    }
    named = set(re.findall(r"`(test_\w+)`", text("docs/faults.md")))
    assert len(named) > 40
    assert named - there == set()
