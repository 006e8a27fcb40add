"""Classes by name and by number, and labels that fit none."""

from __future__ import annotations

import pytest
from llmft_alignments.classification.labels import Classes, counted, refuse_misfits, target_of

from llmft.api import ClassificationRow, TextRow
from llmft.api.errors import DataError


def rows(*labels):
    return [ClassificationRow("t", label, None, f"f:{n}") for n, label in enumerate(labels, 1)]


@pytest.mark.parametrize(
    ("labels", "names"),
    [(["b", "a", "b"], ["a", "b"]), ([10, 9, 10.0], ["9", "10"]), (["10", 9], ["9", "10"]),
     ([("b", "a"), (), ("c",)], ["a", "b", "c"]), ([2, "x"], ["2", "x"])],
)  # fmt: skip
def test_classes_are_counted_in_order(labels, names):
    assert counted(rows(*labels)) == names


def test_a_number_is_a_name_among_numbers_and_else_a_place():
    words, numbers = Classes(["no", "yes"]), Classes(["1", "5"])
    assert [words.number(one) for one in ("yes", 1, "0", 1.0, 2, "maybe")] == [
        1,
        1,
        0,
        1,
        None,
        None,
    ]
    assert [numbers.number(one) for one in (1, "5", 0, 5.0)] == [0, 1, None, 1]


def test_labels_that_fit_no_class_are_named_by_their_rows():
    classes = Classes(["a", "b"])
    with pytest.raises(DataError) as error:
        refuse_misfits(rows("a", "c", "b", "d"), classes, several=False)
    assert "f:2: the label 'c' is none of the classes (a, b); f:4" in str(error.value)
    with pytest.raises(DataError, match="f:1: the label is a list of 1 classes"):
        refuse_misfits(rows(("a",)), classes, several=False)
    with pytest.raises(DataError, match="f:1: the label names the class '0' twice"):
        refuse_misfits(rows((0, 1, 0)), classes, several=True)
    with pytest.raises(DataError, match="f:2: the label 'x' is no number"):
        refuse_misfits(rows("1.5", "x"), None, several=False)
    with pytest.raises(DataError, match="a TextRow has no class"):
        refuse_misfits([TextRow("t")], classes, several=False)
    refuse_misfits(rows("a", 1, "b"), classes, several=False)


def test_targets_are_numbers_of_classes_or_values():
    classes = Classes(["a", "b"])
    assert target_of("b", classes, several=False) == 1
    assert target_of(("b", "a"), classes, several=True) == (1, 0)
    assert target_of("a", classes, several=True) == (0,)
    assert target_of("2.5", None, several=False) == 2.5
