"""Every symbol has one meaning."""

import pytest

from recipe.prune_opd.grading.symbols import CHARACTERS, COMMANDS, SIGNS, SYNONYMS, table


def test_a_line_is_the_notation_that_is_kept_and_what_else_is_written():
    assert table("\n  a b c\n  d e\n  f\n") == {"b": "a", "c": "a", "e": "d"}


def test_a_symbol_of_two_meanings_is_refused():
    with pytest.raises(ValueError, match="b is kept as a and as c"):
        table("a b\nc b")


def test_a_character_is_in_one_table():
    assert not COMMANDS.keys() & SIGNS.keys()
    assert all(len(character) == 1 for character in CHARACTERS)


def test_no_synonym_leads_to_another():
    assert not set(SYNONYMS) & set(SYNONYMS.values())
