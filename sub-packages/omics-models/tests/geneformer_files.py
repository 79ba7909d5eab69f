"""Small Geneformer checkpoints as their authors publish them: BERT of transformers, pickled tables."""

from __future__ import annotations

import json
import pickle

import torch
from transformers import BertConfig, BertForMaskedLM

SPECIALS = {"V1": ["<pad>", "<mask>"], "V2": ["<pad>", "<mask>", "<cls>", "<eos>"]}


def bert(num_ids, *, act="relu", positions=64, seed=0, **sizes):
    """Return BERT for masked language modelling with every weight random."""
    config = BertConfig(
        **{
            "vocab_size": num_ids,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "hidden_act": act,
            "max_position_embeddings": positions,
            "layer_norm_eps": 1e-12,
            "pad_token_id": 0,
            **sizes,
        }
    )
    torch.default_generator.manual_seed(seed)
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "LayerNorm.weight" in name
            parameter.copy_(torch.randn_like(parameter) * 0.2 + norm)
    return model


def write_dictionaries(folder, genes, version="V2", tag="_gc104M", *, medians=None, retired=()):
    """Write the four pickles of a version; return the tokens in the order of their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*SPECIALS[version], *genes]
    medians = medians or {gene: 0.5 + index % 7 for index, gene in enumerate(genes)}
    tables = {
        "token_dictionary": {token: number for number, token in enumerate(tokens)},
        "gene_median_dictionary": medians,
        "gene_name_id_dict": {f"s{index}": gene for index, gene in enumerate(genes)},
        "ensembl_mapping_dict": {**{gene: gene for gene in genes}, **dict(retired)},
    }
    for name, table in tables.items():
        (folder / f"{name}{tag}.pkl").write_bytes(pickle.dumps(table))
    return tokens


def write_checkpoint(folder, model):
    """Write a folder as `save_pretrained` does, with a line of the kind that must be ignored."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoModelForMaskedLM": "evil.py--Evil"}
    path.write_text(json.dumps(config))
    return folder
