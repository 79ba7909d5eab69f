"""What an `.obo` file says of labels; hierarchies of columns are tested with omics.train."""

from __future__ import annotations

import pytest

from omics.data.errors import InputDataError
from omics.tokenizers.ontology_labels import Ontology

OBO = r"""format-version: 1.2
ontology: tiny

[Term]
id: C:0
name: cell

[Term]
id: C:1
name: T cell
alt_id: C:9
synonym: "T lymphocyte" EXACT []
synonym: "the \"T\" cell" EXACT [a:b]
synonym: "thymocyte" RELATED []
synonym: "shared" EXACT []
is_a: C:0 ! cell
relationship: part_of C:0 ! cell

[Term]
id: C:2
name: B cell
synonym: "shared" EXACT []
synonym: "T cell" EXACT []
is_a: C:0 ! cell

[Term]
id: C:3
name: old cell
is_obsolete: true
replaced_by: C:1

[Term]
id: C:4
name: lost cell
is_obsolete: true
"""


@pytest.fixture
def ontology(tmp_path):
    (tmp_path / "t.obo").write_text(OBO)
    return Ontology.read(tmp_path / "t.obo")


def test_labels_are_ids_names_or_exact_synonyms(ontology):
    labels = ["C:1", "T cell", "T lymphocyte", 'the "T" cell', "C:9", "B cell"]
    labels += ["thymocyte", "shared", "old cell", "C:3", "stone"]
    assert ontology.terms_of(labels) == {
        **dict.fromkeys(["C:1", "T cell", "T lymphocyte", 'the "T" cell', "C:9"], "C:1"),
        "B cell": "C:2",
    }
    assert ontology.above("C:1") == {"C:0"}
    assert ontology.parents["C:1"] == ["C:0"]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("old cell", " It is obsolete; C:1 (T cell) is in its place."),
        ("C:3", " It is obsolete; C:1 (T cell) is in its place."),
        ("lost cell", " It is obsolete."),
        ("T lymfocyte", " Did you mean 'T lymphocyte'?"),
    ],
)
def test_a_label_that_is_no_term_is_explained(ontology, label, message):
    assert ontology.why_unknown(label) == message
    with pytest.raises(InputDataError, match="is no term of the ontology"):
        ontology.label_spec("kind", [label, "B cell"])


def test_a_term_above_itself_is_refused(tmp_path):
    circle = OBO.replace("name: cell\n", "name: cell\nis_a: C:2 ! B cell\n")
    (tmp_path / "t.obo").write_text(circle)
    with pytest.raises(InputDataError, match=r"t\.obo says that C:\d is_a C:\d is_a C:\d: a term"):
        Ontology.read(tmp_path / "t.obo")
