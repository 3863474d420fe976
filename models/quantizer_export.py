"""Writes a fitted quantizer as one self-contained ONNX graph; knows nothing of how it is run or stored."""

from __future__ import annotations

import logging
import warnings

import onnx
import torch

from models.encoders import MODALITIES
from models.quantizer import Quantizer

INPUTS = ("text", "frames", "audio", "present")
OUTPUTS = ("codes", "embedding", "residual_norm", "cluster_id")


def export_quantizer(quantizer: Quantizer, *, codebook_version: int) -> bytes:
    """Return the ONNX graph: modality embeddings and presence -> codes, embedding, residual norm and cluster id.

    The batch is dynamic. Its metadata says which codebook_version and level sizes it computes.
    """
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    example = [
        torch.randn(2, quantizer.get_buffer(f"mean_{modality}").shape[0]) for modality in MODALITIES
    ]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter reports its own deprecations
        program = torch.onnx.export(
            quantizer,
            (*example, torch.ones(2, len(MODALITIES), dtype=torch.bool)),
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=({0: batch},) * len(INPUTS),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # it is None only for the exporter that dynamo replaced
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input):
        del part.metadata_props[:]  # source lines of whoever exported it
    onnx.helper.set_model_props(
        model,
        {
            "codebook_version": str(codebook_version),
            "codebook_sizes": ",".join(map(str, quantizer.config.codebook_sizes)),
            "embedding_dim": str(quantizer.config.embedding_dim),
            "num_clusters": str(quantizer.config.num_clusters),
        },
    )
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized
