"""`RunConfig`: the typed configuration of a run; Hydra refuses every key that is not here.

- The sections keep the names that users of bmfm know.
- Users name things (`mse`, `one_cycle`); nothing in a configuration is a Python path.
- The attribute docstrings are the reference of the configuration page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

TASKS = ("train", "test", "predict", "interpret")


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
        change_ratio: share of its values that are asked about; null for that of `data_module`.
        mask_ratio: share of those that are hidden; null for that of `data_module`.
        switch_ratio: share of those that are switched; null for that of `data_module`.
        nonzero_ratio: share of those asked about whose value is not 0; null for that of `data_module`.
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
    change_ratio: float | None = None
    mask_ratio: float | None = None
    switch_ratio: float | None = None
    nonzero_ratio: float | None = None


@dataclass
class AdaptiveMaskingConfig:
    """Genes that validation finds hard are hidden more often.

    Attributes:
        enabled: whether they are.
        temperature: null for weights that rise in a straight line with the error; a number for
            exp(weight / temperature): the lower, the more the hardest genes prevail.
        num_bins: of the errors.
    """

    enabled: bool = False
    temperature: float | None = None
    num_bins: int = 100


@dataclass
class PairingConfig:
    """Perturbed cells, each shown as a control cell that was perturbed (sequence labelling).

    Attributes:
        column: of obs, the perturbation of each cell: genes, or the name of the controls; null for
            no pairs.
        control: the value of that column that control cells have.
        separator: between the genes of a combined perturbation.
        group_column: of obs: the control comes from the same group, such as the same batch; null
            for any.
    """

    column: str | None = None
    control: str = "control"
    separator: str = "+"
    group_column: str | None = None


@dataclass
class DataConfig:
    """What is read and what is done to it.

    Attributes:
        dataset: a published set of cells, by its name in `omics-data datasets`; read from `path`, or
            from where `OMICS_DATA_<NAME>` says.
        path: a store folder (`omics-data convert`), or an `.h5ad` with raw counts.
        split: the table of `omics-data split`; null trains on all cells without validation.
        train_split: name of the training cells in that table.
        validation_split: name of the validation cells.
        predict_split: the cells that `test`, `predict` and `interpret` read; null means `test`
            (test) or all.
        batch_size: cells per micro-batch of a training; null takes 16, or what `batch_tokens` says.
            Of `test` and `predict`, the most cells at once; null sets no limit but that of the
            tokens.
        batch_tokens: tokens per micro-batch of a training, in place of `batch_size`: steps that all
            cost the same, and one shape for compiled code. Cells are moved a little within the
            order to fill it to at least 98 %. Of `test`, `predict` and `interpret`: the most tokens
            at once (a longer cell is run alone); null takes what suits the task and the device. No
            number of `test` and `predict` depends on it.
        order: of the training cells: `random`, `block` (for data larger than memory), `auto`,
            `sequential`, `class_balanced:COLUMN` or `weighted:COLUMN`, with a column of obs.
        transforms: preprocessing, from counts to model input, in order; null takes that of the
            checkpoint, which is where it belongs.
        augmentations: random steps of training only (`sample_genes`), run right after the
            normalisation and before anything that cuts.
        change_ratio: share of a masked field's tokens that are asked about.
        mask_ratio: share of those that show the mask token.
        switch_ratio: share of those that show another token of the vocabulary, or another value of
            the cell; the rest is shown as it is.
        nonzero_ratio: ask about exactly floor(change_ratio * tokens) values of a cell, of which this
            share is not 0 and the rest is 0, as far as there are so many; null asks about any.
        comask_across_fields: hide the same tokens in all masked fields; otherwise each token in one
            at most.
        pattern_weights: how likely genes are hidden beside others, as pairs of a regular expression
            that their symbol or id holds and a weight, such as `["^MT-", 0]`.
        adaptive_masking: hide genes with a large error more often.
        pairing: perturbed cells with their controls.
        prefetch: batches prepared ahead by a background thread; 0 for none.
    """

    dataset: str | None = None
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
    mask_ratio: float = 1.0
    switch_ratio: float = 0.0
    nonzero_ratio: float | None = None
    comask_across_fields: bool = False
    pattern_weights: list[Any] = field(default_factory=list)
    adaptive_masking: AdaptiveMaskingConfig = field(default_factory=AdaptiveMaskingConfig)
    pairing: PairingConfig = field(default_factory=PairingConfig)
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
        perturbation: whether tokens say if their gene is perturbed (the field `perturbation`).
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
    perturbation: bool = False
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
        head_activation: of shared transforms and deeper label heads; null for the same.
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
        block_norm_eps: of those in the blocks and the final one; null for the same.
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
    head_activation: str | None = None
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
    block_norm_eps: float | None = None
    embedding_std: float = 0.02
    pooling: str = "first_token"
    pooled_norm: bool = True
    pooler: bool = False
    embedding_pooling: str | None = None
    embedding_layer: int | None = None
    field_transform: str = "own"


@dataclass
class LossConfig:
    """One term of the loss. A key that the loss does not use must be left out.

    Attributes:
        name: of a field `mse`, `mae`, `poisson`, `negative_binomial`, `is_zero_bce`,
            `is_zero_focal`, `cross_entropy`, `focal` or `token_value`; of a label `cross_entropy`,
            `focal`, `bce_with_logits`, `mse`, `mae` or `hce`.
        field_name: the field it is about; or
        label_column_name: the label column it is about.
        weight: factor of the term.
        wced_target: null for tokens; `all_genes`, `input_genes` or `non_input_genes` decode these
            genes of the whole cell from one row.
        mvc: predict values of tokens from the gene and the pooled row of its cell alone.
        tied: of scores of tokens: the input table of the field decodes.
        ignore_zero: targets that are 0 do not count.
        link_function: `identity`, `exp` or `softplus`, from the output to the value.
        shrinkage: adds so much of the squared (`mse`) or absolute (`mae`) value to each error.
        gamma: of focal losses; 2 by default.
        label_smoothing: share of a class target that is spread over all classes.
        class_weight_exponent: of a label: classes weigh 1 / n ** exponent.
        metrics: what validation measures; null for the usual ones of the loss.
        group: terms of a group are also reported together, as `<group>_loss`.
    """

    name: str = MISSING
    field_name: str | None = None
    label_column_name: str | None = None
    weight: float = 1.0
    wced_target: str | None = None
    mvc: bool | None = None
    tied: bool | None = None
    ignore_zero: bool | None = None
    link_function: str | None = None
    shrinkage: float | None = None
    gamma: float | None = None
    label_smoothing: float | None = None
    class_weight_exponent: float | None = None
    metrics: list[str] | None = None
    group: str | None = None


@dataclass
class StageConfig:
    """One stage of a curriculum.

    Attributes:
        max_epochs: passes that it lasts.
        batch_size: cells per micro-batch; null for that of `data_module`.
        max_length: tokens of a cell at most, special ones included; null for no further limit.
    """

    max_epochs: int = MISSING
    batch_size: int | None = None
    max_length: int | None = None


@dataclass
class EarlyStoppingConfig:
    """When a run ends early.

    Attributes:
        monitor: a term of the history of validation, such as `loss` or `cell_type_f1`.
        patience: validations without an improvement after which the run ends; null for never.
        min_delta: a smaller change is no improvement.
    """

    monitor: str = "loss"
    patience: int | None = None
    min_delta: float = 0.0


@dataclass
class CheckpointConfig:
    """What a run saves, so that it can go on after it was stopped.

    Attributes:
        every_steps: optimiser steps between two checkpoints; null for one at the end of each epoch.
        keep: how many of the newest stay.
        best: a term of the history of validation; the weights of its best value are kept as well.
            Null takes `loss` where there is validation.
    """

    every_steps: int | None = None
    keep: int = 2
    best: str | None = None


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
        max_steps: optimiser steps after which the run ends; null for no limit.
        learning_rate: peak rate; of the label heads where `encoder_learning_rate` is given.
        encoder_learning_rate: peak rate of everything but the label heads; null for the same.
        layer_decay: the rate of a block is so much that of the block above it; the top block has it
            once, the input embedding once more than the lowest block.
        schedule: `one_cycle`, `constant`, `linear`, `cosine` or `wsd`.
        warmup_steps: steps in which the rate rises; or
        warmup_fraction: their share of all steps; 0.1 by default, 0 with `constant`.
        decay_fraction: of `wsd`: share of the steps in which the rate falls; 0.1 by default.
        last_factor: of `linear`, `cosine` and `wsd`: share of the peak rate at the end; 0 by
            default.
        optimizer: `adamw`; or `muon` for the matrices of the blocks, with AdamW for the rest and the
            same rate for both.
        muon_momentum: of `muon`.
        weight_decay: of matrices and tables.
        betas: of AdamW.
        eps: of AdamW.
        gradient_clip_norm: 0 for none.
        accumulate_grad_batches: micro-batches per optimiser step.
        val_check_interval: share of an epoch (up to 1) or micro-batches after which validation
            runs, at the end of an optimiser step.
        curriculum: stages that come first; when they are over, `data_module` says what follows.
        early_stopping: when the run ends before its time.
        checkpoint: what is saved to go on from.
        on_nan: what happens when a gradient is NaN or infinite: `stop`; `skip`, where the step
            changes nothing; or `roll_back`, where the run goes back to the newest checkpoint and
            leaves the step out.
        accelerator: `auto`, `cpu`, `cuda`, `mps`.
        devices: processes on this machine that train together, each on a device (or on a share of
            the cores). A micro-batch is that of one process.
        num_nodes: machines; above 1 `torchrun` starts the processes.
        strategy: of several processes: `ddp`, where each has the whole model, or `fsdp`, where each
            has a share of its weights, gradients and moments.
        precision: of Lightning, such as `32-true` or `bf16-mixed`.
        freeze: regular expressions; parameters whose names match are not trained, such as
            `embedding\.` or `encoder\.layers\.[0-3]\.`.
        lora: adapters in place of the encoder's weights; needs the extra `lora`.
        attention_backend: how softmax attention is computed: `auto` (what is fastest on the device),
            `loop`, `padded`, `varlen`, `flex` or `dense`; nothing of it is kept in the bundle.
        recompute_activations: keep only the input of every block, and compute the rest again in the
            backward pass: a third slower, for models that do not fit otherwise.
        compile: make machine code of every block (`torch.compile`), for batches of one shape: needs
            `data_module.batch_tokens`. Null does on CUDA where that is given.
        tf32_mode: `highest`, `high` or `medium`, the precision of float32 products on CUDA; null
            leaves torch as it is.
        trackers: who is told the numbers of the run beside its CSV files: any of `tensorboard`, and of
            `clearml`, `wandb` and `mlflow`, which are extras of the same names.
        project: under which these three list the run.
    """

    losses: list[LossConfig] = field(default_factory=list)
    max_epochs: int = 10
    max_steps: int | None = None
    learning_rate: float = 1e-3
    encoder_learning_rate: float | None = None
    layer_decay: float = 1.0
    schedule: str = "one_cycle"
    warmup_steps: int | None = None
    warmup_fraction: float | None = None
    decay_fraction: float | None = None
    last_factor: float | None = None
    optimizer: str = "adamw"
    muon_momentum: float = 0.95
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    gradient_clip_norm: float = 1.0
    accumulate_grad_batches: int = 1
    val_check_interval: float = 1.0
    curriculum: list[StageConfig] = field(default_factory=list)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    on_nan: str = "stop"
    accelerator: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "ddp"
    precision: str = "32-true"
    freeze: list[str] = field(default_factory=list)
    lora: LoraConfig = field(default_factory=LoraConfig)
    attention_backend: str = "auto"
    recompute_activations: bool = False
    compile: bool | None = None
    tf32_mode: str | None = None
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    project: str = "omics"


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
class ScoringConfig:
    """How `test` scores; the model runs once, and its answers are resampled.

    Attributes:
        ci_method: `wilson` or `clopper_pearson` (binomial, of the accuracy), `bootstrap` (quantiles)
            or `bootstrap_t`; null for Wilson's and, of the macro-F1 and of hidden values, the
            bootstrap.
        num_bootstrap_runs: how often the test cells are drawn.
        high_bin: of hidden bins: those above it are scored as highly expressed, too.
    """

    ci_method: str | None = None
    num_bootstrap_runs: int = 2000
    high_bin: int = 8


@dataclass
class AttributionConfig:
    """What `interpret` asks of a label head; the same as `omics-eval attribute`.

    Attributes:
        label: whose head is explained; null for the only one.
        classes: those that are explained; null for all.
        targets: `predicted` explains each cell for the class that the model gives it, `every` for
            every class.
        method: `integrated_gradients` (needs the extra `omics-eval[attribution]`) or `rollout`.
        baseline: what a gene is compared with: `mask`, a token that says nothing, or `zero`, itself
            at value 0.
        steps: points on the path of integrated gradients.
        num_top: genes listed for each class, and hidden in the checks.
        max_cells: cells drawn at random from those of the run.
        checks: whether the scores are put to the test.
        bundles: further bundles (other seeds), whose top genes are compared.
        format: of the tables, `parquet` or `csv`.
    """

    label: str | None = None
    classes: list[str] | None = None
    targets: str = "predicted"
    method: str = "integrated_gradients"
    baseline: str = "mask"
    steps: int = 32
    num_top: int = 20
    max_cells: int = 1000
    checks: bool = True
    bundles: list[str] = field(default_factory=list)
    format: str = "parquet"


@dataclass
class RunConfig:
    """A whole run.

    Attributes:
        working_dir: the run folder that is written.
        input_file: a store folder or `.h5ad`; the default of `data_module.path`.
        checkpoint: a bundle folder or `hf:owner/name` to start from.
        overwrite: replace the results of an earlier run in `working_dir`.
        resume: `true` to go on with the run in `working_dir` from its newest checkpoint; `auto` to
            do so if it has one, and else to begin.
        seed: of weights, order, dropout and masks.
        task: `train`, `test`, `predict`, `interpret`; a list runs in order, handing the new bundle
            on.
        hand_on: which weights a training hands on: `last`, or `best` for those of the best
            validation.
        fields: inputs of a new model.
        label_columns: obs columns to learn: names, or mappings with the keys of
            `omics.train.label_columns.LabelColumn`.
        data_module: data.
        tokenizer: of a new model.
        model: of a new model.
        trainer: optimisation.
        embedding: what `predict` writes as embeddings.
        output: in which form.
        scoring: intervals of `test`.
        attribution: what `interpret` explains.
    """

    working_dir: str = MISSING
    input_file: str | None = None
    checkpoint: str | None = None
    overwrite: bool = False
    resume: Any = False
    seed: int = 0
    task: list[str] = field(default_factory=lambda: ["train"])
    hand_on: str = "last"
    fields: list[FieldConfig] = field(default_factory=list)
    label_columns: list[Any] = field(default_factory=list)
    data_module: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelSection = field(default_factory=ModelSection)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
