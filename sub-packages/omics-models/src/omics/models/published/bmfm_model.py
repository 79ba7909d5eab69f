"""The configuration of a BiomedSciAI checkpoint as a `ModelConfig`.

- Multi-field BERT (`scbert`), ModernBERT (`scmodernbert`) and the bidirectional LLaMA (`scllama`)
  of biomed-multi-omic. Sizes that the weights show are taken from the weights.
- What a setting would compute and we do not is refused, by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omics.data.errors import InputDataError, nearest
from omics.models.model_config import (
    FieldHeadConfig,
    FieldInput,
    LabelHeadConfig,
    ModelConfig,
    WcedConfig,
)

if TYPE_CHECKING:
    from omics.models.published.bmfm_layouts import BmfmLayout
    from omics.models.published.checkpoint_settings import Settings
    from omics.models.published.weight_rows import Weights

ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_FIELD_MODES = ("token_scores", "regression", "is_zero")
_NOT_PUBLISHED = "no published checkpoint needs it"


class BmfmModelReader:
    """Reads the configuration and the sizes of one checkpoint.

    Args:
        settings: its configuration.
        weights: its tensors.
        layout: their names.
    """

    def __init__(self, settings: Settings, weights: Weights, layout: BmfmLayout) -> None:
        self.settings = settings
        self.weights = weights
        self.layout = layout
        self.names = set(weights.names)
        self.model_type = settings.text("model_type")
        inner = "encoder." if self.model_type == "scllama" else ""
        self.embeddings = f"{layout.body}{inner}embeddings."
        self.has_pooler = f"{layout.body}pooler.dense.weight" in self.names

    def config(self) -> ModelConfig:
        """Return the configuration of the model.

        Raises:
            InputDataError: a setting is missing, or asks for what is not computed.
        """
        settings = self.settings
        settings.require("position_embedding_type", None, "positions are added to the inputs")
        layers = settings.whole("num_hidden_layers")
        if layers > len(self.names):
            raise InputDataError(
                f"{settings.where} has {layers:,} layers, and {self.weights.where} has "
                f"{len(self.names)} tensors. Configuration and weights do not belong together."
            )
        blocks = {"scbert": self._bert, "scmodernbert": self._modern, "scllama": self._llama}
        by_type = blocks[self.model_type]()
        fields = settings.parts("fields")
        common: dict[str, Any] = {
            "fields": tuple(
                self._field(each) for each in fields if each.flag("is_input", default=True)
            ),
            "hidden_size": settings.whole("hidden_size"),
            "num_layers": layers,
            "num_heads": settings.whole("num_attention_heads"),
            "embedding_norm": True,
            "pooler": self.has_pooler,
            "pooling": self._pooling(),
            "pooled_norm": False,
            "embedding_pooling": "first_token",
            "embedding_layer": layers,
            "field_transform": "shared",
            "field_heads": tuple(head for each in fields for head in self._field_heads(each)),
            "wced": tuple(head for each in fields for head in self._wced(each)),
            "labels": self._labels(),
        }
        return ModelConfig(**common, **by_type)

    def _bert(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "norm": "post",
            "final_norm": False,
            "intermediate_size": settings.whole("intermediate_size"),
            "activation": self._activation("hidden_act"),
            "dropout": settings.number("hidden_dropout_prob", 0.1),
            "layer_norm_eps": settings.number("layer_norm_eps", 1e-12),
        }

    def _modern(self) -> dict[str, Any]:
        settings = self.settings
        bias = settings.flag("attention_bias", default=False)
        settings.require("mlp_bias", bias, "attention and feed-forward differ in having biases")
        head = "classifier_activation" if self.layout.name == "classifier" else "hidden_act"
        return {
            "norm": "pre",
            "first_norm": False,
            "norm_bias": settings.flag("norm_bias", default=False),
            "glu": True,
            "bias": bias,
            "intermediate_size": settings.whole("intermediate_size"),
            "activation": self._activation("hidden_activation"),
            "head_activation": self._activation(head),
            "positions": "rope",
            # One base in every layer: the reference never passes its local one on.
            "rope_theta": settings.number("global_rope_theta", 160_000.0),
            "window": settings.whole("local_attention", 128) // 2,
            "global_every": settings.whole("global_attn_every_n_layers", 3),
            "dropout": settings.number("attention_dropout", 0.0),
            "layer_norm_eps": settings.number("norm_eps", 1e-5),
        }

    def _llama(self) -> dict[str, Any]:
        settings = self.settings
        settings.require("num_memory_tokens", 0, "memory tokens stand behind every cell")
        first = f"{self.layout.body}encoder.blocks.0.mlp.c_fc1.weight"
        return {
            "norm": "pre",
            "norm_kind": "rms",
            "first_norm": False,
            "final_norm": False,
            "glu": True,
            "bias": False,
            "intermediate_size": self._shape(first)[0],
            "activation": "silu",
            "head_activation": self._activation("hidden_act"),
            "dropout": settings.number("hidden_dropout_prob", 0.0),
            "layer_norm_eps": settings.number("layer_norm_eps", 1e-12),
            "block_norm_eps": 1e-5,
        }

    def _pooling(self) -> str:
        """Return what label decoders read."""
        of_mean = self.settings.text("classifier_pooling", "cls") == "mean"
        if self.model_type == "scmodernbert" and self.layout.name == "multitask":
            return "mean" if of_mean else "first_token"  # Its pooler has weights and no use.
        if not self.has_pooler or self.layout.name == "mlm":
            return "first_token"
        return "pooler_of_mean" if of_mean else "pooler"

    def _field(self, field: Settings) -> FieldInput:
        name = field.text("field_name")
        field.require("datastore_config", None, "values come from a store of their own")
        strategy = field.text("tokenization_strategy", "tokenize")
        key = f"{self.embeddings}{name}_embeddings"
        if strategy == "continuous_value_encoder":
            return self._value_field(field, name, key)
        if strategy != "tokenize":
            raise InputDataError(
                f"{field.where} has tokenization_strategy = {strategy!r}; tokenize and "
                "continuous_value_encoder are known."
            )
        num_ids, width = self._shape(f"{key}.weight")
        field.require("vocab_size", num_ids, f"its table has {num_ids} rows and should have others")
        projected = f"{key}_projection.weight" in self.names
        return FieldInput(
            name=name,
            encoder="embedding",
            vocabulary_size=num_ids,
            vector_size=width if projected else None,
        )

    def _value_field(self, field: Settings, name: str, key: str) -> FieldInput:
        old = field.part("continuous_value_encoder_kwargs")
        options = field.part("encoder_kwargs") if field.optional("encoder_kwargs") else old
        kind = options.text("kind", "mlp_with_special_token_embedding")
        zero_row = options.flag("zero_as_special_token", default=True)
        if kind == "mlp_with_special_token_embedding":
            inner, _ = self._shape(f"{key}.dense_1.weight")
            chosen: dict[str, Any] = {"encoder": "leaky_mlp", "inner_size": inner}
        elif kind == "scale_adapt":
            options.require("shift", 0, "values are shifted before their waves are made")
            for sigmoids in ("sigmoid_centers", "sigmoid_orientations"):
                options.require(sigmoids, [], "sigmoids stand beside the waves")
            chosen = {
                "encoder": "sinusoid",
                "num_frequencies": self._shape(f"{key}.basis")[0],
                "frequency_scale": options.number("basis_scale", 1.5),
                "learned_frequencies": options.flag("trainable", default=True),
            }
        else:
            raise InputDataError(
                f"{options.where} has kind = {kind!r}, a value encoder that this version does not "
                f"compute ({_NOT_PUBLISHED}).{nearest(kind, ['scale_adapt', 'mlp_with_special_token_embedding'])}"
            )
        rows = self._shape(f"{key}.special_token_embeddings.weight")[0]
        return FieldInput(
            name=name, vocabulary_size=rows - int(zero_row), zero_row=zero_row, **chosen
        )

    def _modes(self, field: Settings) -> dict[str, Any]:
        given = field.optional("decode_modes")
        if given is None:
            given = field.optional("masked_output_modes")
        if isinstance(given, list):
            given = {str(mode): {} for mode in given}
        if given is not None and not isinstance(given, dict):
            raise InputDataError(f"{field.where} has decode_modes that are no list and no table.")
        if not self.layout.fields:
            return {}
        return given or {}

    def _field_heads(self, field: Settings) -> list[FieldHeadConfig]:
        name = field.text("field_name")
        modes = [mode for mode in self._modes(field) if mode != "wced"]
        for mode in modes:
            if mode not in _FIELD_MODES:
                raise InputDataError(
                    f"{field.where} is decoded by {mode!r}, which this version does not compute "
                    f"({_NOT_PUBLISHED}).{nearest(mode, [*_FIELD_MODES, 'wced'])}"
                )
        return [FieldHeadConfig(field=name, kind=mode) for mode in modes]

    def _wced(self, field: Settings) -> list[WcedConfig]:
        if "wced" not in (modes := self._modes(field)):
            return []
        from omics.models.published.checkpoint_settings import Settings

        options = Settings(modes["wced"] or {}, f"{field.where}: decode_modes: wced")
        first = self.settings.parts("fields")[0].text("field_name")
        options.require("vocab_field", first, "a field other than the first names the genes")
        outputs = options.optional("logit_outputs")
        if not isinstance(outputs, list) or not all(isinstance(each, str) for each in outputs):
            raise InputDataError(f"{options.where} has no list of logit_outputs.")
        return [
            WcedConfig(field=field.text("field_name"), outputs=tuple(outputs), reads="first_token")
        ]

    def _labels(self) -> tuple[LabelHeadConfig, ...]:
        columns = {
            each.text("label_column_name"): each for each in self.settings.parts("label_columns")
        }
        found = self.layout.label_names(self.weights.names)
        ordered = [name for name in columns if name in found]
        return tuple(
            self._label(name, columns.get(name))
            for name in [*ordered, *(n for n in found if n not in columns)]
        )

    def _label(self, name: str, column: Settings | None) -> LabelHeadConfig:
        prefix = self.layout.label_prefix(name)
        reversed_ = f"{prefix}1.weight" in self.names
        strength = column.optional("gradient_reversal_coefficient") if column else None
        token = column.optional("decode_from") if column else None
        if token is not None and (
            isinstance(token, bool) or not isinstance(token, int) or token < 0
        ):
            raise InputDataError(f"The label {name!r} has decode_from = {token!r}, not a position.")
        deep = f"{prefix}out_proj.weight" in self.names
        last = "out_proj.weight" if deep else ("1.weight" if reversed_ else "weight")
        modern = self.layout.name == "classifier" and "head.dense.weight" in self.names
        return LabelHeadConfig(
            name=name,
            num_classes=self._shape(f"{prefix}{last}")[0],
            depth=2 if deep or modern else 1,
            norm=not deep,
            token=token,
            gradient_reversal=float(strength or 1.0) if reversed_ else 0.0,
        )

    def _activation(self, key: str) -> str:
        name = self.settings.text(key, "gelu")
        if name not in ACTIVATION_NAMES:
            raise InputDataError(
                f"{self.settings.where} has {key} = {name!r}, which this version does not "
                f"compute.{nearest(name, sorted(ACTIVATION_NAMES))}"
            )
        return ACTIVATION_NAMES[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self.names:
            raise InputDataError(
                f"{self.weights.where} lacks {name}, which its configuration asks for. Check that "
                "configuration and weights belong together."
            )
        shape = self.weights.shape(name)
        return shape if len(shape) > 1 else (*shape, 1)
