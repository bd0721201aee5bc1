"""Many sequences through the decode step on a GPU (gpu.py), as many at a time as it has slots.

In: prompts, seeds, sampling; out: a `Generation` of each. A sequence that has ended gives its slot
to the next while the others go on, so that rollouts of many prompts keep the batch full to the end
(continuous batching). A token depends on its sequence's seed, place and past alone: which slot and
company it had changes no bit. A prompt whose keys a slot still holds, of a sequence at work or of
one that has ended, is copied from there instead of read: samples of one prompt read it once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from nanochat_lib.model.decoding.gpu import Step
from nanochat_lib.model.request import Generation

# Steps between two looks at who has ended. A look waits for the GPU, some tenths of a step; a slot
# that has ended stands empty for half of this many steps.
LOOK_EVERY = 8
_STATE = ("token", "position", "place", "finished", "passes")


def generate(
    step: Step, prompts: Sequence[Sequence[int]], seeds: np.ndarray, limit: int,
    sampling: tuple[float, tuple[int, float], float], repeat: Callable[[Callable], Callable],
) -> list[Generation]:  # fmt: skip
    """Continue every prompt.

    Args:
        step: the arrays and launches.
        prompts: token ids, none longer than the step's sequences.
        seeds: uint64, one per prompt.
        limit: most tokens of each, at most the step's width.
        sampling: temperature, (top_k, top_p), exit_threshold (1 where the step drafts).
        repeat: makes of a step what can be called again and again: on a GPU, its graph.

    Raises:
        RuntimeError: steps add no tokens.
    """
    batch = _Batch(step, prompts, seeds, repeat(step.read_prompt))
    step.put(limit=[limit])
    is_drafted = step.sizes.draft_loops > 0
    once = repeat(
        lambda: step.draft_and_verify(*sampling[:2]) if is_drafted else step.next_token(*sampling)
    )
    n_steps = min(LOOK_EVERY, limit)
    for _ in range(len(prompts) * -(-limit // n_steps) + 1):
        if not batch.refill():
            return batch.found
        for _ in range(n_steps):
            once()
    raise RuntimeError("steps on the GPU end no text: what they launch does not run")


class _Batch:
    """Who sits in which slot, who waits, and what came out."""

    def __init__(
        self,
        step: Step,
        prompts: Sequence[Sequence[int]],
        seeds: np.ndarray,
        read: Callable[[], None],
    ) -> None:
        n_slots = step.sizes.n_sequences
        self.step, self.prompts, self.seeds, self.read = step, prompts, seeds, read
        self.waiting = deque(range(len(prompts)))
        self.sitting: list[int | None] = [None] * n_slots  # the sequence of each slot
        self.held: list[tuple[int, ...]] = [()] * n_slots  # what its first keys are of
        self.found: list[Generation | None] = [None] * len(prompts)

    def refill(self) -> bool:
        """Collect what has ended, seat who waits; return whether anybody sits."""
        finished = self.step.fetch("finished")
        ended = [i for i, who in enumerate(self.sitting) if who is not None and finished[i]]
        n_free = sum(who is None for who in self.sitting) + len(ended)
        if not ended and not (n_free and self.waiting):  # the usual look costs one copy
            return n_free < len(self.sitting)
        state = {name: self.step.fetch(name)[: len(self.sitting)] for name in _STATE}
        if ended:
            self._collect(ended, state)
        free = [i for i, who in enumerate(self.sitting) if who is None][: len(self.waiting)]
        if free:
            self._seat(free, state)
        return any(who is not None for who in self.sitting)

    def _collect(self, ended: list[int], state: dict[str, np.ndarray]) -> None:
        arrays = [self.step.fetch(name) for name in ("tokens", "exit_loops", "entropies")]
        for slot in ended:
            n, is_drafted = int(state["place"][slot]), self.step.sizes.draft_loops > 0
            passes = int(state["passes"][slot]) if is_drafted else n
            parts = (array[slot, :n].tolist() for array in arrays)
            self.found[self.sitting[slot]] = Generation(*parts, passes=passes)
            self.sitting[slot] = None

    def _seat(self, slots: list[int], state: dict[str, np.ndarray]) -> None:
        """Give each of these slots the next that waits; `state` is that of the others."""
        for slot in slots:
            self.sitting[slot] = self.waiting.popleft()
        self._bring_keys(slots)
        for slot in slots:
            prompt = self.prompts[self.sitting[slot]]
            state["token"][slot], state["position"][slot] = prompt[-1], len(prompt) - 1
            state["place"][slot] = state["passes"][slot] = 0
        state["finished"][:] = [who is None for who in self.sitting]
        seeds = [0 if who is None else self.seeds[who] for who in self.sitting]
        seeds = np.array(seeds, np.uint64).view(np.int64)
        self.step.put(slot=range(len(self.sitting)), seed=seeds, **state)

    def _bring_keys(self, slots: list[int]) -> None:
        """Have the keys of all prompt tokens but the last in the cache: kept, read or copied."""
        wanted = {slot: tuple(self.prompts[self.sitting[slot]][:-1]) for slot in slots}
        wanted = {slot: prompt for slot, prompt in wanted.items() if self.held[slot] != prompt}
        for slot in wanted:
            self.held[slot] = ()
        read, copied = [], []
        for slot, prompt in wanted.items():
            if prompt and prompt in self.held:
                copied.append((slot, self.held.index(prompt)))
            else:
                read.append(slot)
            self.held[slot] = prompt
        self._read(read)
        for slot, source in copied:
            self.step.copy_keys(slot, source, len(wanted[slot]))

    def _read(self, slots: list[int]) -> None:
        """Pass over prompt tokens of these slots, as many a pass as there are rows."""
        step = self.step
        rows = [(t, slot, i) for slot in slots for i, t in enumerate(self.held[slot])]
        for first in range(0, len(rows), step.n_rows):
            part = rows[first : first + step.n_rows]
            n_free = step.n_rows - len(part)
            token, slot, position = (
                list(values) for values in zip(*part, *[(0, 0, 0)] * n_free, strict=True)
            )
            step.put(token=token, slot=slot, position=position,
                     finished=[0] * len(part) + [1] * n_free)  # fmt: skip
            self.read()
