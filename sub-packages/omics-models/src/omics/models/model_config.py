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

FIELD_ENCODERS = ("embedding", "mlp")
NORMS = ("pre", "post")
POSITIONS = ("none", "learned", "rope")
POOLINGS = ("first_token", "mean")
FIELD_HEADS = ("regression", "token_scores")
WCED_OUTPUTS = ("is_zero_bce", "mse")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldInput:
    """How one field of the tokens enters the sum of input embeddings.

    Attributes:
        name: the field of the TokenBatch.
        encoder: `embedding` (a table of ids) or `mlp` (a value, specials from a small table).
        vocabulary_size: ids of an `embedding` field; specials of an `mlp` field.
        scaled_by: for an `mlp` field: a discrete field whose second table is multiplied by the
            value and added (value-scaled gene vectors); None for none.
    """

    name: str
    encoder: str
    vocabulary_size: int
    scaled_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldHeadConfig:
    """A head on the hidden states of chosen tokens.

    Attributes:
        field: what it predicts.
        kind: `regression`, or `token_scores` (logits over the field's ids).
    """

    field: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WcedConfig:
    """The whole-cell expression decoder: pooled row to values of every gene.

    Attributes:
        field: the field whose values it decodes.
        outputs: what it gives per gene, in order: `is_zero_bce` (a logit), `mse` (a value).
    """

    field: str
    outputs: tuple[str, ...] = WCED_OUTPUTS


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelHeadConfig:
    """A classifier on the pooled row.

    Attributes:
        name: the label column.
        num_classes: its outputs.
    """

    name: str
    num_classes: int


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
        final_norm: whether the last hidden states are normalised (pre-norm blocks).
        glu: gated feed-forward (GELU gate).
        bias: biases in the linear layers of the blocks.
        positions: `none` (a set), `learned` or `rope`.
        max_positions: rows of the learned table.
        rope_theta: base of the rotary angles.
        dropout: after attention, feed-forward and before label heads.
        layer_norm_eps: of every normalisation.
        embedding_std: standard deviation of new embedding tables.
        pooling: `first_token` or `mean`; the pooled row is normalised once more.
        field_heads: heads on tokens.
        wced: whole-cell decoders on the pooled row.
        labels: classifiers on the pooled row.
    """

    fields: tuple[FieldInput, ...]
    hidden_size: int = 64
    num_layers: int = 1
    num_heads: int = 2
    intermediate_size: int = 128
    norm: str = "pre"
    final_norm: bool = True
    glu: bool = False
    bias: bool = True
    positions: str = "none"
    max_positions: int = 512
    rope_theta: float = 10_000.0
    dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    embedding_std: float = 0.02
    pooling: str = "first_token"
    field_heads: tuple[FieldHeadConfig, ...] = ()
    wced: tuple[WcedConfig, ...] = ()
    labels: tuple[LabelHeadConfig, ...] = ()

    def __post_init__(self) -> None:
        """Check values that types cannot."""
        if not self.fields:
            raise ConfigError("A model needs at least one field.")
        _check_choice("norm", self.norm, NORMS)
        _check_choice("positions", self.positions, POSITIONS)
        _check_choice("pooling", self.pooling, POOLINGS)
        for name in ("hidden_size", "num_heads", "intermediate_size", "max_positions"):
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
        self._check_fields()

    def _check_fields(self) -> None:
        names = [field.name for field in self.fields]
        discrete = [field.name for field in self.fields if field.encoder == "embedding"]
        for field in self.fields:
            _check_choice(f"encoder of field {field.name}", field.encoder, FIELD_ENCODERS)
            if field.scaled_by is not None and field.scaled_by not in discrete:
                raise ConfigError(
                    f"Field {field.name!r} is scaled by {field.scaled_by!r}, which is no discrete "
                    f"field of this model.{nearest(field.scaled_by, discrete)}"
                )
        for head in self.field_heads:
            _check_choice(f"head of field {head.field}", head.kind, FIELD_HEADS)
            _check_choice("field of a head", head.field, tuple(names))
        for decoder in self.wced:
            _check_choice("field of wced", decoder.field, tuple(names))
            for output in decoder.outputs:
                _check_choice("output of wced", output, WCED_OUTPUTS)

    def field(self, name: str) -> FieldInput:
        """Return the input of a name.

        Args:
            name: of a field of this model.
        """
        return next(field for field in self.fields if field.name == name)

    @property
    def gene_vocabulary_size(self) -> int:
        """Ids of the first discrete field: the columns of a whole-cell decoder."""
        return next(f.vocabulary_size for f in self.fields if f.encoder == "embedding")

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
    if annotation == "bool":
        ok = isinstance(item, bool)
    elif annotation == "str | None":
        ok = item is None or isinstance(item, str)
    elif annotation in expected:
        ok = isinstance(item, expected[annotation]) and not isinstance(item, bool)
    else:
        ok = isinstance(item, list | tuple)
    if not ok:
        raise ConfigError(f"{where} is {item!r}; expected {annotation}.")
    if annotation == "float":
        return float(item)
    return tuple(item) if isinstance(item, list) else item


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value
