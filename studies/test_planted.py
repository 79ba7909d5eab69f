"""A study finds its planted truth, on fewer cells and in a shorter training than the guide's."""

from __future__ import annotations

from planted import STUDIES, Size, Study, figure


def test_adaptive_masking_hides_hard_genes_more_often(tmp_path):
    study = Study(folder=tmp_path, size=Size(cells=300, genes=150, epochs=3))
    STUDIES["adaptive_masking"](study)
    what = "rank correlation of error and share hidden"
    assert study.value(what, "adaptive").low > 0.5
    assert abs(study.value(what, "uniform").value) < 0.3
    drawn = figure(study)
    for score in study.scores:
        assert score.low <= score.value <= score.high
        assert score.of.encode() in drawn
