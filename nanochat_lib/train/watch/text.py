"""Free-running text: what the model writes with no prompt, and how much of it repeats.

The packed decode engine writes a few texts from the end-of-text token on, at temperature 1 with
fixed seeds, so that their statistics move with the model alone. A model that has collapsed writes
the same few tokens again and again, long before its loss says so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from nanochat_lib.config import HardwareConfig
from nanochat_lib.data.tokenizer import END_OF_TEXT_ID
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model.backend import open_engine
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.model.request import Decoder, Sampling
from nanochat_lib.records import Metric

logger = logging.getLogger(__name__)

N_TEXTS = 8
RUN = 4  # tokens in a row that count as repeated when the text had them before


class FreeText:
    """Lets a model write, and measures what it wrote; the engine is made at the first look."""

    def __init__(self, n_tokens: int, hardware: HardwareConfig) -> None:
        """Start nothing yet; `n_tokens` of each text, 0 for none."""
        self.n_tokens, self.hardware = n_tokens, hardware
        self._engine: Decoder | None = None

    def look(self, model: LoopLM) -> dict[str, float]:
        """Return distinct-1, distinct-2 and repetition; nothing when no text is asked for."""
        n_tokens = min(self.n_tokens, model.config.max_seq_len - 1)
        if n_tokens <= RUN:
            return {}
        try:
            engine = self._loaded(model)
        except WorkbenchError as error:  # a variant of the model that is not packed
            if self.hardware.decode_device == "cuda" and self._engine is None:
                raise  # asked for by name
            logger.warning("No free-running text is watched: %s", error)
            self.n_tokens = 0
            return {}
        prompts, seeds = [[END_OF_TEXT_ID]] * N_TEXTS, list(range(N_TEXTS))
        written = engine.generate(prompts, Sampling(n_tokens), seed=seeds)
        return text_statistics([found.tokens for found in written])

    def _loaded(self, model: LoopLM) -> Decoder:
        if self._engine is None:
            # As many as training took: fewer than configured where the cores are busy.
            threads = min(torch.get_num_threads(), N_TEXTS)
            hardware = self.hardware.model_copy(update={"cpu_threads": threads})
            self._engine = open_engine(model, hardware, max_batch=N_TEXTS)
        else:
            self._engine.reload(model)
        return self._engine


def text_statistics(texts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Return distinct-1 and distinct-2 of all texts together, and their mean repetition.

    distinct-n is distinct runs of n tokens over runs. Repetition is the share of a text's runs of
    four tokens that it had before.

    Example: [1, 2, 1, 2, 1, 2] has distinct-1 2/6, distinct-2 2/5 and repetition 1/3: of its three
    runs 1212, 2121, 1212 one was there before.
    """
    repeated = [1 - _distinct([text], RUN) for text in texts if len(text) >= RUN]
    return {
        str(Metric.DISTINCT_1): _distinct(texts, 1),
        str(Metric.DISTINCT_2): _distinct(texts, 2),
        str(Metric.REPETITION): sum(repeated) / max(len(repeated), 1),
    }


def _distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    runs = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(runs)) / max(len(runs), 1)
