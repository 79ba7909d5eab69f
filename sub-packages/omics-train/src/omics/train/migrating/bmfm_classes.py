"""Class names of bmfm's configurations, looked up as texts: nothing that they name is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omics.data.errors import nearest
from omics.train.migrating.migration_rules import Dropped

PACKAGE = "bmfm_targets."


@dataclass(frozen=True, slots=True, kw_only=True)
class DataModule:
    """What a class of data modules reads.

    Attributes:
        dataset: the row of `omics-data datasets`; empty for any file.
        file: below `data_dir`.
        column: of obs with the perturbations, where cells are paired with controls.
    """

    dataset: str = ""
    file: str = ""
    column: str = ""


DATA_MODULES = {
    "DataModule": DataModule(),
    "BaseRNAExpressionDataModule": DataModule(),
    "BulkRnaDataModuleLabeled": DataModule(),
    "BulkRnaDataModuleUnlabeled": DataModule(),
    "Zheng68kDataModule": DataModule(dataset="zheng68k", file="h5ad/zheng68k.h5ad"),
    "PanglaoDBDataModule": DataModule(dataset="panglaodb", file="rdata"),
    "SCP1884DataModule": DataModule(dataset="scp1884", file="h5ad/scp1884.h5ad"),
    "SciPlex3DataModule": DataModule(dataset="sciplex3", file="h5ad/sciplex3.h5ad"),
    "PancreasCrossDataModule": DataModule(
        dataset="pancreas", file="h5ad/pancreascross_sceval_split.h5ad"
    ),
    "HBonesDataModule": DataModule(dataset="hbones", file="h5ad/hbones.h5ad"),
    "MultipleSclerosisDataModule": DataModule(
        dataset="multiple_sclerosis", file="h5ad/multiple_sclerosis_scgpt_split.h5ad"
    ),
    "MyeloidDataModule": DataModule(dataset="myeloid", file="h5ad/myeloid_scgpt_split.h5ad"),
    "PerturbationDataModule": DataModule(column="perturbation"),
    "ScperturbDataModule": DataModule(
        dataset="adamson",
        file="h5ad/AdamsonWeissman2016_GSM2406675_10X001.h5ad",
        column="perturbation",
    ),
    "GearsDataModule": DataModule(
        dataset="norman", file="h5ad/perturb_processed.h5ad", column="condition"
    ),
    "ReplogleDataModule": DataModule(
        dataset="replogle_k562",
        file="h5ad/k562_gwps_raw_singlecell_01_processed_with_scgpt_split.h5ad",
        column="perturbation",
    ),
    "VCCDataModule": DataModule(
        dataset="vcc_h1", file="h5ad/train_and_test.h5ad", column="perturbation"
    ),
}
# They read what is no file of cells: a store has to be made of it first.
STREAMED = (
    "CellXGeneDataModule", "CellXGeneSOMADataModule", "CellXGeneNexusDataModule",
    "StreamingDataModule", "PerturbxDataModule", "AnnCollectionDataModule",
)  # fmt: skip

ARCHITECTURES = {
    "SCBertConfig": "bert",
    "SCModernBertConfig": "modernbert",
    "SCPerformerConfig": "performer",
    "SCNystromformerConfig": "nystromformer",
    "LlamaForMultiTaskConfig": "llama",
    "LlamaForMaskedLMConfig": "llama",
    "LlamaForSequenceClassificationConfig": "llama",
}

TASKS = {
    "TrainingTaskConfig": "train",
    "TestTaskConfig": "test",
    "PredictTaskConfig": "predict",
    "InterpretTaskConfig": "interpret",
}

MASKERS = ("Masker", "MaskingStrategy", "AdaptiveMaskingStrategy", "WCEDMasker", "AdaptiveWCEDMasker")  # fmt: skip


def class_name(value: Any) -> str:
    """Return the last part of a class path of bmfm; empty for anything else.

    Args:
        value: such as `bmfm_targets.config.FieldInfo`.
    """
    if not isinstance(value, str) or not value.startswith(PACKAGE):
        return ""
    return value.rsplit(".", 1)[-1]


def look_up(value: Any, known: dict[str, Any], what: str) -> Any:
    """Return what a class path stands for.

    Args:
        value: the class path.
        known: by class name.
        what: such as `data module`, for the reason.
    """
    name = class_name(value)
    if name not in known:
        return Dropped(
            f"{value!r} is no {what} that is known here, and nothing is imported"
            f".{nearest(name, [*known])}"
        )
    return known[name]
