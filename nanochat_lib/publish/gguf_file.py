"""Write a checkpoint as GGUF that stock llama.cpp loads: architecture `nanbeige`, which loops.

The layers are stored once with `nanbeige.num_loops`; the final norm is applied after every loop.
Ternary matrices become TQ2_0: 256 codes and one float16 scale per block. The model's scale is a
float16 value already, so no weight changes. The exit gate has no slot in the format: the export
runs all loops.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Quant

from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.checkpoint import Checkpoint
from nanochat_lib.model.ternary import quantize_weight

ARCHITECTURE = "nanbeige"
BLOCK = 256  # weights of one TQ2_0 block, along the input axis
FILE_TYPE = {"f32": 0, "tq2_0": 37}
LAYER_NAMES = {
    "attn_norm": "attn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "ffn_norm": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}  # fmt: skip
OTHER_NAMES = {"embed": "token_embd", "final_norm": "output_norm", "head": "output"}
Precision = Literal["f32", "tq2_0"]


def write_gguf(checkpoint: Checkpoint, path: Path, precision: Precision, name: str) -> Path:
    """Write one GGUF file, atomically.

    Args:
        checkpoint: a loaded checkpoint with its tokenizer.
        precision: `f32` (ternary weights dequantised exactly), or `tq2_0` (2.06 bits a weight in
            the layers, float16 embedding and head).

    Raises:
        WorkbenchError: no tokenizer, or a shape that the format cannot hold.
    """
    if checkpoint.tokenizer_path is None:
        raise WorkbenchError("The checkpoint has no tokenizer.json; GGUF needs one inside.")
    check_exportable(checkpoint.config, precision)
    temporary = path.with_name(f".{path.name}.tmp")
    writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
    try:
        _add_model(writer, checkpoint.config, precision, name)
        _add_tokenizer(writer, checkpoint.tokenizer_path, checkpoint.config.vocab_size)
        _add_tensors(writer, checkpoint, precision)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def check_exportable(config: ModelConfig, precision: Precision) -> None:
    """Refuse what the format cannot hold, naming the value to change."""
    config.require_stock("llama.cpp's nanbeige")
    if precision != "tq2_0":
        return
    if not config.ternary:
        raise WorkbenchError("Only a ternary model exports to TQ2_0; use f32 for this one.")
    for field in ("d_model", "d_ff"):
        if getattr(config, field) % BLOCK:
            raise WorkbenchError(
                f"TQ2_0 stores blocks of {BLOCK} weights: model.{field} must be a multiple of "
                f"{BLOCK}, found {getattr(config, field)}."
            )


def _add_model(
    writer: gguf.GGUFWriter, config: ModelConfig, precision: Precision, name: str
) -> None:
    writer.add_name(name)
    writer.add_file_type(FILE_TYPE[precision])
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_uint32(f"{ARCHITECTURE}.num_loops", config.n_loops)
    writer.add_bool(f"{ARCHITECTURE}.skip_loop_final_norm", False)


def _add_tokenizer(writer: gguf.GGUFWriter, path: Path, vocab_size: int) -> None:
    """Add the byte-level BPE: `gpt2` model, `llama-bpe` pre-tokenizer, as llama.cpp knows them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    special = {item["content"]: item["id"] for item in content["added_tokens"]}
    tokens = [f"[unused{i}]" for i in range(vocab_size)]
    kinds = [gguf.TokenType.UNUSED] * vocab_size
    for token, index in {**vocabulary, **special}.items():
        tokens[index] = token
        kinds[index] = gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL
    end = special["<|endoftext|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([_merge(merge) for merge in content["model"]["merges"]])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)


def _merge(merge: Any) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _add_tensors(writer: gguf.GGUFWriter, checkpoint: Checkpoint, precision: Precision) -> None:
    for name, tensor in checkpoint.model.state_dict().items():
        if name.startswith("exit_gate"):
            continue
        target = tensor_name(name)
        if tensor.ndim == 1:
            writer.add_tensor(target, tensor.float().numpy())
        elif name.startswith("layers.") and checkpoint.config.ternary:
            codes, scale = quantize_weight(tensor)
            weight = codes.numpy().astype(np.float32) * np.float32(scale)
            if precision == "tq2_0":
                packed = gguf.quants.quantize(weight, Quant.TQ2_0)
                writer.add_tensor(target, packed, raw_dtype=Quant.TQ2_0)
            else:
                writer.add_tensor(target, weight)
        else:
            wanted = np.float16 if precision == "tq2_0" else np.float32
            writer.add_tensor(target, tensor.float().numpy().astype(wanted))


def tensor_name(name: str) -> str:
    """Translate a name of our state dict into GGUF's: `layers.0.q.weight` -> `blk.0.attn_q...`."""
    parts = name.split(".")
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{LAYER_NAMES[parts[2]]}.{parts[3]}"
    return f"{OTHER_NAMES[parts[0]]}.{parts[1]}"
