"""`ModelConfig`: every size and switch of an `OmicsModel`, as plain checked data.

- Strict: an unknown key or a value of the wrong type is a `ConfigError`, never ignored.
- `OmicsConfig` is the same data inside the Hugging Face convention (`config.json`).
- Nothing here names code: kinds select rows of tables in the modules that use them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from omics.data.errors import ConfigError, nearest

FIELD_ENCODERS = ("embedding", "mlp", "leaky_mlp", "sinusoid")
NORMS = ("pre", "post")
NORM_KINDS = ("layer", "rms")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
POSITIONS = ("none", "learned", "rope")
ATTENTION_KINDS = ("softmax", "favor", "nystrom")
POOLINGS = ("first_token", "mean", "mean_after_first", "pooler", "pooler_of_mean")
PLACE_PREFIX = "token:"
FIELD_TRANSFORMS = ("own", "shared", "shared_norm")
FIELD_HEADS = (
    "regression",
    "is_zero",
    "log_dispersion",
    "token_scores",
    "mvc_regression",
    "mvc_is_zero",
)
WCED_OUTPUTS = ("is_zero_bce", "mse", "log_dispersion")
LINK_NAMES = ("identity", "exp", "softplus")
WCED_ROWS = ("pooled", "first_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldInput:
    """How one field of the tokens enters the sum of input embeddings.

    Attributes:
        name: the field of the TokenBatch.
        encoder: `embedding` (a table of ids), or what turns a value into a vector: `mlp`,
            `leaky_mlp` or `sinusoid` (see `value_embedding`).
        vocabulary_size: ids of an `embedding` field; special tokens of any other.
        scaled_by: for a field of values: a discrete field whose second table is multiplied by the
            value and added (value-scaled gene vectors); None for none.
        vector_size: width of the table of an `embedding` field, brought to `hidden_size` by a
            projection (pre-trained gene vectors); None for a table of `hidden_size`.
        inner_size: width inside the network of `leaky_mlp`.
        zero_row: whether the value 0 has a row of its own, as special tokens have.
        num_frequencies: of `sinusoid`; each gives a sine and a cosine.
        frequency_scale: of `sinusoid`: frequencies are drawn from N(0, (2 pi scale)^2).
        learned_frequencies: whether training changes them.
    """

    name: str
    encoder: str
    vocabulary_size: int
    scaled_by: str | None = None
    vector_size: int | None = None
    inner_size: int = 128
    zero_row: bool = False
    num_frequencies: int = 48
    frequency_scale: float = 1.5
    learned_frequencies: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldHeadConfig:
    """A head on the hidden states of chosen tokens.

    Attributes:
        field: what it predicts.
        kind: `regression` (a value), `is_zero` (a logit), `log_dispersion` (of a negative binomial
            whose mean is the regression), `token_scores` (logits over the field's ids, bins
            included), or `mvc_regression`, `mvc_is_zero`: the same from the gene's input vector and
            the pooled row of the cell alone (scGPT, Cui et al. 2024).
        tied: for `token_scores`: the field's own input table decodes.
        link: for a regression: what makes its output the value (`predicted_values.LINKS`).
    """

    field: str
    kind: str
    tied: bool = False
    link: str = "identity"

    @property
    def name(self) -> str:
        """The key of its outputs."""
        return f"{self.field}_{self.kind}"

    @property
    def reads_pooled(self) -> bool:
        """Whether it reads the pooled row of the cell in place of the token's hidden state."""
        return self.kind.startswith("mvc_")


@dataclass(frozen=True, slots=True, kw_only=True)
class WcedConfig:
    """The whole-cell expression decoder: one row of a cell to values of every gene.

    Attributes:
        field: the field whose values it decodes.
        outputs: what it gives per gene, in order: `is_zero_bce` (a logit), `mse` (a value),
            `log_dispersion` (of a negative binomial with that value as its mean).
        reads: the `pooled` row, or the `first_token` behind the shared transform.
        link: what makes the output `mse` the value (`predicted_values.LINKS`).
    """

    field: str
    outputs: tuple[str, ...] = ("is_zero_bce", "mse")
    reads: str = "pooled"
    link: str = "identity"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelHeadConfig:
    """A head on one row of a cell: a classifier, or a regression with one output.

    Attributes:
        name: the label column.
        num_classes: its outputs; a label with one is a number, not a class.
        depth: 1 for a linear layer; 2 for one more before it, with activation and norm.
        norm: whether the deeper layer has that norm.
        token: reads the hidden state at this position of the cell (a CLS token of its own); None
            for the pooled row.
        gradient_reversal: above 0, gradients into the encoder are multiplied by minus this
            (Ganin and Lempitsky 2015); a schedule of the trainer may begin with less.
    """

    name: str
    num_classes: int
    depth: int = 1
    norm: bool = True
    token: int | None = None
    gradient_reversal: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of an encoder with its inputs and heads.

    Attributes:
        fields: the inputs that are summed.
        hidden_size: d.
        num_layers: blocks.
        num_heads: attention heads; divides `hidden_size`.
        intermediate_size: width of the feed-forward layer.
        norm: `pre` or `post` normalisation.
        norm_kind: `layer` or `rms`.
        norm_bias: whether layer norms of the blocks, and the final one, have a bias.
        first_norm: whether the first block of a pre-norm model normalises before attention.
        final_norm: whether the last hidden states are normalised (pre-norm blocks).
        embedding_norm: whether the sum of the inputs is normalised, and dropped out.
        embedding_norm_bias: whether that norm has a bias.
        activation: `gelu` (exact), `gelu_tanh`, `relu` or `silu`.
        head_activation: of shared transforms and deeper label heads; None for the same.
        glu: gated feed-forward: the activation of one half times the other.
        bias: biases in the linear layers of the blocks.
        positions: `none` (a set), `learned` or `rope`.
        max_positions: rows of the learned table.
        rope_theta: base of the rotary angles.
        local_rope_theta: the same in blocks with a window; None for the same base.
        window: a token sees those at most this far away in its cell; None for no limit.
        global_every: with a window, every so manieth block, the first included, has none.
        attention: `softmax`, `favor` (random features, Performer) or `nystrom` (landmarks).
        num_features: random features a head, of `favor`.
        num_landmarks: of `nystrom`; cells no longer than that have exact attention.
        conv_kernel: of `nystrom`: an odd convolution of the values is added; 0 for none.
        dropout: after attention, feed-forward and before label heads.
        layer_norm_eps: of every normalisation.
        block_norm_eps: of those in the blocks and the final one; None for the same.
        embedding_std: standard deviation of new embedding tables.
        pooling: what label heads and decoders read: any of `first_token`, `mean`,
            `mean_after_first` (without the first token), `pooler` (tanh of a linear layer of the
            first token), `pooler_of_mean`, `token:K`; several, joined by `+`, stand side by side.
        pooled_norm: whether that row is normalised once more.
        pooler: whether the weights of the pooler are there.
        embedding_pooling: what an embedding of a cell is by default; None for the pooled row.
        embedding_layer: of which block's output `embedding_pooling` is made (0: the inputs,
            `num_layers`: the last block); None for the final hidden states.
        field_transform: what stands before the decoders of fields: `own` (a linear layer and GELU
            of each head), `shared` (a linear layer, activation and norm for all of them and for
            decoders that read a first token), or `shared_norm` (activation and norm alone).
        field_heads: heads on tokens.
        wced: whole-cell decoders.
        labels: heads on one row of a cell.
    """

    fields: tuple[FieldInput, ...]
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
    field_heads: tuple[FieldHeadConfig, ...] = ()
    wced: tuple[WcedConfig, ...] = ()
    labels: tuple[LabelHeadConfig, ...] = ()

    def __post_init__(self) -> None:
        """Check values that types cannot."""
        if not self.fields:
            raise ConfigError("A model needs at least one field.")
        for name, known in _CHOICES.items():
            _check_choice(name, getattr(self, name), known)
        if self.head_activation is not None:
            _check_choice("head_activation", self.head_activation, ACTIVATIONS)
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}; it must be at least 1.")
        if self.num_layers < 0:
            raise ConfigError(f"model.num_layers is {self.num_layers}; it must not be negative.")
        if self.hidden_size % self.num_heads:
            raise ConfigError(
                f"model.hidden_size {self.hidden_size} is not a multiple of "
                f"model.num_heads {self.num_heads}."
            )
        if self.positions == "rope" and (self.hidden_size // self.num_heads) % 2:
            raise ConfigError("model.positions=rope needs an even hidden_size / num_heads.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout is {self.dropout}; it must be in [0, 1).")
        self._check_attention()
        self._check_pooling()
        self._check_fields()
        self._check_heads()

    def _check_attention(self) -> None:
        if self.window is not None and self.window < 1:
            raise ConfigError(f"model.window is {self.window}; it must be at least 1, or none.")
        if self.window is not None and self.attention != "softmax":
            raise ConfigError(f"model.attention={self.attention} knows no window; leave it out.")
        if self.conv_kernel and (self.conv_kernel % 2 == 0 or self.conv_kernel < 0):
            raise ConfigError(f"model.conv_kernel is {self.conv_kernel}; it must be odd, or 0.")

    def _check_pooling(self) -> None:
        for key in ("pooling", "embedding_pooling"):
            check_pooling(getattr(self, key) or "mean", f"model.{key}", has_pooler=self.pooler)
        layer = self.embedding_layer
        if layer is not None and not 0 <= layer <= self.num_layers:
            raise ConfigError(
                f"model.embedding_layer is {layer}; this model has the layers 0 (its inputs) to "
                f"{self.num_layers}."
            )

    def _check_fields(self) -> None:
        discrete = [field.name for field in self.fields if field.encoder == "embedding"]
        for field in self.fields:
            _check_choice(f"encoder of field {field.name}", field.encoder, FIELD_ENCODERS)
            if field.scaled_by is not None and field.scaled_by not in discrete:
                raise ConfigError(
                    f"Field {field.name!r} is scaled by {field.scaled_by!r}, which is no discrete "
                    f"field of this model.{nearest(field.scaled_by, discrete)}"
                )

    def _check_heads(self) -> None:
        discrete = tuple(field.name for field in self.fields if field.encoder == "embedding")
        for head in self.field_heads:
            _check_choice(f"head of field {head.field}", head.kind, FIELD_HEADS)
            _check_choice(f"link of the head {head.name}", head.link, LINK_NAMES)
            if head.kind == "token_scores":
                _check_choice("field of a head", head.field, discrete)
            elif head.tied:
                raise ConfigError(f"The head {head.name} has no table to be tied to.")
        for decoder in self.wced:
            _check_choice("rows of wced", decoder.reads, WCED_ROWS)
            _check_choice("link of wced", decoder.link, LINK_NAMES)
            for output in decoder.outputs:
                _check_choice("output of wced", output, WCED_OUTPUTS)
        for label in self.labels:
            if label.depth not in (1, 2):
                raise ConfigError(
                    f"The label head {label.name} has depth {label.depth}, not 1 or 2."
                )

    @property
    def pooled_size(self) -> int:
        """Width of a pooled row."""
        return self.hidden_size * len(pooling_parts(self.pooling))

    def leading_tokens(self, pooling: str | None = None) -> int | None:
        """Return how many first tokens of a cell are read by heads on cells; None if all are.

        Args:
            pooling: that is read beside the heads.
        """
        parts = [] if pooling is None else pooling_parts(pooling)
        if (
            any(label.token is None for label in self.labels)
            or any(decoder.reads == "pooled" for decoder in self.wced)
            or any(head.reads_pooled for head in self.field_heads)
        ):
            parts += pooling_parts(self.pooling)
        places = [label.token for label in self.labels if label.token is not None]
        places += [0 for decoder in self.wced if decoder.reads == "first_token"]
        for part in parts:
            place = place_of(part)
            if place is None:
                return None
            places.append(place)
        return 1 + max(places, default=-1)

    def window_of(self, layer: int) -> int | None:
        """Return the window of a block; None for a global one.

        Args:
            layer: from 0.
        """
        return None if layer % self.global_every == 0 else self.window

    def field(self, name: str) -> FieldInput:
        """Return the input of a name.

        Args:
            name: of a field of this model.
        """
        return next(field for field in self.fields if field.name == name)

    @property
    def gene_vocabulary_size(self) -> int:
        """Ids of the gene field: the columns of a whole-cell decoder."""
        return self.field(self.gene_field).vocabulary_size

    @property
    def gene_field(self) -> str:
        """The first discrete field."""
        return next(f.name for f in self.fields if f.encoder == "embedding")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return _lists(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ModelConfig:
        """Return the configuration of a JSON form.

        Args:
            value: as made by `to_dict`.

        Raises:
            ConfigError: an unknown key, a missing key or a value of the wrong type.
        """
        parts = {
            "fields": FieldInput,
            "field_heads": FieldHeadConfig,
            "wced": WcedConfig,
            "labels": LabelHeadConfig,
        }
        plain = {
            key: tuple(_build(parts[key], item, f"model.{key}") for item in item_or_items)
            if key in parts
            else item_or_items
            for key, item_or_items in value.items()
        }
        return _build(cls, plain, "model")


class OmicsConfig(PretrainedConfig):  # type: ignore[misc]
    """The Hugging Face side of a `ModelConfig`: `config.json` holds it under `model`."""

    model_type = "omics"

    def __init__(self, model: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # transformers builds an empty configuration to find out what to leave out on saving.
        self.model = dict(model) if model is not None else {}

    @property
    def checked(self) -> ModelConfig:
        """The typed, checked form."""
        return ModelConfig.from_dict(self.model)


_CHOICES = {
    "norm": NORMS,
    "norm_kind": NORM_KINDS,
    "activation": ACTIVATIONS,
    "positions": POSITIONS,
    "attention": ATTENTION_KINDS,
    "field_transform": FIELD_TRANSFORMS,
}
_AT_LEAST_ONE = (
    "hidden_size",
    "num_heads",
    "intermediate_size",
    "max_positions",
    "global_every",
    "num_features",
    "num_landmarks",
)


def pooling_parts(pooling: str) -> list[str]:
    """Return the poolings whose rows stand side by side.

    Args:
        pooling: one or several names, joined by `+`.
    """
    return pooling.split("+")


def place_of(part: str) -> int | None:
    """Return the place in the cell of the one token that a pooling reads; None if it reads several.

    Args:
        part: one of `pooling_parts`.
    """
    if part in ("first_token", "pooler"):
        return 0
    return int(part.removeprefix(PLACE_PREFIX)) if part.startswith(PLACE_PREFIX) else None


def check_pooling(pooling: str, what: str, *, has_pooler: bool) -> None:
    """Check the name of a pooling.

    Args:
        pooling: one or several names, joined by `+`.
        what: the key that holds it, for messages.
        has_pooler: whether the model has the weights of `pooler`.

    Raises:
        ConfigError: there is no such pooling, or none in this model.
    """
    for part in pooling_parts(pooling):
        if not part.startswith(PLACE_PREFIX):
            _check_choice(what, part, POOLINGS)
        elif not part.removeprefix(PLACE_PREFIX).isdecimal():
            raise ConfigError(f"{what} holds {part!r}; write token:0, token:1, ...")
        if part.startswith("pooler") and not has_pooler:
            raise ConfigError(f"{what}={part} needs model.pooler=true.")


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{what} is {value!r}.{nearest(str(value), list(known))}")


def _build(cls: type[Any], value: Mapping[str, Any], where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} holds {value!r}; a mapping of keys is expected.")
    known = {field.name: field for field in dataclasses.fields(cls)}
    for key in value:
        if key not in known:
            raise ConfigError(f"{where} has no key {key!r}.{nearest(str(key), sorted(known))}")
    checked = {
        key: _typed(item, str(known[key].type), f"{where}.{key}") for key, item in value.items()
    }
    missing = [
        name
        for name, field in known.items()
        if name not in value and field.default is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where} lacks the key {missing[0]!r}.")
    return cls(**checked)


def _typed(item: Any, annotation: str, where: str) -> Any:
    expected: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,)}
    kind = annotation.removesuffix(" | None")
    if kind != annotation and item is None:
        return None
    if kind == "bool":
        ok = isinstance(item, bool)
    elif kind in expected:
        ok = isinstance(item, expected[kind]) and not isinstance(item, bool)
    else:
        ok = isinstance(item, list | tuple)
    if not ok:
        raise ConfigError(f"{where} is {item!r}; expected {annotation}.")
    if kind == "float":
        return float(item)
    return tuple(item) if isinstance(item, list) else item


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value
