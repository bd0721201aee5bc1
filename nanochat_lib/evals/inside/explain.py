"""One generation, token by token: the loop each left at, how sure the model was, what else it knew.

In: a checkpoint and a prompt; out: a `TokenStep` per token. The engine generates; one pass of the
model over the finished text then gives the candidates after the loop at which each token left. With
an exit threshold below 1 that pass runs all loops of the earlier tokens, which the engine did not,
so probabilities may differ a little from those the token was drawn from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import torch
from tokenizers import Tokenizer

from nanochat_lib.config import HardwareConfig
from nanochat_lib.data.tokenizer import END_OF_TEXT_ID, STOP_IDS, encode_prompt
from nanochat_lib.evals.generation import MIN_FREE_SHARE, Writer, load_with_tokenizer, make_writer
from nanochat_lib.model.looplm import LoopLM, exit_pdf
from nanochat_lib.model.request import Generation, Sampling

N_CANDIDATES = 5


@dataclass(frozen=True)
class TokenStep:
    """One generated token."""

    token_id: int
    text: str
    loop: int  # it left at, from 1
    entropy_nats: float  # of the distribution it was drawn from, at temperature 1
    probability: float  # that it had
    candidates: tuple[tuple[str, float], ...]  # the likeliest, with their probabilities
    exit_pdf: tuple[float, ...]  # chance to leave at each loop


@dataclass(frozen=True)
class Explainer:
    """A model that generates and explains."""

    model: LoopLM
    writer: Writer

    @property
    def n_loops(self) -> int:
        """Return the loops of the model."""
        return self.model.config.n_loops

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the model's tokenizer."""
        return self.writer.tokenizer

    def explain(
        self,
        prompt: str,
        *,
        exit_threshold: float = 1.0,
        temperature: float = 0.8,
        max_new_tokens: int = 80,
        seed: int = 0,
    ) -> list[TokenStep]:
        """Continue a prompt and return its tokens (`text` puts them together).

        Args:
            prompt: ends in the opening brace of a function, as in training.
            exit_threshold: leave the loops when the exit cdf reaches it; 1: never early.
            temperature: 0 takes the likeliest token.
            max_new_tokens: the longest continuation.
            seed: of the sampling.
        """
        room = self.writer.engine.max_seq_len
        ids = encode_prompt(self.tokenizer, prompt)[-max(int(room * (1 - MIN_FREE_SHARE)), 1) :]
        found = self.writer.engine.generate(
            [ids],
            Sampling(max_new_tokens, temperature, exit_threshold=exit_threshold, stop_ids=STOP_IDS),
            seed=[crc32(f"{seed} {prompt.rstrip()}".encode())],
        )[0]
        return self._steps(ids, found)

    def text(self, steps: list[TokenStep]) -> str:
        """Return the completion that tokens stand for, with the newline behind the prompt."""
        ids = [step.token_id for step in steps if step.token_id != END_OF_TEXT_ID]
        return "\n" + self.tokenizer.decode(ids)

    @torch.no_grad()
    def _steps(self, ids: list[int], found: Generation) -> list[TokenStep]:
        n = len(found.tokens)
        if not n:
            return []
        tokens = torch.tensor([ids + found.tokens])[:, :-1]
        output = self.model(tokens)
        leaving = exit_pdf(output.exit_prob)[:, 0, -n:].T.tolist()
        last = torch.stack([hidden[0, -n:] for hidden in output.hidden])  # (R, n, D)
        at = torch.tensor(found.exit_loops) - 1
        chosen = last[at, torch.arange(n)]  # (n, D)
        chances = torch.softmax(self.model.logits(chosen).float(), -1)
        best = chances.topk(min(N_CANDIDATES, chances.shape[-1]), -1)
        return [
            TokenStep(
                token_id=token,
                text="" if token == END_OF_TEXT_ID else self.tokenizer.decode([token]),
                loop=found.exit_loops[i],
                entropy_nats=found.token_entropy[i],
                probability=float(chances[i, token]),
                candidates=tuple(
                    (self._name(j), p)
                    for j, p in zip(best.indices[i].tolist(), best.values[i].tolist(), strict=True)
                ),
                exit_pdf=tuple(leaving[i]),
            )
            for i, token in enumerate(found.tokens)
        ]

    def _name(self, token: int) -> str:
        return "end of text" if token == END_OF_TEXT_ID else self.tokenizer.decode([token])


def open_explainer(checkpoint: Path, hardware: HardwareConfig) -> Explainer:
    """Load a checkpoint for looking at; errors as in `load_with_tokenizer`."""
    loaded = load_with_tokenizer(checkpoint)
    writer = make_writer(loaded.model, loaded.tokenizer_path, hardware)
    return Explainer(loaded.model.eval(), writer)
