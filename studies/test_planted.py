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


def test_a_good_a_mediocre_and_a_random_embedding_are_ranked_and_pca_may_win(tmp_path, capsys):
    study = Study(folder=tmp_path, size=Size(cells=400, genes=400))
    STUDIES["embedding_ranks"](study)
    for what in ("AvgBio", "accuracy"):
        ranked = [study.value(what, name) for name in ("good", "mediocre", "random")]
        assert ranked[0].low > ranked[1].high
        assert ranked[1].low > ranked[2].high
    said = capsys.readouterr().out
    assert "good is better than PCA at keeping cell types apart" in said
    assert "PCA is better than random at keeping cell types apart" in said
    assert study.value("AvgBio", "PCA").value > study.value("AvgBio", "random").high
    assert b"AvgBatch" in figure(study)
