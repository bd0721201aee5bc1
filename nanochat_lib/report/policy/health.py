"""The health of stage 3, and its number on top of the report.

Input: a `RunData`. Output: `Check`s (one per alarm of the guards) and a `KeyNumber`.
"""

from __future__ import annotations

from nanochat_lib.records import Metric
from nanochat_lib.report.content.blocks import BAD, GOOD, UNKNOWN, WATCH, Check, KeyNumber
from nanochat_lib.report.content.readings import share
from nanochat_lib.report.policy.changes import rate_of
from nanochat_lib.report.policy.costs import MOST_WAITING, wait_share
from nanochat_lib.report.policy.guards import ADVICE, MEANINGS, alarms_between, guards_of
from nanochat_lib.report.run_data import RunData

STAGE = "maxrl"


def key_policy(run: RunData) -> KeyNumber | None:
    """Return the share of held-out tests passed after the stage, with its interval."""
    before, after = (rate_of(run.summary(STAGE).get(w, {}), "pass") for w in ("before", "after"))
    if not before or not after:
        return None
    count = f"{after.n_hits:,} of {after.n:,}"
    detail = (
        f"{count} programs, {after.n_tasks} tasks; 95%: {after.low:.1%} to {after.high:.1%}; "
        f"{before.value:.1%} before"
    )
    label, anchor = "TinyRust passed after MaxRL", "maxrl-before-after"
    return KeyNumber(label, after.value, f"{after.value:.1%}", count, detail, anchor)


def policy_checks(run: RunData) -> list[Check]:
    """Return the checks of stage 3; what was not measured is `unknown`."""
    return [_check_variety(run), *_check_guards(run), _check_unjudged(run), _check_waiting(run)]


def _check_variety(run: RunData) -> Check:
    name, quantity = "Policy variety", "distinct bodies among sampled programs"
    band = "above 20%; below 5% the policy repeats itself"
    last = run.last(STAGE, Metric.DISTINCT_BODIES)
    if last is None:
        return Check(name, quantity, "not measured", band, UNKNOWN, "")
    state = GOOD if last >= 0.2 else WATCH if last >= 0.05 else BAD
    return Check(name, quantity, f"{last:.0%}", band, state, ADVICE["one_body"])


def _check_guards(run: RunData) -> list[Check]:
    """Return one check per alarm, and one for all guards when there is none."""
    name, quantity = "Reward hacks", "ways to please the reward without solving the task"
    band = "each within its own band (see the table of guards)"
    summary = run.summary(STAGE)
    guards = guards_of(summary)
    if not guards:
        return [Check(name, quantity, "not measured", band, UNKNOWN, "")]
    found = [
        _guard_check(guard.name, guard.value, guard.bound, BAD)
        for guard in guards
        if guard.is_alarm
    ]
    by_name = {guard.name: guard for guard in guards}
    for guard, (most, step) in alarms_between(summary).items():
        value = f"{most:.1%} at update {step:,}; {by_name[guard].share:.1%} at the end"
        found.append(_guard_check(guard, value, by_name[guard].bound, WATCH))
    value = f"no alarm of {len(guards)} guards"
    return found or [Check(name, quantity, value, band, GOOD, "")]


def _guard_check(guard: str, value: str, band: str, state: str) -> Check:
    name, meaning = f"Reward hack: {guard.replace('_', ' ')}", MEANINGS.get(guard, guard)
    return Check(name, meaning, value, band, state, ADVICE.get(guard, "read the programs"))


def _check_unjudged(run: RunData) -> Check:
    name, quantity = "Judging in MaxRL", "sampled programs that could not be judged"
    band = "below 1%; they are in no reward and no rate"
    summary = run.summary(STAGE)
    if not summary.get("n_rollouts"):
        return Check(name, quantity, "not measured", band, UNKNOWN, "")
    n, n_unjudged = summary["n_rollouts"], summary.get("n_unjudged", 0)
    rate = n_unjudged / n
    state = GOOD if rate < 0.01 else WATCH if rate < 0.05 else BAD
    advice = (
        "raise verify.compile_cpu_s or verify.memory_mib; run nanochat doctor "
        "(docs/troubleshooting.md#verification-fails)"
    )
    return Check(name, quantity, share(n_unjudged, n), band, state, advice)


def _check_waiting(run: RunData) -> Check:
    name, quantity = "Waiting for the judge", "share of the time of MaxRL's updates"
    band = f"at most {MOST_WAITING:.0%}"
    waited = wait_share(run.summary(STAGE))
    if waited is None:
        return Check(name, quantity, "not measured", band, UNKNOWN, "")
    advice = (
        "raise maxrl.prompts_per_step over maxrl.prompts_per_part, so that parts are judged while "
        "others are sampled; give the judge more cores, or a cluster (verify.cluster)"
    )
    state = GOOD if waited <= MOST_WAITING else WATCH
    return Check(name, quantity, f"{waited:.0%}", band, state, advice)
