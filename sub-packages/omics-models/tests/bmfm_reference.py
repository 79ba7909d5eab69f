"""A small oracle: checkpoints of biomed-multi-omic and what they compute, in plain torch.

Written from the published formulas alone, on padded rectangles, with nothing of the package in it.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F

NUM_GENES, HIDDEN, INNER, HEADS = 41, 32, 48, 4
BODY = {"scbert": "scbert.", "scmodernbert": "scmodernbert.", "scllama": "core."}


def field(name, **more):
    return {
        "field_name": name,
        "vocab_size": None,
        "is_input": True,
        "is_masked": True,
        "decode_modes": None,
        "tokenization_strategy": "tokenize",
        "num_special_tokens": 5,
        "encoder_kwargs": None,
        **more,
    }


def genes_and_values(kind="mlp_with_special_token_embedding", genes=None, values=None, **encoder):
    encoder = {"kind": kind, "zero_as_special_token": True, **encoder}
    return [
        field("genes", vocab_size=NUM_GENES, decode_modes=genes),
        field(
            "expressions",
            tokenization_strategy="continuous_value_encoder",
            encoder_kwargs=encoder,
            decode_modes=values,
        ),
    ]


WAVES = {"kind": "scale_adapt", "n_sin_basis": 6, "basis_scale": 1.5}
MLM = {"regression": {}, "is_zero": {}}
WCED = {"wced": {"vocab_field": "genes", "logit_outputs": ["mse", "is_zero_bce"]}}
DEPTH_LABEL = field(
    "label_expressions", is_input=False, tokenization_strategy="continuous_value_encoder"
)


def label(name, size, **more):
    return {"label_column_name": name, "n_unique_values": size, **more}


LABELS = [
    label("cell_type", 7),
    label("tissue", 3),
    label("donor_id", 4, gradient_reversal_coefficient=1.0),
]


def settings(model_type="scbert", **changes):
    common = {
        "model_type": model_type,
        "num_hidden_layers": 4 if model_type == "scmodernbert" else 2,
        "num_attention_heads": HEADS,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "position_embedding_type": None,
        "attention": None,
        "fields": genes_and_values(genes={"token_scores": {}}, values=MLM),
        "label_columns": LABELS,
        "auto_map": {"AutoModel": "evil.py--Evil"},
    }
    if model_type == "scmodernbert":
        common |= {
            "hidden_activation": "gelu",
            "classifier_activation": "gelu",
            "norm_eps": 1e-5,
            "norm_bias": False,
            "attention_bias": False,
            "mlp_bias": False,
            "classifier_bias": False,
            "global_rope_theta": 160_000.0,
            "local_rope_theta": 10_000.0,
            "global_attn_every_n_layers": 3,
            "local_attention": 8,
            "classifier_pooling": "mean",
            "fields": [
                field("dna_chunks", vocab_size=NUM_GENES, decode_modes={"token_scores": {}})
            ],
            "label_columns": LABELS[:2],
        }
    return copy.deepcopy({**common, **changes})


def input_fields(config):
    return [each for each in config["fields"] if each["is_input"]]


class StateMaker:
    """Random tensors under the keys of the reference."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.state = {}

    def add(self, name, *shape, scale=0.2):
        self.state[name] = torch.randn(*shape, generator=self.generator) * scale

    def linear(self, name, out, into, *, bias=True):
        self.add(f"{name}.weight", out, into)
        if bias:
            self.add(f"{name}.bias", out)

    def norm(self, name, *, bias=True):
        self.add(f"{name}.weight", HIDDEN)
        self.state[f"{name}.weight"] += 1
        if bias:
            self.add(f"{name}.bias", HIDDEN)


def make_state(config, layout="multitask", seed=0):
    made = StateMaker(seed)
    kind, body = config["model_type"], BODY[config["model_type"]]
    if layout == "classifiers":
        body = "base_model.core." if kind == "scllama" else "base_model."
    embeddings = f"{body}encoder.embeddings" if kind == "scllama" else f"{body}embeddings"
    for each in input_fields(config):
        add_field(made, f"{embeddings}.{each['field_name']}_embeddings", each)
    made.norm(f"{embeddings}.LayerNorm")
    {"scbert": add_bert, "scmodernbert": add_modern, "scllama": add_llama}[kind](made, config, body)
    if layout != "mlm":
        made.linear(f"{body}pooler.dense", HIDDEN, HIDDEN)
    add_heads(made, config, layout)
    return made.state


def add_field(made, key, each):
    if each["tokenization_strategy"] == "tokenize":
        made.add(f"{key}.weight", each["vocab_size"], HIDDEN, scale=0.5)
        return
    options = each["encoder_kwargs"] or {}
    rows = each["num_special_tokens"] + options.get("zero_as_special_token", True)
    if options.get("kind") == "scale_adapt":
        made.add(f"{key}.basis", options["n_sin_basis"], scale=6)
        made.linear(f"{key}.dense", HIDDEN, 2 * options["n_sin_basis"], bias=False)
        made.add(f"{key}.special_token_embeddings.weight", rows, HIDDEN)
    else:
        made.linear(f"{key}.dense_1", 16, 1)
        made.linear(f"{key}.dense_2", HIDDEN, 16)
        made.add(f"{key}.special_token_embeddings.weight", rows, 16)


def add_bert(made, config, body):
    for layer in range(config["num_hidden_layers"]):
        key = f"{body}encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            made.linear(f"{key}.attention.self.{name}", HIDDEN, HIDDEN)
        made.linear(f"{key}.attention.output.dense", HIDDEN, HIDDEN)
        made.norm(f"{key}.attention.output.LayerNorm")
        made.linear(f"{key}.intermediate.dense", INNER, HIDDEN)
        made.linear(f"{key}.output.dense", HIDDEN, INNER)
        made.norm(f"{key}.output.LayerNorm")


def add_modern(made, config, body):
    for layer in range(config["num_hidden_layers"]):
        key = f"{body}layers.{layer}"
        if layer:
            made.norm(f"{key}.attn_norm", bias=False)
        made.norm(f"{key}.mlp_norm", bias=False)
        made.linear(f"{key}.attn.Wqkv", 3 * HIDDEN, HIDDEN, bias=False)
        made.linear(f"{key}.attn.Wo", HIDDEN, HIDDEN, bias=False)
        made.linear(f"{key}.mlp.Wi", 2 * INNER, HIDDEN, bias=False)
        made.linear(f"{key}.mlp.Wo", HIDDEN, INNER, bias=False)
    made.norm(f"{body}final_norm", bias=False)


def add_llama(made, config, body):
    for layer in range(config["num_hidden_layers"]):
        key = f"{body}encoder.blocks.{layer}"
        for norm in ("rms_1", "rms_2") if layer else ("rms_2",):
            made.add(f"{key}.{norm}.scale", HIDDEN)
            made.state[f"{key}.{norm}.scale"] += 1
        made.linear(f"{key}.attn.c_attn", 3 * HIDDEN, HIDDEN, bias=False)
        made.linear(f"{key}.attn.proj", HIDDEN, HIDDEN, bias=False)
        made.linear(f"{key}.mlp.c_fc1", INNER, HIDDEN, bias=False)
        made.linear(f"{key}.mlp.c_fc2", INNER, HIDDEN, bias=False)
        made.linear(f"{key}.mlp.c_proj", HIDDEN, INNER, bias=False)


def add_heads(made, config, layout):
    fields = {"multitask": "cls.predictions.predictions", "mlm": "cls.predictions"}.get(layout)
    if fields:
        made.linear(f"{fields}.transform.dense", HIDDEN, HIDDEN)
        made.norm(f"{fields}.transform.LayerNorm")
        for each in config["fields"]:
            for mode in each["decode_modes"] or {}:
                width = {"token_scores": each["vocab_size"], "wced": 2 * NUM_GENES}.get(mode, 1)
                name = f"{each['field_name']}_{mode}"
                made.linear(f"{fields}.decoder.field_decoders.{name}", width, HIDDEN)
    if layout == "classifier" and config["model_type"] == "scmodernbert":
        made.linear("head.dense", HIDDEN, HIDDEN, bias=config["classifier_bias"])
        made.norm("head.norm", bias=False)
    for each in config["label_columns"] or [] if layout != "mlm" else []:
        add_label(made, each, layout)


def add_label(made, each, layout):
    size = each["n_unique_values"]
    if layout == "classifier":
        made.linear("classifier", size, HIDDEN)
    elif layout == "classifiers" and each.get("classifier_depth") == 2:
        made.linear(f"classifiers.{each['label_column_name']}.dense", HIDDEN, HIDDEN)
        made.linear(f"classifiers.{each['label_column_name']}.out_proj", size, HIDDEN)
    else:
        key = label_key(each, layout)
        made.linear(key, size, HIDDEN)


def label_key(each, layout):
    name = each["label_column_name"]
    if layout == "classifier":
        return "classifier"
    if layout == "classifiers":
        return f"classifiers.{name}"
    reversed_ = each.get("gradient_reversal_coefficient") is not None
    inner = ".1" if reversed_ else ""
    return f"cls.label_predictions.predictions.label_decoders.{name}.decoder{inner}"


class Forward:
    """What a checkpoint computes: `ids` [B, fields, L] and `mask` [B, L] to named outputs."""

    def __init__(self, config, state, layout="multitask"):
        self.config, self.state, self.layout = config, state, layout
        self.kind = config["model_type"]
        self.body = BODY[self.kind]
        if layout == "classifiers":
            self.body = "base_model.core." if self.kind == "scllama" else "base_model."

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, name, x, eps):
        weight, bias = self.state[f"{name}.weight"], self.state.get(f"{name}.bias")
        return F.layer_norm(x, (HIDDEN,), weight, bias, eps)

    def rms(self, name, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.state[f"{name}.scale"]

    def __call__(self, ids, mask):
        inputs = "encoder.embeddings" if self.kind == "scllama" else "embeddings"
        x = sum(
            self.embed(f"{self.body}{inputs}.{each['field_name']}_embeddings", each, ids[:, place])
            for place, each in enumerate(input_fields(self.config))
        )
        eps = self.config["norm_eps" if self.kind == "scmodernbert" else "layer_norm_eps"]
        x = self.norm(f"{self.body}{inputs}.LayerNorm", x, eps)
        hidden = [x]
        block = {"scbert": self.bert, "scmodernbert": self.modern, "scllama": self.llama}[self.kind]
        for layer in range(self.config["num_hidden_layers"]):
            hidden.append(block(layer, hidden[-1], mask))
        last = hidden[-1]
        if self.kind == "scmodernbert":
            last = self.norm(f"{self.body}final_norm", last, eps)
        pooled = self.pooled(last, mask)
        out = {"out/hidden_states": torch.stack(hidden), "out/embeddings": pooled}
        out |= {f"out/logits/{name}": each for name, each in self.field_logits(last).items()}
        out |= {
            f"out/logits/{name}": each for name, each in self.label_logits(last, pooled).items()
        }
        if self.layout == "classifier" and self.kind == "scmodernbert":
            out["out/embeddings"] = self.deep(pooled)
        rest = mask.float().clone()
        rest[:, 0] = 0
        mean = (hidden[-1] * rest[..., None]).sum(1) / rest.sum(1, keepdim=True)
        out["out/pool/first_token"] = hidden[-1][:, 0]
        out["out/pool/mean_pooling"] = mean
        out["out/pool/pooling_layer"] = out["out/embeddings"]
        return out

    def embed(self, key, each, values):
        if each["tokenization_strategy"] == "tokenize":
            return self.state[f"{key}.weight"][values.long()]
        options = each["encoder_kwargs"] or {}
        special = values < 0
        row = (-values - 1).clamp(min=0).long()
        if options.get("zero_as_special_token", True):
            row[values == 0] = len(self.state[f"{key}.special_token_embeddings.weight"]) - 1
            special = special | (values == 0)
        table = self.state[f"{key}.special_token_embeddings.weight"][row]
        special, values = special[..., None], values[..., None]
        if options.get("kind") == "scale_adapt":
            angle = values * self.state[f"{key}.basis"]
            waves = self.linear(f"{key}.dense", torch.cat([angle.sin(), angle.cos()], -1))
            return torch.where(special, table, waves)
        inner = F.leaky_relu(self.linear(f"{key}.dense_1", values))
        return self.linear(f"{key}.dense_2", F.leaky_relu(torch.where(special, table, inner)))

    def attend(self, q, k, v, allowed):
        def split(x):
            return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        scores = split(q) @ split(k).transpose(-1, -2) / (HIDDEN // HEADS) ** 0.5
        scores = scores.masked_fill(~allowed[:, None], float("-inf"))
        return (scores.softmax(-1).nan_to_num() @ split(v)).transpose(1, 2).flatten(2)

    def bert(self, layer, x, mask):
        key, eps = f"{self.body}encoder.layer.{layer}", self.config["layer_norm_eps"]
        q, k, v = (self.linear(f"{key}.attention.self.{n}", x) for n in ("query", "key", "value"))
        allowed = mask.bool()[:, None, :].expand(-1, x.shape[1], -1)
        x = x + self.linear(f"{key}.attention.output.dense", self.attend(q, k, v, allowed))
        x = self.norm(f"{key}.attention.output.LayerNorm", x, eps)
        wide = F.gelu(self.linear(f"{key}.intermediate.dense", x))
        return self.norm(
            f"{key}.output.LayerNorm", x + self.linear(f"{key}.output.dense", wide), eps
        )

    def modern(self, layer, x, mask):
        key, eps = f"{self.body}layers.{layer}", self.config["norm_eps"]
        length = x.shape[1]
        normed = self.norm(f"{key}.attn_norm", x, eps) if layer else x
        q, k, v = self.linear(f"{key}.attn.Wqkv", normed).chunk(3, -1)
        place = torch.arange(length)
        size = HIDDEN // HEADS
        angle = place[:, None] / 160_000.0 ** (torch.arange(0, size, 2) / size)
        angle = torch.cat([angle, angle], -1)

        def turn(each):
            heads = each.unflatten(-1, (HEADS, -1))
            first, second = heads.chunk(2, -1)
            turned = torch.cat([-second, first], -1)
            cos, sin = angle.cos()[None, :, None], angle.sin()[None, :, None]
            return (heads * cos + turned * sin).flatten(2)

        allowed = mask.bool()[:, None, :].expand(-1, length, -1)
        if layer % self.config["global_attn_every_n_layers"]:
            near = (place[:, None] - place).abs() <= self.config["local_attention"] // 2
            allowed = allowed & near
        x = x + self.linear(f"{key}.attn.Wo", self.attend(turn(q), turn(k), v, allowed))
        value, gate = self.linear(f"{key}.mlp.Wi", self.norm(f"{key}.mlp_norm", x, eps)).chunk(
            2, -1
        )
        return x + self.linear(f"{key}.mlp.Wo", F.gelu(value) * gate)

    def llama(self, layer, x, mask):
        key = f"{self.body}encoder.blocks.{layer}"
        normed = self.rms(f"{key}.rms_1", x) if layer else x
        q, k, v = self.linear(f"{key}.attn.c_attn", normed).chunk(3, -1)
        allowed = mask.bool()[:, None, :].expand(-1, x.shape[1], -1)
        x = x + self.linear(f"{key}.attn.proj", self.attend(q, k, v, allowed))
        normed = self.rms(f"{key}.rms_2", x)
        wide = F.silu(self.linear(f"{key}.mlp.c_fc1", normed)) * self.linear(
            f"{key}.mlp.c_fc2", normed
        )
        return x + self.linear(f"{key}.mlp.c_proj", wide)

    def pooled(self, last, mask):
        weights = mask.float()[..., None]
        mean = (last * weights).sum(1) / weights.sum(1)
        of_mean = self.config.get("classifier_pooling", "cls") == "mean"
        if self.layout == "mlm":
            return last[:, 0]
        if self.kind == "scmodernbert" and self.layout == "multitask":
            return mean if of_mean else last[:, 0]
        return torch.tanh(self.linear(f"{self.body}pooler.dense", mean if of_mean else last[:, 0]))

    def field_logits(self, last):
        prefix = {"multitask": "cls.predictions.predictions", "mlm": "cls.predictions"}.get(
            self.layout
        )
        if prefix is None:
            return {}
        eps = self.config["layer_norm_eps"]
        if self.kind == "scmodernbert":
            eps = self.config["norm_eps"]
        x = F.gelu(self.linear(f"{prefix}.transform.dense", last))
        x = self.norm(f"{prefix}.transform.LayerNorm", x, eps)
        logits = {}
        for each in self.config["fields"]:
            for mode in each["decode_modes"] or {}:
                name = f"{each['field_name']}_{mode}"
                made = self.linear(f"{prefix}.decoder.field_decoders.{name}", x)
                logits[name] = made.unflatten(-1, (NUM_GENES, 2)) if mode == "wced" else made
        return logits

    def deep(self, pooled):
        inner = F.gelu(self.linear("head.dense", pooled))
        return self.norm("head.norm", inner, self.config["norm_eps"])

    def label_logits(self, last, pooled):
        if self.layout == "mlm":
            return {}
        logits = {}
        for each in self.config["label_columns"] or []:
            name = each["label_column_name"]
            rows = pooled if each.get("decode_from") is None else last[:, each["decode_from"]]
            if self.layout == "classifier" and self.kind == "scmodernbert":
                rows = self.deep(rows)
            if self.layout == "classifiers" and each.get("classifier_depth") == 2:
                rows = F.gelu(self.linear(f"classifiers.{name}.dense", rows))
                logits[name] = self.linear(f"classifiers.{name}.out_proj", rows)
            else:
                logits[name] = self.linear(label_key(each, self.layout), rows)
        return logits


def random_input(config, lengths=(12, 8, 12), seed=1):
    """Return ids [B, fields, L], padded, with special values and zeros, and the mask [B, L]."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).float()
    columns = []
    for each in input_fields(config):
        if each["tokenization_strategy"] == "tokenize":
            ids = torch.randint(5, each["vocab_size"], mask.shape, generator=generator).float()
            ids[:, 0] = 3
            columns.append(torch.where(mask > 0, ids, torch.tensor(2.0)))
        else:
            values = torch.rand(mask.shape, generator=generator) * 6
            values[:, 1] = 0
            values[:, 0], values[:, 4] = -4, -5
            columns.append(torch.where(mask > 0, values, torch.tensor(-3.0)))
    return torch.stack(columns, 1), mask
