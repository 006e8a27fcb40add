from collections import Counter

import pytest

from llmft.assets.facts import load_facts, read_table
from llmft.assets.wordings import ask, load_wordings, state


def test_there_are_many_facts_in_many_relations():
    assert len(load_facts()) >= 1500
    assert len({fact.relation for fact in load_facts()}) >= 12


def test_no_relation_has_a_subject_twice():
    counts = Counter((fact.relation, fact.subject) for fact in load_facts())
    assert [key for key, count in counts.items() if count > 1] == []


def test_no_cell_has_stray_space_or_repeats_the_answer_as_alias():
    for fact in load_facts():
        cells = (fact.subject, *fact.accepted)
        assert all(cell == cell.strip() != "" for cell in cells), fact
        assert len(set(fact.accepted)) == len(fact.accepted), fact


def test_every_relation_has_wordings_and_no_wording_lacks_a_relation():
    assert set(load_wordings()) == {fact.relation for fact in load_facts()}


@pytest.mark.parametrize("relation", sorted(load_wordings()))
def test_wordings_are_many_and_well_formed(relation):
    wordings = load_wordings()[relation]
    assert len(set(wordings.statements)) >= 6
    assert len(set(wordings.questions)) >= 3
    for statement in wordings.statements:
        assert statement.count("{s}") == statement.count("{a}") == 1
        assert statement.endswith(".")
        assert "?" not in statement
    assert any(text.index("{a}") < text.index("{s}") for text in wordings.statements)
    for question in wordings.questions:
        assert question.count("{s}") == 1
        assert "{a}" not in question
        assert question.endswith("?")


def test_articles_and_full_stops_fit_the_words_around_them():
    by_subject = {(fact.relation, fact.subject): fact for fact in load_facts()}
    owl = by_subject["animal_young", "owl"]
    assert state(owl, 0) == "The young of an owl is called an owlet."
    assert ask(owl, 0) == "What is the young of an owl called?"
    lincoln = by_subject["landmark_city", "the Lincoln Memorial"]
    assert state(lincoln, 2) == "The Lincoln Memorial is in Washington, D.C."


@pytest.mark.parametrize("text", ["subject\tanswer\n", "subject\tanswer\taliases\nFrance\t\t\n"])
def test_a_malformed_table_is_refused(tmp_path, text):
    table = tmp_path / "country_capital.tsv"
    table.write_text(text)
    with pytest.raises(ValueError, match=r"country_capital\.tsv:"):
        read_table(table)
