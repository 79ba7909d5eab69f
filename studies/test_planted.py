"""Each study finds its planted truth, on fewer cells and shorter trainings than the guide's."""

from __future__ import annotations

from planted import STUDIES, Size, Study, figure


def found(name, tmp_path, **size):
    study = Study(folder=tmp_path, size=Size(**size))
    STUDIES[name](study)
    drawn = figure(study)
    for score in study.scores:
        assert score.low <= score.value <= score.high
        assert score.of.encode() in drawn
    return study


def test_pretraining_recovers_types_that_it_was_never_told(tmp_path):
    study = found("pretraining", tmp_path, cells=600, genes=200, epochs=12)
    what = "types by neighbours"
    assert study.value(what, "pretrained").low > study.value(what, "at initialisation").high
    _, losses = study.curves["validation loss"]
    assert losses[-1] < 0.9 * losses[0]
