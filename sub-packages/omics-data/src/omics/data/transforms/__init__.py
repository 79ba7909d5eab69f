"""Transforms: what happens to the counts of a cell before the tokenizer, batch in, batch out.

- What a transform does to a cell depends on (seed, epoch, cell) and the cell alone, never on its
  batch (`batch_zeros` is the one exception, by its definition). No input is changed.
- Work is done on flat arrays, in compiled loops that release the GIL; there is no Python object
  per cell.
"""

from __future__ import annotations

from omics.data.transforms.binning import (
    EqualWidthBins,
    IntegerBins,
    LinearBins,
    LogBins,
    PercentileBins,
    QuantileBins,
)
from omics.data.transforms.gene_dropping import (
    ChunkDropout,
    Dropout,
    FirstGenes,
    SampleGenes,
    SelectiveDropout,
    TopGenes,
)
from omics.data.transforms.gene_ordering import (
    ChromosomeOrder,
    ExpressionOrder,
    GenePropertyOrder,
    RandomOrder,
)
from omics.data.transforms.gene_panels import GenePanel, MaskGenes
from omics.data.transforms.normalizing import LogNormalize, MedianNormalize
from omics.data.transforms.read_depth import PoissonDownsample, ReadDepthDownsample
from omics.data.transforms.transform_registry import (
    TRANSFORMS,
    GeneTransform,
    Transform,
    TransformRecord,
    apply_transforms,
    bind_transforms,
    register,
    transform_from_dict,
)
from omics.data.transforms.transform_rules import check_transforms
from omics.data.transforms.zero_genes import AllGenes, BatchZeros, InterleaveZeros, RandomZeros

__all__ = [
    "TRANSFORMS",
    "AllGenes",
    "BatchZeros",
    "ChromosomeOrder",
    "ChunkDropout",
    "Dropout",
    "EqualWidthBins",
    "ExpressionOrder",
    "FirstGenes",
    "GenePanel",
    "GenePropertyOrder",
    "GeneTransform",
    "IntegerBins",
    "InterleaveZeros",
    "LinearBins",
    "LogBins",
    "LogNormalize",
    "MaskGenes",
    "MedianNormalize",
    "PercentileBins",
    "PoissonDownsample",
    "QuantileBins",
    "RandomOrder",
    "RandomZeros",
    "ReadDepthDownsample",
    "SampleGenes",
    "SelectiveDropout",
    "TopGenes",
    "Transform",
    "TransformRecord",
    "apply_transforms",
    "bind_transforms",
    "check_transforms",
    "register",
    "transform_from_dict",
]
