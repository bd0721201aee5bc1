"""An exported GGUF file in stock llama.cpp: its logits, its greedy text and its speed.

llama.cpp comes with llama-cpp-python (`pip install .[peers]`, which compiles it). In: a GGUF file
and token ids; out: what the stock runtime makes of them, to hold against our own engine. Nothing
but its C interface is called for a token, so that no Python wrapper is timed with it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from nanochat_lib.errors import WorkbenchError
from nanochat_lib.publish.gguf_file import ARCHITECTURE


class StockModel:
    """A model that llama.cpp has loaded; a context manager, because its memory is not Python's."""

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        max_seq_len: int = 512,
        n_loops: int | None = None,
        exact: bool = False,
    ) -> None:
        """Load `path`.

        Args:
            threads: for prompts and for single tokens alike.
            n_loops: loops to run instead of those that the file asks for.
            exact: keep the cache in float32 and take no flash attention, which rounds to float16.

        Raises:
            WorkbenchError: llama-cpp-python is not installed, or it cannot load the file.
        """
        try:
            import llama_cpp
        except ImportError as error:
            raise WorkbenchError(
                "llama-cpp-python is not installed: pip install '.[peers]' compiles it "
                "(about 20 minutes on two cores)."
            ) from error
        self._api = api = llama_cpp
        api.llama_log_set(_silent(api), ctypes.c_void_p())
        api.llama_backend_init()
        parameters = api.llama_model_default_params()
        self._overrides = _loop_override(api, n_loops)  # llama.cpp reads it from our memory
        if self._overrides is not None:
            parameters.kv_overrides = self._overrides
        self._model = api.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise WorkbenchError(f"llama.cpp cannot load {path}; does it know {ARCHITECTURE}?")
        context = api.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = max_seq_len
        context.n_threads = context.n_threads_batch = threads
        if exact:
            context.type_k = context.type_v = 0  # GGML_TYPE_F32
            context.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = api.llama_init_from_model(self._model, context)
        self.vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._max_seq_len = max_seq_len

    def __enter__(self) -> StockModel:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    def forget(self) -> None:
        """Empty the cache: the next tokens begin a sequence."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens to the sequence; return the logits float32 (V,) after the last."""
        array = (self._api.llama_token * len(tokens))(*tokens)
        batch = self._api.llama_batch_get_one(array, len(tokens))
        if self._api.llama_decode(self._context, batch) != 0:
            raise WorkbenchError(
                f"llama.cpp could not read {len(tokens)} tokens: the sequence has room for "
                f"{self._max_seq_len}."
            )
        pointer = self._api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(pointer, (self.vocab_size,)).copy()

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Return the logits float32 (T, V) after every token of a sequence of its own."""
        self.forget()
        return np.stack([self.read([token]) for token in tokens])

    def greedy(self, prompt: Sequence[int], n_tokens: int) -> list[int]:
        """Return the most likely continuation, token by token."""
        self.forget()
        token = int(self.read(prompt).argmax())
        found = [token]
        while len(found) < n_tokens:
            token = int(self.read([token]).argmax())
            found.append(token)
        return found


def _silent(api: object) -> object:
    """Return a log callback that drops what llama.cpp says; kept alive by the module."""
    global _callback
    if _callback is None:
        _callback = api.llama_log_callback(lambda level, text, data: None)
    return _callback


_callback: object | None = None


def _loop_override(api: object, n_loops: int | None) -> object | None:
    if n_loops is None:
        return None
    overrides = (api.llama_model_kv_override * 2)()  # the second, with an empty key, ends the list
    overrides[0].key = f"{ARCHITECTURE}.num_loops".encode()
    overrides[0].tag = api.LLAMA_KV_OVERRIDE_TYPE_INT
    overrides[0].value.val_i64 = n_loops
    return overrides
