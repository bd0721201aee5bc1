"""Outcomes that are not deterministic are found by judging twice, and declared."""

from __future__ import annotations

from nanochat_lib.config import RunConfig, VerifyConfig
from nanochat_lib.evals.judging import judge_completions
from nanochat_lib.evals.results import episode_rows, failure_tables
from nanochat_lib.evals.tasks import builtin_tasks
from nanochat_lib.records import Level, Program, Verdict, Verified
from nanochat_lib.rust.gates.repeat import find_flaky
from nanochat_lib.rust.verify import verify

# Every process draws new keys for its hash maps: half of the runs pass.
COIN = (
    "fn heads() -> bool {{ use std::hash::BuildHasher; use std::sync::OnceLock; "
    "static SIDE: OnceLock<bool> = OnceLock::new(); *SIDE.get_or_init(|| "
    "std::collections::hash_map::RandomState::new().hash_one({0}) % 2 == 0) }}\n"
)
TOSS = COIN + "#[test] fn toss() {{ assert!(heads()); }}\n"
# In a shared process a coin is tossed again whenever a neighbour fails, so most end as failures.
ALONE = VerifyConfig(batch_size=1)
N_COINS = 14  # that all of them fall alike twice has the chance of one in 16,384
STABLE = {
    "passes": "#[test] fn t() { assert!(true); }",
    "fails": "#[test] fn t() { assert!(false); }",
    "panics": 'fn main() { panic!("always"); }',
    "ends": "fn main() {}",
}
BROKEN = "#[test] fn t() { missing() }"


def test_coins_are_found_and_the_rest_is_called_stable() -> None:
    programs = [Program(f"coin{i}", TOSS.format(i)) for i in range(N_COINS)]
    programs += [Program(name, source) for name, source in STABLE.items()]
    programs.append(Program("broken", BROKEN))
    found = find_flaky(programs, verify(programs, "test", config=ALONE), config=ALONE)
    assert True in found[:N_COINS]
    assert found[N_COINS:-1] == [False] * len(STABLE)
    assert found[-1] is None


def test_more_repeats_find_a_single_coin() -> None:
    coin = [Program("coin", TOSS.format(0))]
    first = verify(coin, "test", config=ALONE)
    assert find_flaky(coin, first, config=ALONE, n_repeats=N_COINS) == [True]


def test_a_program_that_never_ends_is_stable() -> None:
    config = VerifyConfig(run_cpu_s=0.3)
    endless = [Program("endless", "fn main() { loop {} }")]
    first = verify(endless, "test", config=config)
    assert first[0].verdict is Verdict.TIMEOUT
    assert find_flaky(endless, first, config=config) == [False]


def test_what_did_not_run_is_not_judged_again() -> None:
    program = Program("p", "fn main() {}")
    for verdict, level in (
        (Verdict.PASSED, Level.BUILD),
        (Verdict.COMPILE_ERROR, Level.TEST),
        (Verdict.UNJUDGED, Level.TEST),
    ):
        assert find_flaky([program], [Verified("p", verdict, level)]) == [None]
    assert find_flaky([], []) == []


def test_an_evaluation_counts_and_names_them() -> None:
    task = builtin_tasks()[0]
    right = task.canonical_solution
    texts = [right]
    for number in range(N_COINS):
        coin = COIN.format(number).strip()
        texts.append(f"\n    {coin}\n    if !heads() {{ panic!() }}{right}")
    completions = [(task.task_id, text) for text in texts]
    episodes = judge_completions([task], completions, RunConfig(verify=ALONE), in_depth=True)
    assert episodes[0].is_flaky is False
    rows = episode_rows("x", "builtin", [task], episodes)
    (gates,) = failure_tables(rows)["semantics"]
    assert gates["n_repeated"] == len(texts)
    assert 1 <= gates["n_flaky"] == sum(row["is_flaky"] for row in rows)
    plain = judge_completions([task], completions[:1], RunConfig())
    assert (plain[0].is_flaky, plain[0].semantics) == (None, None)
