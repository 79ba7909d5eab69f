"""Labels that are terms of an ontology: an `.obo` file and a column of obs to a hierarchy.

- The classes are the most specific labels of the training cells. A label with others of them below
  it, such as `T cell` beside `CD8-positive T cell`, is a node: it stands for all classes below.
- Only `is_a` counts. Labels are names of terms, or their ids such as `CL:0000084`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.errors import InputDataError, MissingExtraError, MissingPathError, nearest
from omics.tokenizers import LabelSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Ontology:
    """Terms and what they are special cases of.

    Attributes:
        names: `{id: name}`.
        parents: `{id: ids of the terms directly above}`.
    """

    names: Mapping[str, str]
    parents: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls, path: str | Path) -> Ontology:
        """Read an `.obo` file; obsolete terms are left out.

        Args:
            path: the file.

        Raises:
            MissingPathError: there is no such file.
            MissingExtraError: obonet is not installed.
            InputDataError: the file is no ontology.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingPathError(
                f"There is no ontology file {path}. Download the .obo file of your ontology, such "
                "as cl-basic.obo of the Cell Ontology, and give its path."
            )
        try:
            import obonet
        except ImportError as error:
            raise MissingExtraError(
                f"Reading an ontology needs obonet, which cannot be imported ({error}). Run: "
                "pip install 'omics-train[ontology]'"
            ) from error
        try:
            with path.open(encoding="utf-8") as file:
                graph: Any = obonet.read_obo(file)
        except (ValueError, KeyError, UnicodeDecodeError) as error:
            raise InputDataError(f"{path} cannot be read as an .obo file ({error}).") from error
        if not len(graph):
            raise InputDataError(f"{path} holds no term: it is not an .obo file.")
        # Edges go from a term to the one above; terms without a name are only mentioned.
        return cls(
            names={term: data["name"] for term, data in graph.nodes(data=True) if "name" in data},
            parents={
                term: [
                    above for _, above, kind in graph.out_edges(term, keys=True) if kind == "is_a"
                ]
                for term in graph
            },
        )

    def above(self, term: str) -> set[str]:
        """Return the ids of all terms that a term is a special case of.

        Args:
            term: its id.
        """
        found: set[str] = set()
        waiting = [term]
        while waiting:
            for parent in self.parents.get(waiting.pop(), ()):
                if parent not in found:
                    found.add(parent)
                    waiting.append(parent)
        return found

    def label_spec(self, name: str, labels: Sequence[str]) -> LabelSpec:
        """Return the hierarchy of the labels of a column.

        Args:
            name: the column.
            labels: its distinct values in the training cells, names or ids of terms.

        Returns:
            Classes in sorted order; as nodes all terms above any of them, named as the labels are
            and otherwise by their name in the ontology.

        Raises:
            InputDataError: a label that is no term, two labels for one term, fewer than two classes.
        """
        id_of_name = {text: term for term, text in self.names.items()}
        term_of: dict[str, str] = {}
        for label in labels:
            term = label if label in self.names else id_of_name.get(label)
            if term is None:
                raise InputDataError(
                    f"The label {label!r} of column {name!r} is no term of the ontology."
                    f"{nearest(label, list(id_of_name))}"
                )
            term_of[label] = term
        label_of = {term: label for label, term in term_of.items()}
        if len(label_of) < len(term_of):
            twice = next(label for label, term in term_of.items() if label_of[term] != label)
            raise InputDataError(
                f"The labels {twice!r} and {label_of[term_of[twice]]!r} of column {name!r} are one "
                "term of the ontology. Give its cells one label."
            )
        above = {label: self.above(term) for label, term in term_of.items()}
        inner = set().union(*above.values()) if above else set()
        classes = tuple(sorted(label for label, term in term_of.items() if term not in inner))
        if len(classes) < 2:
            raise InputDataError(
                f"Label column {name!r} holds {len(classes)} classes in the training cells that no "
                "other label is below; a classifier needs at least two."
            )
        below: dict[str, list[int]] = {}
        for position, label in enumerate(classes):
            for term in above[label]:
                node = label_of.get(term) or self.names.get(term, term)
                below.setdefault(node, []).append(position)
        nodes = {node: tuple(positions) for node, positions in sorted(below.items())}
        return LabelSpec(name=name, classes=classes, kind="hierarchy", nodes=nodes)
