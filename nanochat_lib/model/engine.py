"""The decode engine: a LoopLM generates text on the CPU from packed ternary weights.

In: prompts as token ids; out: tokens, the loop at which each left, and the entropy of the choice.
Many prompts: each of `threads` worker threads runs the decode program (decoding/generate.py) on its
own group of sequences, without synchronisation inside a step. Fewer prompts than threads: all
threads run it together as a team, which shares the rows of every product. Used by MaxRL rollouts,
evaluation and the tour.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

import kernels
from kernels.compile import LEVELS
from kernels.placement import bind_to, copy_share, node_of, numa_nodes
from kernels.team import Team, new_team
from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.hardware.detect import usable_cores
from nanochat_lib.model.decoding.forward import ALL_LOOPS, forward, head
from nanochat_lib.model.decoding.generate import Job, generate
from nanochat_lib.model.decoding.packed import (
    State,
    Weights,
    load_weights,
    new_state,
    new_weights,
    shape_of,
    team_states,
)
from nanochat_lib.model.looplm import LoopLM

# Spreads (seed, sequence) over 64 bits. Not splitmix64's own step, by which the numbers of a
# sequence move on: with that, sequence i drew at token t what sequence i + 1 drew at token t - 1.
_SPREAD = 0xD1342543DE82EF95


@dataclass(frozen=True)
class Generation:
    """What one prompt led to; a stop token, when reached, is the last of `tokens`."""

    tokens: list[int]
    exit_loops: list[int]  # loops run for each token, from 1
    token_entropy: list[float]  # nats, of the model's own distribution (temperature 1)
    passes: int  # passes over all loops that the tokens took: fewer than tokens when drafts held


@dataclass(frozen=True)
class Draft:
    """Let the first loops draft tokens that all loops then verify together; the text is the same.

    `tokens` are drafted by `loops` of the model's loops, at least one less than all.
    """

    loops: int = 1
    tokens: int = 4


class Engine:
    """Packed weights of one model, and one set of caches and buffers per thread."""

    def __init__(
        self, config: ModelConfig, weights: Weights, states: list[State], options: _Options
    ) -> None:
        self.config = config
        self.max_seq_len = options.max_seq_len
        self.backend = _backend()
        self._options = options
        self._shape = shape_of(config, options.packing)
        self._weights = weights
        self._states = states
        self._team: list[State] | None = None  # made when there are fewer prompts than threads
        self._pool = ThreadPoolExecutor(options.threads, thread_name_prefix="engine")
        if options.nodes:
            self._weights = self._near_their_threads(weights)

    @classmethod
    def from_model(
        cls,
        model: LoopLM,
        *,
        max_batch: int = 64,
        max_seq_len: int | None = None,
        threads: int | None = None,
        packing: str = "2bit",
        draft: Draft | None = None,
        numa: bool = False,
    ) -> Engine:
        """Pack `model` and allocate caches.

        Args:
            max_batch: sequences decoded at the same time; more prompts wait their turn.
            max_seq_len: longest prompt plus completion; by default the model's.
            threads: worker threads; by default the CPUs this process may use.
            packing: "2bit", or "base3", a fifth smaller: faster only where weights come from
                memory at every token, slower where they stay in a cache.
            draft: draft with fewer loops and verify with all; by default off.
            numa: bind threads to NUMA nodes, and each thread's share of the weights to its node.

        Raises:
            WorkbenchError: a parameter is not finite, a limit makes no sense for the model, or the
                model has variants.
        """
        config = model.config
        config.require_stock("The packed engine")
        length = max_seq_len or config.max_seq_len
        threads = threads or usable_cores()
        _check_limits(config, max_batch, length, threads)
        options = _Options(length, threads, packing, draft or Draft(0, 0), _nodes(numa))
        if draft and not (1 <= draft.loops < config.n_loops and draft.tokens >= 1):
            raise WorkbenchError(
                f"Drafting takes 1 to {config.n_loops - 1} of this model's {config.n_loops} loops "
                f"and at least 1 token, found {draft}."
            )
        if packing not in kernels.PACKINGS:
            known = ", ".join(kernels.PACKINGS)
            raise WorkbenchError(f"There is no packing {packing!r}; known: {known}.")
        weights = new_weights(config, length, packing)
        load_weights(weights, model, packing)
        n_slots, size = -(-max_batch // threads), {"n_drafts": options.draft.tokens}
        states = [
            new_state(config, length, n_slots, packing=packing, **size)
            for _ in range(min(threads, max_batch))
        ]
        return cls(config, weights, states, options)

    def reload(self, model: LoopLM) -> None:
        """Pack the current parameters of a model of the same shape again, in place.

        Raises:
            WorkbenchError: the model has another shape, or a parameter is not finite.
        """
        if model.config != self.config:
            raise WorkbenchError(
                f"The engine was made for {self.config!r} and cannot take {model.config!r}. "
                "Make a new one with Engine.from_model."
            )
        load_weights(self._weights, model, self._options.packing)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        stop_ids: frozenset[int] = frozenset(),
        exit_threshold: float = 1.0,
    ) -> list[Generation]:
        """Continue every prompt.

        Args:
            prompts: token ids; the longest must fit into `max_seq_len`. Generation ends at a stop
                token (kept), after `max_new_tokens`, or when the sequence is full.
            temperature: 0 takes the most likely token.
            top_k: tokens kept, 0 for all. top_p: probability mass kept of those.
            seed: one number (sequence i then uses a hash of seed and i), or one per prompt, which
                makes a completion independent of the other prompts and of their order.
            exit_threshold: leave the loops when exit_cdf reaches it; 1 runs all loops.

        Raises:
            WorkbenchError: an argument is out of range.
        """
        self.check(prompts, max_new_tokens, temperature, (top_k, top_p), exit_threshold)
        if exit_threshold < 1 and self._options.draft.loops:
            raise WorkbenchError(
                f"exit_threshold {exit_threshold} leaves loops early, but this engine drafts and "
                "verifies with all loops: take one or the other."
            )
        if not prompts:
            return []
        job = Job(
            prompts=np.array([token for prompt in prompts for token in prompt], dtype=np.int64),
            starts=np.cumsum([0, *map(len, prompts)], dtype=np.int64),
            owners=np.repeat(np.arange(len(prompts)), list(map(len, prompts))),
            twins=_twins(prompts),
            seeds=seeds_of(seed, len(prompts)),
            is_stop=np.isin(np.arange(self.config.vocab_size), list(stop_ids)),
            tokens=np.zeros((len(prompts), max_new_tokens), np.int64),
            exit_loops=np.zeros((len(prompts), max_new_tokens), np.int64),
            entropy=np.zeros((len(prompts), max_new_tokens), np.float32),
            lengths=np.zeros(len(prompts), np.int64),
            passes=np.zeros(len(prompts), np.int64),
            interrupt=np.zeros(1, np.bool_),
            temperature=float(temperature),
            top_k=int(top_k),
            top_p=float(top_p),
            exit_threshold=float(exit_threshold) if exit_threshold < 1 else ALL_LOOPS,
            max_seq_len=self.max_seq_len,
            draft_loops=self._options.draft.loops,
            draft_tokens=self._options.draft.tokens,
        )
        self._run(job)
        return [
            Generation(
                job.tokens[i, :n].tolist(),
                job.exit_loops[i, :n].tolist(),
                job.entropy[i, :n].tolist(),
                int(job.passes[i]),
            )
            for i, n in enumerate(job.lengths.tolist())
        ]

    def logits(
        self, tokens: Sequence[int], *, n_loops: int | None = None, exit_threshold: float = 1.0
    ) -> np.ndarray:
        """Return the logits float32 (T, V) after every token of one sequence."""
        self.check([tokens], 1, 0.0, (0, 1.0), exit_threshold)
        shape, ids = self._shape._replace(n_loops=n_loops or self._shape.n_loops), np.array(tokens)
        if not 1 <= shape.n_loops <= self.config.n_loops:
            raise WorkbenchError(f"n_loops {n_loops} is not within 1 to {self.config.n_loops}.")
        threshold = float(exit_threshold) if exit_threshold < 1 else ALL_LOOPS
        level, state, weights = LEVELS[self.backend], self._states[0], self._weights
        out, team = np.empty((len(ids), self.config.vocab_size), np.float32), new_team(1)[0]
        for start in range(0, len(ids), len(state.token)):
            n = min(len(state.token), len(ids) - start)
            state.token[:n], state.slot[:n] = ids[start : start + n], 0
            state.position[:n] = np.arange(start, start + n)
            forward(level, team, shape, weights, state, n, (0, shape.n_loops), threshold)
            head(team, shape, weights, state, n)
            out[start : start + n] = state.logits[:n, : self.config.vocab_size]
        return out

    def _run(self, job: Job) -> None:
        """Hand out the sequences: in groups to single threads, or all to a team of all threads.

        A single thread takes the next group when it is done; next() on their common iterator is
        atomic under the interpreter's lock. Members of a team go through the same groups. A team
        has no more threads than there are cores: its threads wait for each other.
        """
        n, n_slots = len(job.lengths), len(self._states[0].k_cache)
        size = min(self._options.threads, usable_cores())
        if size > min(n, len(self._states)):
            states, members, group = self._team_states(size), new_team(size), n_slots
            firsts = [iter(range(0, n, group)) for _ in states]
        else:
            states, group = self._states, min(n_slots, -(-n // len(self._states)))
            alone, groups = new_team(1)[0], iter(range(0, n, group))
            members, firsts = [alone] * len(states), [groups] * len(states)

        def work(place: int, state: State, team: Team, groups: Iterator[int]) -> None:
            self._bind(place, len(states))
            for first in groups:
                part, level = (first, min(first + group, n)), LEVELS[self.backend]
                generate(level, team, self._shape, self._weights, state, job, part)

        parts = zip(range(len(states)), states, members, firsts, strict=True)
        running = [self._pool.submit(work, *part) for part in parts]
        try:
            for worker in running:
                worker.result()
        finally:
            job.interrupt[0] = True  # after an interrupt, workers stop at their next token
            for worker in running:
                worker.exception()

    def _bind(self, place: int, size: int) -> None:
        """Bind the calling thread, one of `size`, to its node."""
        if self._options.nodes:
            bind_to(node_of(place, size, self._options.nodes))

    def _near_their_threads(self, weights: Weights) -> Weights:
        """Return the weights, every product's rows on the node of the thread that reads them."""
        names = ("qkv", "o", "gate_up", "down")
        matrices = {name: getattr(weights, name) for name in names}
        new = {name: np.empty_like(matrix.packed) for name, matrix in matrices.items()}

        def copy(team: Team) -> None:
            self._bind(team.rank, team.size)
            for name in names:
                copy_share(matrices[name].packed, new[name], team)

        members = new_team(min(self._options.threads, usable_cores()))
        for job in [self._pool.submit(copy, team) for team in members]:
            job.result()
        placed = {name: matrix._replace(packed=new[name]) for name, matrix in matrices.items()}
        return weights._replace(**placed)

    def _team_states(self, size: int) -> list[State]:
        if self._team is None:
            self._team = team_states(self._states[0], size)
        return self._team

    def check(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float,
        top: tuple[int, float],
        exit_threshold: float,
    ) -> None:
        """Raise WorkbenchError unless `generate` can take these arguments."""
        vocab_size, (top_k, top_p) = self.config.vocab_size, top
        for number, prompt in enumerate(prompts):
            if not 1 <= len(prompt) <= self.max_seq_len:
                raise WorkbenchError(
                    f"Prompt {number} has {len(prompt)} tokens; this engine takes 1 to "
                    f"{self.max_seq_len}. Shorten it or give max_seq_len to Engine.from_model."
                )
            if min(prompt) < 0 or max(prompt) >= vocab_size:
                raise WorkbenchError(
                    f"Prompt {number} holds a token outside 0 to {vocab_size - 1}: "
                    "it was encoded with another tokenizer than the model's."
                )
        ranges = {
            "max_new_tokens": (max_new_tokens, 1, float("inf")),
            "temperature": (temperature, 0, float("inf")),
            "top_k": (top_k, 0, float("inf")),
            "top_p": (top_p, 1e-9, 1),
            "exit_threshold": (exit_threshold, 0, 1),
        }
        for name, (value, low, high) in ranges.items():
            if not low <= value <= high:
                raise WorkbenchError(f"{name} must lie between {low} and {high}, found {value}.")


@dataclass(frozen=True)
class _Options:
    max_seq_len: int
    threads: int
    packing: str
    draft: Draft
    nodes: tuple[frozenset[int], ...]  # to bind threads to; empty: do not


def _nodes(wanted: bool) -> tuple[frozenset[int], ...]:
    """Return the nodes to place weights on: none unless wanted, and there are several."""
    nodes = numa_nodes() if wanted else []
    if wanted and len(nodes) < 2:
        logging.getLogger(__name__).warning(
            "NUMA placement was asked for, but this machine shows %d node: nothing to place.",
            len(nodes),
        )
    return tuple(nodes) if len(nodes) > 1 else ()


def _check_limits(config: ModelConfig, max_batch: int, length: int, threads: int) -> None:
    if length > config.max_seq_len:
        raise WorkbenchError(
            f"max_seq_len {length} exceeds the model's {config.max_seq_len}. "
            "Extend the context first (stage 4)."
        )
    if min(max_batch, length, threads) < 1:
        raise WorkbenchError(
            f"max_batch {max_batch}, max_seq_len {length} and threads {threads} "
            "must all be at least 1."
        )


def _backend() -> str:
    """Return the kernel level of the decode program; the reference is not one of them."""
    try:
        name = kernels.choose_backend()
    except ValueError as error:
        raise WorkbenchError(f"NANOCHAT_KERNEL: {error}") from error
    return name if name in LEVELS else "generic"


def _twins(prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """Return for each prompt the nearest earlier one that is equal, or -1."""
    latest: dict[tuple[int, ...], int] = {}
    found = np.full(len(prompts), -1, np.int64)
    for i, prompt in enumerate(prompts):
        key = tuple(prompt)
        found[i] = latest.get(key, -1)
        latest[key] = i
    return found


def seeds_of(seed: int | Sequence[int], n: int) -> np.ndarray:
    """Return one 64-bit seed per prompt; the hash keeps neighbouring seeds apart."""
    if isinstance(seed, Sequence | np.ndarray):
        seeds = [int(value) + 1 for value in seed]
    else:
        seeds = [(int(seed) << 32) + i + 1 for i in range(n)]
    if len(seeds) != n:
        raise WorkbenchError(f"{len(seeds)} seeds were given for {n} prompts: give one per prompt.")
    return np.array([value * _SPREAD % (1 << 64) for value in seeds], dtype=np.uint64)
