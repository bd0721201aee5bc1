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
from nanochat_lib.model.request import (
    Draft,
    Generation,
    Sampling,
    check_limits,
    check_prompts,
    check_same_shape,
    seeds_of,
)


class Engine:
    """Packed weights of one model, and one set of caches and buffers per thread."""

    def __init__(
        self, config: ModelConfig, weights: Weights, states: list[State], options: _Options
    ) -> None:
        self.config = config
        self.max_seq_len = options.max_seq_len
        self.use("amx")
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
        check_limits(config, max_batch, length, threads)
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
        return cls(config, weights, _new_states(config, options, max_batch), options)

    @classmethod
    def from_weights(
        cls, config: ModelConfig, weights: Weights, *, max_batch: int, max_seq_len: int
    ) -> Engine:
        """Allocate caches for weights that somebody else packed, in 2 bits, and may reload."""
        options = _Options(max_seq_len, usable_cores(), "2bit", Draft(0, 0), ())
        return cls(config, weights, _new_states(config, options, max_batch), options)

    def use(self, at_most: str) -> None:
        """Compute with the best kernels of this machine up to a level from now on; the same bits.

        Raises:
            WorkbenchError: there is no such level, or NANOCHAT_KERNEL names one that is not here.
        """
        try:
            self.backend = kernels.best_level(at_most)
        except ValueError as error:
            raise WorkbenchError(f"The decode engine has no kernels: {error}.") from error
        self.runs_on = f"cpu ({self.backend})"

    def reload(self, model: LoopLM) -> None:
        """Pack the current parameters of a model of the same shape again, in place.

        Raises:
            WorkbenchError: the model has another shape, or a parameter is not finite.
        """
        check_same_shape(model, self.config)
        load_weights(self._weights, model, self._options.packing)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int | Sequence[int] = 0,
    ) -> list[Generation]:
        """Continue every prompt until it stops, or the sequence is full.

        Args:
            prompts: token ids; the longest must fit into `max_seq_len`.
            sampling: how tokens are drawn, and when a text ends.
            seed: one number (sequence i then uses a hash of seed and i), or one per prompt, which
                makes a completion independent of the other prompts and of their order.

        Raises:
            WorkbenchError: a prompt does not fit, or the seeds do not match the prompts.
        """
        check_prompts(prompts, self.config.vocab_size, self.max_seq_len)
        if sampling.exit_threshold < 1 and self._options.draft.loops:
            raise WorkbenchError(
                f"exit_threshold {sampling.exit_threshold} leaves loops early, but this engine "
                "drafts and verifies with all loops: take one or the other."
            )
        if not prompts:
            return []
        n, n_tokens = len(prompts), sampling.max_new_tokens
        job = Job(
            prompts=np.array([token for prompt in prompts for token in prompt], dtype=np.int64),
            starts=np.cumsum([0, *map(len, prompts)], dtype=np.int64),
            owners=np.repeat(np.arange(n), list(map(len, prompts))),
            twins=_twins(prompts),
            seeds=seeds_of(seed, n),
            is_stop=sampling.is_stop(self.config.vocab_size),
            tokens=np.zeros((n, n_tokens), np.int64),
            exit_loops=np.zeros((n, n_tokens), np.int64),
            entropy=np.zeros((n, n_tokens), np.float32),
            lengths=np.zeros(n, np.int64),
            passes=np.zeros(n, np.int64),
            interrupt=np.zeros(1, np.bool_),
            temperature=float(sampling.temperature),
            top_k=int(sampling.top_k),
            top_p=float(sampling.top_p),
            exit_threshold=_threshold(sampling),
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
        check_prompts([tokens], self.config.vocab_size, self.max_seq_len)
        threshold = _threshold(Sampling(1, exit_threshold=exit_threshold))
        shape, ids = self._shape._replace(n_loops=n_loops or self._shape.n_loops), np.array(tokens)
        if not 1 <= shape.n_loops <= self.config.n_loops:
            raise WorkbenchError(f"n_loops {n_loops} is not within 1 to {self.config.n_loops}.")
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


@dataclass(frozen=True)
class _Options:
    max_seq_len: int
    threads: int
    packing: str
    draft: Draft
    nodes: tuple[frozenset[int], ...]  # to bind threads to; empty: do not


def _new_states(config: ModelConfig, options: _Options, max_batch: int) -> list[State]:
    """Return one state for each thread, with slots for `max_batch` sequences together."""
    n_slots = -(-max_batch // options.threads)
    sizes = {"n_drafts": options.draft.tokens, "packing": options.packing}
    n_states = min(options.threads, max_batch)
    return [new_state(config, options.max_seq_len, n_slots, **sizes) for _ in range(n_states)]


def _nodes(wanted: bool) -> tuple[frozenset[int], ...]:
    """Return the nodes to place weights on: none unless wanted, and there are several."""
    nodes = numa_nodes() if wanted else []
    if wanted and len(nodes) < 2:
        logging.getLogger(__name__).warning(
            "NUMA placement was asked for, but this machine shows %d node: nothing to place.",
            len(nodes),
        )
    return tuple(nodes) if len(nodes) > 1 else ()


def _twins(prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """Return for each prompt the nearest earlier one that is equal, or -1."""
    latest: dict[tuple[int, ...], int] = {}
    found = np.full(len(prompts), -1, np.int64)
    for i, prompt in enumerate(prompts):
        key = tuple(prompt)
        found[i] = latest.get(key, -1)
        latest[key] = i
    return found


def _threshold(sampling: Sampling) -> float:
    return float(sampling.exit_threshold) if sampling.exit_threshold < 1 else ALL_LOOPS
