"""`RunConfig`: the typed configuration of a run; Hydra refuses every key that is not here.

- The sections keep the names that users of bmfm know.
- Users name things (`mse`, `one_cycle`); nothing in a configuration is a Python path.
- The attribute docstrings are the reference of the configuration page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

TASKS = ("train", "test", "predict")


@dataclass
class FieldConfig:
    """One input field of the model.

    Attributes:
        field_name: `genes` or `expression`.
        encoder: `embedding` for ids; `mlp`, `leaky_mlp` or `sinusoid` for values.
        scaled_by: a discrete field whose second table is multiplied by this field's value.
        is_masked: whether training hides a share of this field's values and predicts them.
        inner_size: width inside the network of `leaky_mlp`.
        zero_row: a vector of its own for the value 0.
        num_frequencies: of `sinusoid`.
        frequency_scale: of `sinusoid`: how high the frequencies are drawn.
        learned_frequencies: of `sinusoid`: whether training changes them.
        vectors: a table of pre-trained vectors of genes (gene2vec text, CSV, TSV or Parquet: a gene
            id or symbol, then its numbers), which a projection brings to the width of the model.
        freeze_vectors: leave these vectors as they are; genes that the table lacks are trained.
    """

    field_name: str = MISSING
    encoder: str = MISSING
    scaled_by: str | None = None
    is_masked: bool = False
    inner_size: int = 128
    zero_row: bool = False
    num_frequencies: int = 48
    frequency_scale: float = 1.5
    learned_frequencies: bool = True
    vectors: str | None = None
    freeze_vectors: bool = False


@dataclass
class DataConfig:
    """What is read and what is done to it.

    Attributes:
        path: a store folder (`omics-data convert`), or an `.h5ad` with raw counts.
        split: the table of `omics-data split`; null trains on all cells without validation.
        train_split: name of the training cells in that table.
        validation_split: name of the validation cells.
        predict_split: the cells that `test` and `predict` read; null means all (predict) or
            `test` (test).
        batch_size: cells per micro-batch of a training; null takes 32. Of `test` and `predict`,
            the most cells at once; null sets no limit but that of the tokens.
        batch_tokens: of `test` and `predict`: the most tokens at once (a longer cell is run alone);
            null takes what suits the device. No number depends on it.
        order: of the training cells: `random`, `block` (for data larger than memory), `auto`,
            `sequential`, `class_balanced:COLUMN` or `weighted:COLUMN`, with a column of obs.
        transforms: preprocessing, from counts to model input, in order; null takes that of the
            checkpoint, which is where it belongs.
        augmentations: random steps of training only (`sample_genes`), run right after the
            normalisation and before anything that cuts.
        change_ratio: share of a masked field's tokens that are hidden and predicted.
        prefetch: batches prepared ahead by a background thread; 0 for none.
    """

    path: str | None = None
    split: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    predict_split: str | None = None
    batch_size: int | None = None
    batch_tokens: int | None = None
    order: str = "random"
    transforms: list[dict[str, Any]] | None = None
    augmentations: list[dict[str, Any]] = field(default_factory=list)
    change_ratio: float = 0.15
    prefetch: int = 2


@dataclass
class TokenizerConfig:
    """How cells become tokens, when there is no checkpoint to take the tokenizer from.

    Attributes:
        kind: `gene` (genes and values, the vocabulary is the store's genes), or `geneformer` and
            `geneformer-v1` (genes in the order of their ranks, the vocabulary is that of `table`).
        table: of gene tokens, for the geneformer kinds.
        prepend_cls: whether a cell begins with `[CLS]`.
        append_sep: whether a cell ends with `[SEP]`.
        depth_tokens: whether cells begin with `[S]` and `[T]`, of `read_depth_downsample`.
        num_bins: the values are tokens of so many bins (of the field `bin`); null for continuous.
        max_length: tokens that a cell may have, special ones included; null for no limit (of
            `gene`) or that of the published models.
        min_coverage: share of genes that must match between a store and the vocabulary.
    """

    kind: str = "gene"
    table: str | None = None
    prepend_cls: bool = True
    append_sep: bool = False
    depth_tokens: bool = False
    num_bins: int | None = None
    max_length: int | None = None
    min_coverage: float = 0.1


@dataclass
class ModelSection:
    """Sizes and switches of a new model, as in `omics.models.ModelConfig`.

    Attributes:
        hidden_size: d.
        num_layers: blocks.
        num_heads: attention heads.
        intermediate_size: width of the feed-forward layer.
        norm: `pre` or `post`.
        norm_kind: `layer` or `rms`.
        norm_bias: biases in the layer norms of the blocks.
        first_norm: normalise before the first attention of a pre-norm model.
        final_norm: normalise the last hidden states.
        embedding_norm: normalise and drop out the sum of the inputs.
        embedding_norm_bias: a bias in that norm.
        activation: `gelu`, `gelu_tanh`, `relu` or `silu`.
        glu: gated feed-forward.
        bias: biases in the blocks.
        positions: `none`, `learned` or `rope`.
        max_positions: rows of the learned table.
        rope_theta: base of the rotary angles.
        local_rope_theta: the same in blocks with a window; null for the same.
        window: how far a token sees; null for its whole cell.
        global_every: with a window, every so manieth block has none.
        attention: `softmax`, `favor` or `nystrom`.
        num_features: random features of `favor`.
        num_landmarks: of `nystrom`.
        conv_kernel: of `nystrom`; 0 for none.
        dropout: in the blocks and before label heads.
        layer_norm_eps: of every normalisation.
        embedding_std: of new embedding tables.
        pooling: `first_token`, `mean`, `mean_after_first`, `pooler`, `token:K`, joined by `+`.
        pooled_norm: normalise the pooled row.
        pooler: the linear layer and tanh of BERT.
        embedding_pooling: of the embedding of a cell; null for the pooled row.
        embedding_layer: whose hidden states that pooling reads; null for the final ones.
        field_transform: `own`, `shared` or `shared_norm`, before the decoders of fields.
    """

    hidden_size: int = 64
    num_layers: int = 1
    num_heads: int = 2
    intermediate_size: int = 128
    norm: str = "pre"
    norm_kind: str = "layer"
    norm_bias: bool = True
    first_norm: bool = True
    final_norm: bool = True
    embedding_norm: bool = False
    embedding_norm_bias: bool = True
    activation: str = "gelu"
    glu: bool = False
    bias: bool = True
    positions: str = "none"
    max_positions: int = 512
    rope_theta: float = 10_000.0
    local_rope_theta: float | None = None
    window: int | None = None
    global_every: int = 3
    attention: str = "softmax"
    num_features: int = 64
    num_landmarks: int = 64
    conv_kernel: int = 0
    dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    embedding_std: float = 0.02
    pooling: str = "first_token"
    pooled_norm: bool = True
    pooler: bool = False
    embedding_pooling: str | None = None
    embedding_layer: int | None = None
    field_transform: str = "own"


@dataclass
class LossConfig:
    """One term of the loss.

    Attributes:
        name: `mse`, `cross_entropy` or `is_zero_bce`.
        field_name: the field it is about; or
        label_column_name: the label column it is about.
        weight: factor of the term.
        wced_target: null for masked tokens; `all_genes` decodes the whole cell from its pooled
            row.
        ignore_zero: for `mse` of the whole cell: only expressed genes count.
        class_weight_exponent: for `cross_entropy` of a label: classes weigh 1 / n ** exponent.
        label_smoothing: for `cross_entropy` of a label.
    """

    name: str = MISSING
    field_name: str | None = None
    label_column_name: str | None = None
    weight: float = 1.0
    wced_target: str | None = None
    ignore_zero: bool = False
    class_weight_exponent: float = 0.0
    label_smoothing: float = 0.0


@dataclass
class LoraConfig:
    """Adapters (LoRA): small matrices that are trained in place of the weights beside them.

    Attributes:
        r: rank; 0 for no adapters.
        alpha: their output is multiplied by alpha / r.
        dropout: before them.
        use_dora: also train the length of each column (DoRA): slower, often a little better.
        target_modules: which linear layers have one: last names (`qkv`, `out`, `up`, `down` of
            every block) or whole ones (`encoder.layers.3.qkv`).
    """

    r: int = 0
    alpha: float = 32.0
    dropout: float = 0.05
    use_dora: bool = False
    target_modules: list[str] = field(default_factory=lambda: ["qkv", "out", "up", "down"])


@dataclass
class TrainerConfig:
    r"""How the model is optimised.

    Attributes:
        losses: the terms, summed with their weights.
        max_epochs: passes over the training cells.
        learning_rate: peak rate; of the label heads where `encoder_learning_rate` is given.
        encoder_learning_rate: peak rate of everything but the label heads; null for the same.
        schedule: `one_cycle` or `constant`.
        warmup_fraction: share of the steps in which `one_cycle` rises.
        weight_decay: of matrices and tables (AdamW).
        gradient_clip_norm: 0 for none.
        accumulate_grad_batches: micro-batches per optimiser step.
        accelerator: `auto`, `cpu`, `cuda`, `mps`.
        precision: of Lightning, such as `32-true` or `bf16-mixed`.
        freeze: regular expressions; parameters whose names match are not trained, such as
            `embedding\.` or `encoder\.layers\.[0-3]\.`.
        lora: adapters in place of the encoder's weights; needs the extra `lora`.
    """

    losses: list[LossConfig] = field(default_factory=list)
    max_epochs: int = 10
    learning_rate: float = 1e-3
    encoder_learning_rate: float | None = None
    schedule: str = "one_cycle"
    warmup_fraction: float = 0.1
    weight_decay: float = 0.05
    gradient_clip_norm: float = 1.0
    accumulate_grad_batches: int = 1
    accelerator: str = "cpu"
    precision: str = "32-true"
    freeze: list[str] = field(default_factory=list)
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class EmbeddingConfig:
    """What `predict` writes as embeddings.

    Attributes:
        pooling: how tokens become the row of a cell: `mean`, `first_token`, `mean_after_first`,
            `pooler`, `token:K`, `pooled` (what label heads read), or several joined by `+`; null
            for what the bundle says.
        layer: whose hidden states are read: 0 for the inputs, 1 for the first block, -1 for the
            last; null for what the bundle says, or for the final hidden states where a pooling is
            given.
        level: `cell`, or `gene` for the mean hidden state of each gene over the cells.
        per_cell: at the level of genes, also write a row for each gene of each cell.
    """

    pooling: str | None = None
    layer: int | None = None
    level: str = "cell"
    per_cell: bool = False


@dataclass
class OutputConfig:
    """In which form `predict` writes.

    Attributes:
        formats: any of `parquet` and `csv` (a file for each table), and `h5ad` (`cells.h5ad`: the
            input with the embedding in obsm and the predictions in obs).
        key_added: key of obsm in `cells.h5ad`.
    """

    formats: list[str] = field(default_factory=lambda: ["parquet"])
    key_added: str = "X_omics"


@dataclass
class RunConfig:
    """A whole run.

    Attributes:
        working_dir: the run folder that is written.
        input_file: a store folder or `.h5ad`; the default of `data_module.path`.
        checkpoint: a bundle folder or `hf:owner/name` to start from.
        overwrite: replace the results of an earlier run in `working_dir`.
        seed: of weights, order, dropout and masks.
        task: `train`, `test`, `predict`; a list runs in order, handing the new bundle on.
        fields: inputs of a new model.
        label_columns: obs columns to classify.
        data_module: data.
        tokenizer: of a new model.
        model: of a new model.
        trainer: optimisation.
        embedding: what `predict` writes as embeddings.
        output: in which form.
    """

    working_dir: str = MISSING
    input_file: str | None = None
    checkpoint: str | None = None
    overwrite: bool = False
    seed: int = 0
    task: list[str] = field(default_factory=lambda: ["train"])
    fields: list[FieldConfig] = field(default_factory=list)
    label_columns: list[str] = field(default_factory=list)
    data_module: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelSection = field(default_factory=ModelSection)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
