"""Labels that are terms of an ontology: an `.obo` file, its hierarchy, and labels found in it.

- Only `is_a` counts. Labels are ids of terms such as `CL:0000084`, their names, or their exact synonyms;
  a synonym of several terms means none of them.
- Of a column that is learned the classes are the most specific labels. A label with others of them
  below it, such as `T cell` beside `CD8-positive T cell`, is a node: it stands for all classes below.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omics.data.errors import InputDataError, MissingExtraError, MissingPathError, nearest
from omics.tokenizers.fields import LabelSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_EXACT_SYNONYM = re.compile(r'"((?:[^"\\]|\\.)*)"\s+EXACT\b')


@dataclass(frozen=True, slots=True, kw_only=True)
class Ontology:
    """Terms and what they are special cases of.

    Attributes:
        names: `{id: name}`.
        parents: `{id: ids of the terms directly above}`.
        synonyms: `{exact synonym, or former id: id}`.
        obsolete: `{id or name of a term that was given up: id of what replaces it, or empty}`.
    """

    names: Mapping[str, str]
    parents: Mapping[str, Sequence[str]]
    synonyms: Mapping[str, str] = field(default_factory=dict)
    obsolete: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> Ontology:
        """Read an `.obo` file; obsolete terms are no terms.

        Args:
            path: the file.

        Raises:
            MissingPathError: there is no such file.
            MissingExtraError: obonet is not installed.
            InputDataError: the file is no ontology, or a term is above itself.
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
                "pip install 'omics-tokenizers[ontology]'"
            ) from error
        try:
            with path.open(encoding="utf-8") as file:
                graph: Any = obonet.read_obo(file, ignore_obsolete=False)
        except (ValueError, KeyError, UnicodeDecodeError) as error:
            raise InputDataError(f"{path} cannot be read as an .obo file ({error}).") from error
        given_up = {
            term for term, data in graph.nodes(data=True) if data.get("is_obsolete") == "true"
        }
        # Edges go from a term to the one above; terms without a name are only mentioned.
        parents = {
            term: [above for _, above, kind in graph.out_edges(term, keys=True) if kind == "is_a"]
            for term in graph
            if term not in given_up
        }
        if not parents:
            raise InputDataError(f"{path} holds no term: it is not an .obo file.")
        try:
            TopologicalSorter(parents).prepare()
        except CycleError as error:
            circle = " is_a ".join(reversed(error.args[1]))
            raise InputDataError(
                f"{path} says that {circle}: a term cannot be above itself. Mend the file."
            ) from error
        obsolete: dict[str, str] = {}
        for term in given_up:
            instead = next(iter(graph.nodes[term].get("replaced_by", [])), "")
            obsolete |= {term: instead, graph.nodes[term].get("name", term): instead}
        kept = {term: data for term, data in graph.nodes(data=True) if term in parents}
        return cls(
            names={term: data["name"] for term, data in kept.items() if "name" in data},
            parents=parents,
            synonyms=_synonyms(kept),
            obsolete=obsolete,
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

    def terms_of(self, labels: Iterable[str]) -> dict[str, str]:
        """Return the ids of the terms that labels are.

        Args:
            labels: ids, names or exact synonyms; where one is several of these, in this order.

        Returns:
            `{label: id}` of the labels that are terms.
        """
        id_of_name = {text: term for term, text in self.names.items()}
        found = {}
        for label in labels:
            term = label if label in self.names else id_of_name.get(label, self.synonyms.get(label))
            if term is not None:
                found[label] = term
        return found

    def why_unknown(self, label: str) -> str:
        """Return a sentence, with a space before it, on a label that is no term.

        Args:
            label: that `terms_of` leaves out.
        """
        if label in self.obsolete:
            instead = self.obsolete[label]
            name = f" ({self.names[instead]})" if instead in self.names else ""
            told = f"; {instead}{name} is in its place" if instead else ""
            return f" It is obsolete{told}."
        return nearest(label, [*self.names.values(), *self.synonyms])

    def label_spec(self, name: str, labels: Sequence[str]) -> LabelSpec:
        """Return the hierarchy of the labels of a column.

        Args:
            name: the column.
            labels: its distinct values in the training cells.

        Returns:
            Classes in sorted order; as nodes all terms above any of them, named as the labels are
            and otherwise by their name in the ontology.

        Raises:
            InputDataError: a label that is no term, two labels for one term, fewer than two classes.
        """
        term_of = self.terms_of(labels)
        for label in labels:
            if label not in term_of:
                raise InputDataError(
                    f"The label {label!r} of column {name!r} is no term of the ontology."
                    f"{self.why_unknown(label)}"
                )
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


def _synonyms(terms: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return `{exact synonym or former id: id}`, without those that several terms share."""
    pairs = set()
    for term, data in terms.items():
        pairs |= {(former, term) for former in data.get("alt_id", [])}
        for line in data.get("synonym", []):
            found = _EXACT_SYNONYM.match(line)
            if found is not None:
                pairs.add((re.sub(r"\\(.)", r"\1", found[1]), term))
    times = Counter(text for text, _ in pairs)
    return {text: term for text, term in sorted(pairs) if times[text] == 1}
