"""How far an answer is from the truth in an ontology, beside whether it is the same label.

- `exact_term`: the share of answers that are the same term, whatever its name.
- `lineage_accuracy`: the share that are the same term, one above it or one below it.
- `ontology_distance`: the mean number of `is_a` steps between answer and truth, up or down; 0 is best.
- `hierarchical_precision`, `_recall`, `_f1`: over the sets of an answer and of a truth with all that is
  above them, without the roots, summed over cells: Kiritchenko, S., Matwin, S., Nock, R. & Famili, A. F.
  (2006), Canadian Conference on AI, LNCS 4013, 395-406.
- Cells whose own label is no term are left out. An answer that is no term, or none at all, is read as
  nothing: never right, an empty set, and one step above the roots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from omics.data.errors import InputDataError
from omics.eval.baselines import PCA_LOGISTIC
from omics.eval.classification import missing_labels
from omics.eval.intervals import (
    CellMetric,
    confidence_interval,
    mean_metric,
    method_for,
    over_groups,
)
from omics.eval.results import EvalResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from omics.tokenizers.ontology_labels import Ontology

Array = np.ndarray[Any, np.dtype[Any]]

COMPARED = ("lineage_accuracy", "ontology_distance", "hierarchical_f1")


class TermScores:
    """What the terms of labels have in common, worked out once for every pair of them.

    Attributes:
        unknown: labels that are no terms, sorted.
        notes: a sentence on each of them.

    Args:
        ontology: of the terms.
        truths: distinct labels of cells.
        answers: distinct labels that methods give.

    Raises:
        InputDataError: no label of a cell is a term.
    """

    def __init__(
        self, ontology: Ontology, truths: Iterable[str], answers: Iterable[str] = ()
    ) -> None:
        wanted = set(truths)
        labels = sorted(wanted | set(answers))
        term_of = ontology.terms_of(labels)
        self.unknown = [label for label in labels if label not in term_of]
        self.notes = [
            f"{label!r} is no term of the ontology.{ontology.why_unknown(label)}"
            for label in self.unknown
        ]
        if not wanted & set(term_of):
            first = min(wanted)
            raise InputDataError(
                f"None of the {len(wanted)} labels, such as {first!r}, is an id, name or exact "
                f"synonym of a term of the ontology.{ontology.why_unknown(first)} Rename the "
                "labels, or leave --ontology out."
            )
        terms = sorted(set(term_of.values()))
        place = {term: index for index, term in enumerate(terms)}
        self._code = {label: place[term] for label, term in term_of.items()}
        self._nothing = len(terms)
        above = [ontology.above(term) for term in terms]
        # One more column, of all zeros, is the answer that is no term.
        self._related = np.zeros((len(terms), len(terms) + 1), np.bool_)
        for row, term in enumerate(terms):
            for other, higher in enumerate(above):
                related = term == terms[other] or term in higher or terms[other] in above[row]
                self._related[row, other] = related
        sets = [
            {each for each in {term, *higher} if ontology.parents.get(each)}
            for term, higher in zip(terms, above, strict=True)
        ]
        columns = {term: index for index, term in enumerate(sorted(set().union(*sets)))}
        members = np.zeros((len(terms) + 1, len(columns)))
        for row, inside in enumerate(sets):
            members[row, [columns[term] for term in inside]] = 1
        self._size = members.sum(axis=1)
        self._shared = members @ members.T
        self._steps = _steps(ontology, terms)

    def codes(self, labels: Array) -> Array:
        """Return the place of the term of each label, int64 [n]; a place of its own for no term.

        Args:
            labels: object [n]; None for no answer.
        """
        found = np.full(len(labels), self._nothing, np.int64)
        given = ~missing_labels(labels)
        texts, which = np.unique(labels[given].astype(str), return_inverse=True)
        places = [self._code.get(str(text), self._nothing) for text in texts]
        found[given] = np.array(places, np.int64)[which]
        return found

    def known(self, labels: Array) -> Array:
        """Return bool [n], which labels are terms.

        Args:
            labels: object [n].
        """
        return np.asarray(self.codes(labels) != self._nothing)

    def metrics(self, truth: Array, answers: Array) -> dict[str, CellMetric]:
        """Return the scores of answers as metrics over cells.

        Args:
            truth: object [n], terms all.
            answers: object [n].
        """
        asked, given = self.codes(truth), self.codes(answers)
        shared, size = self._shared[asked, given], self._size
        return {
            "exact_term": mean_metric(np.asarray(asked == given), name="exact_term"),
            "lineage_accuracy": mean_metric(self._related[asked, given], name="lineage_accuracy"),
            "ontology_distance": mean_metric(
                self._steps[asked, given], name="ontology_distance", bounds=(0.0, np.inf)
            ),
            "hierarchical_precision": _ratio("hierarchical_precision", shared, size[given]),
            "hierarchical_recall": _ratio("hierarchical_recall", shared, size[asked]),
            "hierarchical_f1": _ratio("hierarchical_f1", 2 * shared, size[asked] + size[given]),
        }


def ontology_rows(
    scores: TermScores,
    truth: Array,
    predictions: Mapping[str, Array],
    *,
    task: str,
    dataset: str,
    bundles: Mapping[str, str] | None = None,
    groups: Array | None = None,
    seed: int = 0,
) -> list[EvalResult]:
    """Return the scores of every method in an ontology, and what sets the first one apart from PCA.

    Args:
        scores: of the terms.
        truth: object [m], the labels of the query cells; those that are no terms are left out.
        predictions: by method, object [m]; the first is the model.
        task: see `EvalResult`.
        dataset: see `EvalResult`.
        bundles: digest of the bundle behind a method, by its name.
        groups: [m], such as donors, that resamples draw whole; None draws cells.
        seed: of the bootstrap.

    Returns:
        Six rows a method; where PCA with logistic regression is among them, then the differences of
        lineage accuracy, distance and hierarchical F1 from it.
    """
    kept = scores.known(truth)
    donors = None if groups is None else groups[kept]
    found = {
        method: {
            name: over_groups(metric, donors)
            for name, metric in scores.metrics(truth[kept], given[kept]).items()
        }
        for method, given in predictions.items()
    }
    model = next(iter(found))
    wanted = [(m, name, metric) for m, named in found.items() for name, metric in named.items()]
    if PCA_LOGISTIC in found:
        wanted += [
            (
                f"{model} minus {PCA_LOGISTIC}",
                f"{name}_difference",
                found[model][name] - found[PCA_LOGISTIC][name],
            )
            for name in COMPARED
        ]
    digests = bundles or {}
    rows = []
    for method, name, metric in wanted:
        # Percentiles also of a mean: most distances are 0, and bootstrap-t has no end for these.
        how = "wilson" if method_for(metric) == "wilson" else "bootstrap"
        rows.append(
            EvalResult.of(
                confidence_interval(metric, method=how, seed=seed),
                task=task,
                dataset=dataset,
                method=method,
                metric=name,
                n=int(kept.sum()),
                seed=seed,
                bundle=digests.get(method.removesuffix(f" minus {PCA_LOGISTIC}"), ""),
            )
        )
    return rows


def _ratio(name: str, part: Array, whole: Array) -> CellMetric:
    """Return a sum over cells by another; 0 where there is nothing to share."""

    def values(weights: Array) -> Array:
        below = weights @ whole
        return np.asarray(weights @ part / np.where(below > 0, below, 1.0))

    return CellMetric(name, len(part), values, bounds=(0.0, 1.0))


def _steps(ontology: Ontology, terms: Sequence[str]) -> Array:
    """Return float64 [t, t + 1], steps between terms; the last column to the top above all roots."""
    from scipy import sparse
    from scipy.sparse import csgraph

    known = {*ontology.parents, *(above for each in ontology.parents.values() for above in each)}
    place = {term: index for index, term in enumerate(sorted(known))}
    top = len(place)
    edges = [
        (place[term], place[above]) for term in known for above in ontology.parents.get(term, ())
    ]
    edges += [(place[term], top) for term in known if not ontology.parents.get(term)]
    lower, upper = np.array(edges).T
    graph = sparse.csr_matrix((np.ones(len(edges)), (lower, upper)), shape=(top + 1, top + 1))
    rows = [place[term] for term in terms]
    steps = csgraph.dijkstra(graph, directed=False, unweighted=True, indices=rows)
    return np.asarray(steps[:, [*rows, top]])
