"""Lists of transforms that fit, and those refused with the reason."""

from __future__ import annotations

import pytest

from omics.data.errors import ConfigError
from omics.data.transforms import (
    AllGenes,
    BatchZeros,
    ChromosomeOrder,
    Dropout,
    EqualWidthBins,
    ExpressionOrder,
    FirstGenes,
    GenePanel,
    InterleaveZeros,
    LogBins,
    LogNormalize,
    MaskGenes,
    MedianNormalize,
    PoissonDownsample,
    QuantileBins,
    RandomOrder,
    RandomZeros,
    ReadDepthDownsample,
    SampleGenes,
    TopGenes,
    check_transforms,
)

PANEL = GenePanel(("a", "b"))
UCE = ChromosomeOrder(chromosome_column="chromosome", start_column="start", sample=8)


@pytest.mark.parametrize(
    ("transforms", "found"),
    [
        ([LogNormalize(), LogNormalize()], "log_normalize is given twice. Keep one"),
        ([SampleGenes(0.5, 0.5), LogNormalize()], "sample_genes comes before log_normalize"),
        ([TopGenes(5), LogNormalize()], "top_genes comes before log_normalize, .* first"),
        ([Dropout(0.5), MedianNormalize({"a": 1.0})], "total of the remaining genes"),
        ([TopGenes(5), ReadDepthDownsample()], "top_genes comes before read_depth_downsample"),
        ([LogNormalize(), MedianNormalize({"a": 1.0})], "both turn counts into expression"),
        ([LogNormalize(), ReadDepthDownsample()], "both turn counts into expression"),
        ([LogNormalize(field_name="x"), PoissonDownsample("equal")], "both turn counts"),
        ([ReadDepthDownsample(), ReadDepthDownsample()], "given twice"),
        ([ReadDepthDownsample(), ReadDepthDownsample("equal")], "given twice"),
        ([ReadDepthDownsample("equal"), PoissonDownsample()], "both turn counts"),
        ([LogBins(), ReadDepthDownsample()], "bin_log comes before .*, which changes the counts"),
        ([ExpressionOrder(), PoissonDownsample()], "changes the counts"),
        ([RandomOrder(), ExpressionOrder()], "random_order comes before .* undoes that order"),
        ([RandomOrder(), RandomOrder()], "random_order is given twice"),
        ([RandomOrder(), TopGenes(4)], "equal counts by the order of genes. Put top_genes first"),
        (
            [RandomZeros(fill_to=9), InterleaveZeros(0.5), RandomOrder()],
            "undoes the interleaving",
        ),
        ([SampleGenes(0.5, 0.5), RandomZeros(fill_to=9)], "genes left out for genes that are not"),
        ([FirstGenes(3), BatchZeros(fill_to=9)], "first_genes comes before batch_zeros"),
        ([MaskGenes(("a",)), RandomZeros(fill_to=9)], "bring the masked genes back"),
        ([PANEL, RandomZeros(fill_to=9)], "outside the panel.* Give random_zeros the same genes"),
        ([PANEL, RandomZeros(fill_to=9, panel=("a", "c"))], "1 genes .such as 'c'. that gene_pan"),
        ([UCE, RandomZeros(fill_to=9)], "needs each gene once"),
        ([PANEL, AllGenes()], "outside the panel.* Give all_genes the same genes"),
        ([AllGenes(("a",)), RandomZeros(fill_to=9, panel=("b",))], "such as 'b'. that all_genes"),
        ([RandomOrder(), AllGenes()], "random_order comes before all_genes, which undoes that"),
        ([TopGenes(5), AllGenes()], "genes left out for genes that are not expressed"),
        ([InterleaveZeros(0.5)], "no zeros to interleave"),
        ([QuantileBins(source="expression")], "reads the field 'expression', which no transform"),
        (
            [LogNormalize(field_name="expr"), QuantileBins(source="exprs")],
            "'exprs', .* Did you mean 'expr'",
        ),
        ([QuantileBins(source="expression"), LogNormalize()], "reads the field 'expression'"),
        ([ExpressionOrder("expression")], "expression_order reads the field"),
        ([LogBins(), QuantileBins()], "both add the field 'bin'"),
        ([LogNormalize(field_name="bin"), LogBins()], "both add the field 'bin'"),
        (
            [ReadDepthDownsample(), QuantileBins(source="expression")],
            "adds at inference, where steps of training only are left out",
        ),
        (
            [
                ReadDepthDownsample("equal"),
                EqualWidthBins(4, source="expression"),
                ReadDepthDownsample(),
            ],
            "reads the field 'expression', which read_depth_downsample replaces afterwards",
        ),
    ],
)
def test_transforms_that_do_not_fit_are_refused(transforms, found):
    with pytest.raises(ConfigError, match=found):
        check_transforms(transforms)


@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [LogNormalize(), SampleGenes(0.5, 0.5), TopGenes(5)],
        [SampleGenes(0.5, 0.5), TopGenes(5)],
        [PANEL, LogNormalize(), TopGenes(4), RandomOrder(), FirstGenes(2)],
        [MaskGenes(("a",)), LogNormalize()],
        [LogNormalize(), QuantileBins(), LogBins(field_name="log_bin")],
        [LogNormalize(), QuantileBins(source="expression"), ExpressionOrder("bin")],
        [ReadDepthDownsample("auto_align", 100), ReadDepthDownsample(), QuantileBins()],
        [PoissonDownsample("equal"), PoissonDownsample(), TopGenes(3)],
        [PANEL, RandomZeros(fill_to=9, panel=("b",)), InterleaveZeros(0.9)],
        [PANEL, BatchZeros(fill_to=9), RandomOrder(), InterleaveZeros(0.5), FirstGenes(9)],
        [LogNormalize(), BatchZeros(fill_to=9), RandomZeros(fill_to=9), SampleGenes(0.1, 1)],
        [LogNormalize(), UCE, FirstGenes(2)],
        [MaskGenes(("a",), how="zero"), RandomZeros(fill_to=9)],
        [PANEL, AllGenes(("a", "b")), LogBins()],
        [LogNormalize(), AllGenes(), QuantileBins(), RandomOrder()],
    ],
)
def test_transforms_that_fit_are_accepted(transforms):
    check_transforms(transforms)
