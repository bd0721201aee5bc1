"""The desk: programs come in, verdicts go out; in between they are known, wait, or are in flight.

Input: `Program`s in any number, one after the other. A program that is in the cache, or that is
equal to one already seen, costs nothing. `policy.py` decides what waits for a batch and what is
sent alone; full batches become jobs for the crew, a few per worker at a time. A job whose worker
died is sent again, and after three tries its programs are UNJUDGED with the cause.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace

from nanochat_lib.config import VerifyConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.records import Level, Program, Verdict, Verified
from nanochat_lib.rust.judging.batch import Unit
from nanochat_lib.rust.judging.cache import VerdictCache, cache_key
from nanochat_lib.rust.judging.crew import Crew, lost_worker_errors
from nanochat_lib.rust.judging.jobs import Answer, Job, Surroundings, surroundings_here, unjudged
from nanochat_lib.rust.judging.policy import policy_of
from nanochat_lib.rust.syntax import parses

MAX_SOURCE_BYTES = 1_000_000
SMALLEST_BATCH = 16  # below this, sharing rustc's start saves too little to wait for
MAX_TRIES = 3
IN_FLIGHT_PER_WORKER = 4
_LOOK_AT_WORKERS_S = 15.0  # how long nothing may come back before somebody looks

Placed = tuple[int, Verified]  # with the place in the input


@dataclass
class Desk:
    """One call of `verify`: what was asked, what is known, and what is on its way."""

    level: Level
    config: VerifyConfig
    surroundings: Surroundings
    crew: Crew
    cache: VerdictCache | None
    batch_size: int
    n_taken: int = 0
    buckets: dict[tuple[str, bool], list[Unit]] = field(default_factory=dict)
    in_flight: dict[Future[Answer], tuple[Job, int]] = field(default_factory=dict)  # and the try
    askers: dict[str, list[tuple[int, Program]]] = field(default_factory=dict)  # by cache key
    known: dict[str, Verified] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)  # unit key -> cache key

    def take(self, program: Program) -> Iterator[Placed]:
        """Answer for a program, or put it in line; yield whatever is ready."""
        place = self.n_taken
        key = cache_key(program, self.level, self.config, self.surroundings)
        self.n_taken += 1
        known = self._look_up(key, program)
        if known is not None:
            yield place, known
        elif key in self.askers:
            self.askers[key].append((place, program))
        else:
            self.askers[key] = [(place, program)]
            self.keys[place] = key
            self._put_in_line(Unit(place, program, policy_of(program.source, program.edition)))
        yield from self.collect(most_in_flight=IN_FLIGHT_PER_WORKER * self.crew.n_workers)

    def _look_up(self, key: str, program: Program) -> Verified | None:
        if key in self.known:
            return replace(self.known[key], program_id=program.program_id)
        cached = self.cache.get(key, program, self.level) if self.cache else None
        return cached or _without_rustc(program, self.level)

    def _put_in_line(self, unit: Unit) -> None:
        policy = unit.policy
        reason = policy.run_alone if self.level is Level.TEST else policy.compile_alone
        unit.is_alone = bool(reason)
        if unit.is_alone:
            self._send([unit])
            return
        is_library = policy.kind == "lib" and self.level is not Level.CHECK
        waiting = self.buckets.setdefault((unit.program.edition, is_library), [])
        waiting.append(unit)
        if len(waiting) >= self.batch_size:
            self._send(waiting)
            waiting.clear()

    def send_all(self) -> None:
        """Send the batches that are not full: no more programs will come."""
        for waiting in self.buckets.values():
            size = max(SMALLEST_BATCH, -(-len(waiting) // self.crew.n_workers))
            for start in range(0, len(waiting), size):
                self._send(waiting[start : start + size])
        self.buckets.clear()

    def _send(self, units: list[Unit]) -> None:
        self._submit(Job(tuple(units), self.level, self.config, self.surroundings), n_tries=1)

    def _submit(self, job: Job, *, n_tries: int) -> None:
        self.in_flight[self.crew.submit(job)] = (job, n_tries)

    def collect(self, *, most_in_flight: int) -> Iterator[Placed]:
        """Yield verdicts of finished jobs; wait while more than this many are in flight."""
        while len(self.in_flight) > most_in_flight:
            finished, _ = wait(
                self.in_flight, timeout=_LOOK_AT_WORKERS_S, return_when=FIRST_COMPLETED
            )
            if not finished:
                self.crew.require_workers()
            for future in finished:
                yield from self._settle(future)

    def _settle(self, future: Future[Answer]) -> Iterator[Placed]:
        """Yield the verdicts of a job that came back, or send it once more."""
        job, n_tries = self.in_flight.pop(future)
        try:
            answer = future.result()
        except lost_worker_errors() as error:
            self.crew.require_workers()
            if n_tries < MAX_TRIES:
                self._submit(job, n_tries=n_tries + 1)
                return
            answer = Answer(unjudged(job, f"its worker died, {n_tries} times: {error}"))
        if answer.refusal is not None:
            answer = Answer(unjudged(job, self._cause_of(answer.refusal)))
        yield from self._answer(answer)

    def _cause_of(self, refusal: WorkbenchError) -> str:
        """Return why programs stay unjudged: the compiler of this machine changed meanwhile.

        Raises:
            WorkbenchError: the refusal itself, when nothing changed here: the user must mend it.
        """
        try:
            now = surroundings_here()
        except WorkbenchError as gone:
            return f"the compiler was removed meanwhile: {gone}"
        if now == self.surroundings:
            raise refusal
        return f"the compiler was replaced meanwhile: at first {self.surroundings}, now {now}"

    def _answer(self, answer: Answer) -> Iterator[Placed]:
        judged = [(self.keys.pop(key), verified) for key, verified in answer.verdicts.items()]
        for key, verified in judged:  # all are kept before anybody may stop listening
            self._keep(key, verified)
        for key, verified in judged:
            for place, program in self.askers.pop(key):
                yield place, replace(verified, program_id=program.program_id)

    def _keep(self, key: str, verified: Verified) -> None:
        self.known[key] = verified
        if self.cache:
            self.cache.put(key, verified)

    def leave(self) -> None:
        """Give up what nobody waits for any more; what is judged already goes into the cache."""
        for answer in self.crew.leave(self.in_flight):
            for unit_key, verified in answer.verdicts.items():
                self._keep(self.keys[unit_key], verified)


def _without_rustc(program: Program, level: Level) -> Verified | None:
    """Return the verdict on text that rustc need not or cannot be asked about."""
    verdict, detail = None, ""
    if len(program.source) > MAX_SOURCE_BYTES:
        verdict = Verdict.RESOURCE_LIMIT
        detail = f"rustc was not asked: more than {MAX_SOURCE_BYTES:,} characters"
    elif "\0" in program.source:
        verdict, detail = Verdict.PARSE_ERROR, "the text holds a NUL character"
    elif any("\ud800" <= char <= "\udfff" for char in _not_ascii(program.source)):
        verdict, detail = Verdict.PARSE_ERROR, "the text is not valid UTF-8"
    elif level is Level.SYNTAX and parses(program.source):
        verdict = Verdict.PASSED
    if verdict is None:
        return None
    return Verified(program.program_id, verdict, level, detail=detail)


def _not_ascii(text: str) -> str:
    return "" if text.isascii() else text
