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


def test_gradient_reversal_blinds_its_head_and_keeps_the_type(tmp_path):
    study = found("gradient_reversal", tmp_path, cells=900, genes=200, epochs=20)
    what = "batch, by the model's head"
    blind, seeing = study.value(what, "with reversal"), study.value(what, "without reversal")
    assert blind.high < seeing.low
    assert study.value("type, by the model's head", "with reversal").value > 0.9


def test_a_model_that_knows_depths_keeps_a_cell_near_its_thinned_copy(tmp_path):
    study = found("read_depth", tmp_path, cells=500, genes=200, epochs=8)
    what = "distance to the own copy"
    aware, plain = (
        study.value(what, "read-depth-aware"),
        study.value(what, "plain masked modelling"),
    )
    assert aware.high < plain.low


def test_adaptive_masking_hides_hard_genes_more_often(tmp_path):
    study = found("adaptive_masking", tmp_path, cells=500, genes=150, epochs=4)
    what = "rank correlation of error and share hidden"
    assert study.value(what, "adaptive").low > 0.5
    assert abs(study.value(what, "uniform").value) < 0.3
