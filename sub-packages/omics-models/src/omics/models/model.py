"""`OmicsModel`: input embedding, flat encoder, pooling and heads; the one class trainers see.

- Reads a `TokenBatch` of torch tensors; no padding, no attention mask.
- A Hugging Face `PreTrainedModel`: `save_pretrained`, `from_pretrained`, `AutoModel`.
- No buffers: everything is a parameter or computed from the batch, so loading cannot lose it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from omics.models.encoder import Encoder
from omics.models.favor_attention import FavorAttention
from omics.models.heads import FieldHead, FieldTransform, LabelHead, MvcHead, WcedHead
from omics.models.input_embedding import InputEmbedding
from omics.models.model_config import ModelConfig, OmicsConfig
from omics.models.outputs import ModelOutput
from omics.models.pooling import Pooler, first_token, pool, token
from omics.models.ragged_layout import AskedTokens, RaggedLayout
from omics.models.value_embedding import SinusoidEmbedding

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from omics.tokenizers import TokenBatch

# How the names of parameters begin that decode hidden states or rows of cells.
HEADS = ("field_transform.", "field_heads.", "wced_heads.", "label_heads.")


class OmicsModel(PreTrainedModel):  # type: ignore[misc]
    """An encoder on flat tokens with its heads.

    Attributes:
        model_config: the typed configuration.
    """

    config_class = OmicsConfig
    base_model_prefix = "omics"
    main_input_name = "batch"

    def __init__(self, config: OmicsConfig, *, backend: str = "auto") -> None:
        super().__init__(config)
        self.model_config = config.checked
        checked = self.model_config
        self.embedding = InputEmbedding(checked)
        self.encoder = Encoder(checked, backend)
        self.pooler = Pooler(checked.hidden_size) if checked.pooler else None
        self.pooled_norm: nn.Module = nn.Identity()
        if checked.pooled_norm:
            self.pooled_norm = nn.LayerNorm(checked.pooled_size, eps=checked.layer_norm_eps)
        self.field_transform: nn.Module = nn.Identity()
        if checked.field_transform != "own" and (checked.field_heads or checked.wced):
            self.field_transform = FieldTransform(checked)
        self.field_heads = nn.ModuleDict(
            {
                head.name: MvcHead(checked) if head.reads_pooled else FieldHead(checked, head)
                for head in checked.field_heads
            }
        )
        self.tied = {head.name: head.field for head in checked.field_heads if head.tied}
        self.wced_heads = nn.ModuleDict({w.field: WcedHead(checked, w) for w in checked.wced})
        self.wced_reads = {w.field: w.reads for w in checked.wced}
        # A label column may hold a dot, which a module name must not; order keys them instead.
        self.label_heads = nn.ModuleList(LabelHead(checked, label) for label in checked.labels)
        self.post_init()

    @classmethod
    def build(cls, config: ModelConfig, *, seed: int, backend: str = "auto") -> OmicsModel:
        """Return a new model with seeded random weights; the global generator is left alone.

        Args:
            config: sizes and switches.
            seed: of the weights.
            backend: of softmax attention, a key of `attention.BACKENDS`.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return cls(OmicsConfig(model=config.to_dict()), backend=backend)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise one module: called for new models and for keys a checkpoint lacks."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.model_config.embedding_std)
        elif isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm | nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, SinusoidEmbedding):
            module.reset_frequencies()
        elif isinstance(module, FavorAttention):
            module.redraw()
        elif isinstance(module, FieldHead) and module.bias is not None:
            nn.init.zeros_(module.bias)
        elif isinstance(module, LabelHead):
            nn.init.zeros_(module.center)
            nn.init.ones_(module.scale)

    def forward(
        self,
        batch: TokenBatch,
        layout: RaggedLayout | None = None,
        *,
        asked: AskedTokens | None = None,
        field_tokens: Mapping[str, Tensor] | None = None,
        scores_later: bool = False,
        wced: Collection[str] = (),
        wced_genes: Tensor | None = None,
        layers: Collection[int] = (),
        inputs: Tensor | None = None,
    ) -> ModelOutput:
        """Return hidden states, pooled rows and the outputs that were asked for.

        Args:
            batch: torch tensors on the model's device.
            layout: of the batch, made before it left the host; None makes it here. Its filler cells
                have hidden states and nothing else.
            asked: the only tokens that have final hidden states, in their order; None for all. What
                heads on cells read must be among them, see `ModelConfig.leading_tokens`.
            field_tokens: `{head name: int64 [K]}`, flat positions each field head reads.
            scores_later: leave the scores of token ids to the caller, in `scored` in place of
                `fields`.
            wced: fields whose whole-cell decoder is run.
            wced_genes: int64, token ids that the decoders are run for; None for all.
            layers: layers whose hidden states are kept: 0 for the inputs, k for the k-th block.
            inputs: [T, d], taken in place of the sum of the fields' embeddings, so that a gradient
                can be asked for at points between two inputs; None for the sum itself.

        Returns:
            The output; label logits are always there.
        """
        if layout is None:
            layout = RaggedLayout.from_offsets(batch.offsets, self.device)
        if inputs is None:
            entering = self.embedding(batch.fields, layout)
        else:
            entering = self.embedding.finish(inputs, layout)
        hidden, kept = self.encoder(entering, layout, kept=layers, asked=asked)
        cells = slice(layout.num_cells)
        final = layout if asked is None else asked.layout
        pooled = self.pool(hidden, final)[cells]
        output = ModelOutput(hidden=hidden, pooled=pooled, layers=kept)
        for name, tokens in (field_tokens or {}).items():
            head: Any = self.field_heads[name]
            if isinstance(head, MvcHead):
                genes = self.model_config.gene_field
                vectors = self.embedding.fields[genes](batch.fields[genes][tokens])
                output.fields[name] = head(vectors, pooled[layout.cell[tokens]])
                continue
            table = self.embedding.fields[self.tied[name]].weight if name in self.tied else None
            rows = self.field_transform(hidden[tokens if asked is None else asked.rows(tokens)])
            if scores_later and head.scores_in_parts:
                output.scored[name] = head.score_rows(rows, table)
            else:
                output.fields[name] = head(rows, table)
        for name in wced:
            rows = pooled
            if self.wced_reads[name] == "first_token":
                rows = self.field_transform(first_token(hidden, final)[cells])
            output.wced[name] = self.wced_heads[name](rows, wced_genes)
        for label, head in zip(self.model_config.labels, self.label_heads, strict=True):
            rows = pooled if label.token is None else token(hidden, final, label.token)[cells]
            output.labels[label.name] = head(rows)
        return output

    def pool(self, hidden_Td: Tensor, layout: RaggedLayout, pooling: str | None = None) -> Tensor:
        """Return one row per cell, [n, parts * d].

        Args:
            hidden_Td: hidden states.
            layout: of the batch.
            pooling: a pooling of `ModelConfig`; None for that of the model, with its norm.
        """
        if pooling is not None:
            return pool(pooling, hidden_Td, layout, self.pooler)
        rows: Tensor = self.pooled_norm(
            pool(self.model_config.pooling, hidden_Td, layout, self.pooler)
        )
        return rows

    def load_matching(self, state: Mapping[str, Tensor]) -> list[str]:
        """Copy weights of the same name and shape from another model's state.

        Heads that one side lacks are left as they are; everything else must be there.

        Args:
            state: of the checkpoint a fine-tuning starts from.

        Returns:
            The names of parameters that kept their initial values, all of them of heads.

        Raises:
            ValueError: the encoder or the embedding of the checkpoint does not fit.
        """
        own = self.state_dict()
        fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
        kept = [name for name in own if name not in fitting]
        wrong = [name for name in kept if not name.startswith(HEADS)]
        if wrong:
            raise ValueError(f"The checkpoint does not fit this model: {wrong[0]} differs.")
        self.load_state_dict(fitting, strict=False)
        return kept


def _register() -> None:
    AutoConfig.register(OmicsConfig.model_type, OmicsConfig, exist_ok=True)
    AutoModel.register(OmicsConfig, OmicsModel, exist_ok=True)


_register()
