"""A student that loses its top-k mass is warned of once; one that is flat from the start is not."""

import logging

from recipe.prune_opd.training.faults import TopKMass


def said(caplog, masses: list[float]) -> list[str]:
    mass = TopKMass()
    with caplog.at_level(logging.WARNING, "recipe"):
        for step, each in enumerate(masses, 1):
            mass.look(step, each)
    return [record.getMessage() for record in caplog.records]


def test_the_first_step_that_has_lost_a_fifth_is_named(caplog):
    (message,) = said(caplog, [0.97, 0.98, 0.9, 0.8, 0.74, 0.5, 0.98, 0.4])
    assert message.startswith(
        "step 5: the student's top k has 0.74 of its probability, 0.98 before"
    )


def test_a_student_that_is_as_flat_as_it_was_is_let_be(caplog):
    assert said(caplog, [0.5, 0.45, 0.6, 0.55, 0.49]) == []
