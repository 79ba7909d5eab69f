"""How the checkpoints of BiomedSciAI name their parts: the layout of today and three older ones.

- `multitask`: decoders of fields and of labels side by side, as published.
- `mlm`: masked language modelling or sequence labelling before that: no labels, no pooler.
- `classifiers`: an encoder named `base_model` and a classifier for each label.
- `classifier`: one classifier whose label the checkpoint does not name.
- `bare`: an encoder alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from omics.data.errors import InputDataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

BODIES = {"scbert": "scbert.", "scmodernbert": "scmodernbert.", "scllama": "core."}
_FIELDS = "cls.predictions.predictions."
_LABELS = "cls.label_predictions.predictions.label_decoders."


@dataclass(frozen=True, slots=True, kw_only=True)
class BmfmLayout:
    """What the keys of a checkpoint begin with.

    Attributes:
        name: one of those above.
        body: of the encoder.
        fields: of the transform and the decoders of fields; empty for none.
        labels: of the decoders of labels, with `{label}` in the place of its name; empty for none.
        label: the name given for the only label, where the checkpoint has none.
    """

    name: str
    body: str
    fields: str = ""
    labels: str = ""
    label: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        """Return the layout as plain JSON."""
        return asdict(self)

    def label_prefix(self, label: str) -> str:
        """Return what the keys of a label's decoder begin with.

        Args:
            label: its name.
        """
        return self.labels.replace("{label}", label)

    def label_names(self, names: Iterable[str]) -> list[str]:
        """Return the labels that have decoders, in order of appearance.

        Args:
            names: all keys.
        """
        if self.label is not None:
            return [self.label]
        before = self.labels.partition("{label}")[0]
        if not before:
            return []
        found = (
            name.removeprefix(before).split(".")[0] for name in names if name.startswith(before)
        )
        return list(dict.fromkeys(found))


def find_layout(
    names: Iterable[str], model_type: str, *, label: str | None, where: str
) -> BmfmLayout:
    """Return the layout of a checkpoint.

    Args:
        names: its keys.
        model_type: of its configuration.
        label: the name of the label that a single classifier predicts.
        where: what it is, for messages.

    Raises:
        UsageError: it has one classifier and no label was given, or a label it has no use for.
        InputDataError: it holds adapters, layers shared by labels, or no encoder of that type.
    """
    names = list(names)
    _refuse_what_is_not_computed(names, where)
    body = BODIES[model_type]
    if any(name.startswith((_FIELDS, _LABELS)) for name in names):
        layout = BmfmLayout(
            name="multitask", body=body, fields=_FIELDS, labels=f"{_LABELS}{{label}}.decoder."
        )
    elif any(name.startswith("classifiers.") for name in names):
        layout = BmfmLayout(
            name="classifiers", body=_wrapped_body(names, model_type), labels="classifiers.{label}."
        )
    elif any(name.startswith("classifier.") for name in names):
        if label is None:
            raise UsageError(
                f"{where} has one classifier and does not say what it predicts. Give the name of "
                "the label with --label."
            )
        return BmfmLayout(name="classifier", body=body, labels="classifier.", label=label)
    elif any(name.startswith("cls.predictions.") for name in names):
        layout = BmfmLayout(name="mlm", body=body, fields="cls.predictions.")
    else:
        layout = BmfmLayout(name="bare", body=body)
    if label is not None:
        raise UsageError(
            f"A label name was given ({label!r}), but {where} has no classifier without a name. "
            "Leave out --label."
        )
    if not any(name.startswith(layout.body) for name in names):
        raise InputDataError(
            f"{where} has no key that begins with {layout.body!r}, as the encoder of a "
            f"{model_type} checkpoint does (it has {', '.join(sorted(names)[:3])}). Check that "
            "configuration and weights belong together."
        )
    return layout


def _wrapped_body(names: list[str], model_type: str) -> str:
    if model_type == "scllama":
        return "base_model.core."
    long = "base_model.model."
    return long if any(name.startswith(long) for name in names) else "base_model."


def _refuse_what_is_not_computed(names: list[str], where: str) -> None:
    adapters = [name for name in names if "lora_" in name or ".base_layer." in name]
    if adapters:
        raise InputDataError(
            f"{where} holds {len(adapters)} tensors of adapters (such as {adapters[0]}), whose "
            "scale it does not say. Merge them where it was trained (merge_and_unload of peft), "
            "save the model again and convert that."
        )
    shared = [name for name in names if name.startswith("shared_latents.")]
    if shared:
        raise InputDataError(
            f"{where} has layers that several labels share ({shared[0]}), which this version does "
            "not compute. Without them the labels would be predicted wrongly."
        )
