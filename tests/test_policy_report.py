"""The report of stage 3: what is shown, what is only said, which alarms ring, what it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from maxrl_factory import guard, maxrl_summary, old_summary, point, rates
from run_factory import HOSTILE, make_run, write_json

from nanochat_lib.records import Metric
from nanochat_lib.report.content.blocks import BAD, GOOD, UNKNOWN, WATCH, Check
from nanochat_lib.report.pages.run import write_run_report
from nanochat_lib.report.policy import changes, costs, figures, guards, looks, readings
from nanochat_lib.report.policy.health import policy_checks
from nanochat_lib.report.policy.section import policy_section
from nanochat_lib.report.results import results_table
from nanochat_lib.report.run_data import RunData, load_run
from nanochat_lib.runs import METRIC_SCHEMA

EMPTY = pl.DataFrame(schema=METRIC_SCHEMA)


def with_summary(summary: dict[str, Any], metrics: pl.DataFrame = EMPTY) -> RunData:
    """Return a run whose stage 3 ended with this summary."""
    return RunData(Path("made_up"), {"config": {"maxrl": {}}}, metrics, {"maxrl": summary})


def two_looks(before: tuple[int, float, float], after: tuple[int, float, float]) -> dict[str, Any]:
    """Return a summary of 100 programs of 25 tasks: (passed, low, high) of both looks."""
    return {
        when: {"n_judged": 100, "n_tasks": 25, "n_passed": n, "pass_rate_low": low,
               "pass_rate_high": high}
        for when, (n, low, high) in (("before", before), ("after", after))
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ((20, 0.1, 0.3), (50, 0.4, 0.6), "intervals are separate: higher"),
        ((50, 0.4, 0.6), (20, 0.1, 0.3), "intervals are separate: lower"),
        ((20, 0.1, 0.3), (35, 0.3, 0.4), "intervals overlap: not shown"),
        ((20, 0.1, 0.3), (35, 0.25, 0.45), "intervals overlap: not shown"),
    ],
)
def test_a_change_is_shown_only_where_intervals_are_apart(
    before: tuple[int, float, float], after: tuple[int, float, float], says: str
) -> None:
    summary = two_looks(before, after)
    (change,) = changes.changes(summary, "pass")
    assert change.says == says
    assert says in readings.read_change(summary, "pass")
    label = figures.before_after(summary, "pass").layout.annotations[0].text
    assert ("separate" in label) == ("separate" in says)


def test_an_interval_without_width_proves_nothing() -> None:
    """0 of 100 against 6 of 100: a bootstrap of equal values would call that apart."""
    (change,) = changes.changes(two_looks((0, 0.0, 0.0), (6, 0.02, 0.1)), "pass")
    assert change.before.low == 0
    # the score interval of 0 of 25 solved: z^2 / (n + z^2)
    assert change.before.high == pytest.approx(1.96**2 / (25 + 1.96**2))
    assert not change.is_separate


def test_parts_are_levels_in_order_then_other_splits() -> None:
    summary = maxrl_summary()
    for when in ("before", "after"):
        row = summary[when]["by_level"]["1"]
        summary[when]["by_level"] = {"10": row, "2": row, "1": row}
    parts = [change.part for change in changes.changes(summary, "compile")]
    assert parts == ["all, new parameters", "level 1", "level 2", "level 10", "new family"]


def test_paired_rises_are_shown_where_zero_is_outside() -> None:
    found = {(rise.part, rise.kind): rise.says for rise in changes.rises(maxrl_summary())}
    assert found["all", "pass"] == "a rise is shown"
    assert found["level 2", "pass"] == "the interval holds zero: not shown"
    one_task = {"gains": {"pass_rate": {"rise": 1.0, "low": 1.0, "high": 1.0, "n_tasks": 1}}}
    assert "not shown" in changes.rises(one_task)[0].says
    falls = {"gains": {"pass_rate": {"rise": -0.3, "low": -0.4, "high": -0.2, "n_tasks": 9}}}
    assert changes.rises(falls)[0].says == "a fall is shown"


def test_whiskers_end_where_the_intervals_do() -> None:
    summary = two_looks((20, 0.1, 0.35), (50, 0.4, 0.6))
    before, after = figures.before_after(summary, "pass").data
    for trace, (value, low, high) in ((before, (0.2, 0.1, 0.35)), (after, (0.5, 0.4, 0.6))):
        assert trace.x[0] == value
        assert trace.x[0] + trace.error_x.array[0] == pytest.approx(high)
        assert trace.x[0] - trace.error_x.arrayminus[0] == pytest.approx(low)
        assert "of 100 programs, 25 tasks" in trace.hovertext[0]


def test_a_policy_that_narrows_is_told_by_pass_at_k() -> None:
    summary = maxrl_summary()
    assert "narrowed" not in readings.read_pass_at(summary)
    summary["after"]["pass_at"]["4"] |= {"rate": 0.2, "low": 0.1, "high": 0.3}
    assert "narrowed" in readings.read_pass_at(summary)
    figure = figures.pass_at_curves(summary)
    assert list(figure.data[1].customdata) == [1, 2, 4]
    assert "n = 24 tasks" in figure.data[1].name


def test_outcomes_fill_all_judged_programs() -> None:
    found = maxrl_summary()["looks"]
    found[1]["mistakes"]["verdicts"]["TIMEOUT"] = 5
    found[1]["mistakes"]["verdicts"]["TEST_FAILED"] -= 5
    figure = looks.outcomes(found)
    for i in range(3):
        assert sum(trace.y[i] for trace in figure.data) == pytest.approx(1)
    by_name = {trace.name: list(trace.y) for trace in figure.data}
    assert by_name["passed"] == pytest.approx([10 / 48, 17 / 48, 26 / 48])
    assert by_name["limits and others"] == pytest.approx([0, 5 / 48, 0])


def test_mistakes_are_shares_of_judged_programs() -> None:
    found = maxrl_summary()["looks"]
    by_name = {trace.name: list(trace.y) for trace in looks.error_classes(found).data}
    assert by_name["types (rustc)"] == pytest.approx([9 / 48, 5 / 48, 2 / 48])
    assert by_name["tests failed"] == pytest.approx([20 / 48, 21 / 48, 18 / 48])
    codes = [trace.name for trace in looks.error_codes(found).data]
    assert codes == ["E0308", "E0425"]


def test_a_frozen_gates_loops_are_said_not_to_be_used() -> None:
    found = maxrl_summary()["looks"]
    text = readings.read_line(found, "maxrl-loops")
    assert "frozen" in text
    assert "all loops run" in text
    assert "0.35 to 0.23 nats per token" in readings.read_line(found, "maxrl-entropy")


def test_a_game_with_the_shaped_reward_is_visible() -> None:
    found = maxrl_summary()["looks"]
    names = [trace.name for trace in looks.reward_parts(found).data]
    assert "shaped: complexity" in names
    assert "the reward of this run" in names
    assert "only shown, not used" in readings.read_reward(found, "tests")
    assert "it is the reward of this run" in readings.read_reward(found, "shaped")


def check_of(run: RunData, name: str) -> Check:
    """Return the one check of a name."""
    found = [check for check in policy_checks(run) if check.name == name]
    assert len(found) == 1, [check.name for check in policy_checks(run)]
    return found[0]


def test_every_alarm_is_a_check_with_something_to_try() -> None:
    summary = maxrl_summary()
    summary["guards"]["copied_prompt"] = guard(9, 96, 9 / 96, 0.02, alarm=True)
    summary["guards"]["entropy_collapse"] = guard(0.01, 0.36, 0.01, 0.02, alarm=True)
    run = with_summary(summary)
    copied = check_of(run, "Reward hack: copied prompt")
    assert (copied.state, copied.band) == (BAD, "at most 2%")
    assert "9 of 96" in copied.value
    assert copied.advice
    collapse = check_of(run, "Reward hack: entropy collapse")
    assert collapse.band == "at least 0.02 nats"
    assert "0.01 nats per token" in collapse.value
    assert not [check for check in policy_checks(run) if check.name == "Reward hacks"]
    text = readings.read_guards(summary)
    assert text.startswith("Alarm of 2 of 6 guards: ")
    assert "copied prompt (9.4% (9 of 96 programs))" in text


def test_an_alarm_that_passed_is_to_be_watched() -> None:
    """1 of 48 empty bodies at update 6 is above the band of 2 %, though the end is sound."""
    run = with_summary(maxrl_summary())
    passed = check_of(run, "Reward hack: empty body")
    assert passed.state == WATCH
    assert "2.1% at update 6" in passed.value


def test_no_alarm_is_one_good_check() -> None:
    summary = maxrl_summary() | {"looks": []}
    assert check_of(with_summary(summary), "Reward hacks").state == GOOD
    assert check_of(with_summary({}), "Reward hacks").state == UNKNOWN


def test_every_guard_that_can_be_counted_is_explained() -> None:
    measures = pytest.importorskip("nanochat_lib.train.rl.measures")
    counted = {*measures.BANDS, "one_body", "length_collapse", "entropy_collapse"}
    assert counted <= set(guards.MEANINGS)
    assert counted <= set(guards.ADVICE)


def test_unjudged_programs_are_counted_apart() -> None:
    assert check_of(with_summary(maxrl_summary()), "Judging in MaxRL").value == "0.4% (3 of 768)"
    many = with_summary(maxrl_summary() | {"n_unjudged": 80})
    assert check_of(many, "Judging in MaxRL").state == BAD


def test_parts_of_the_time_add_up_and_waiting_bounds_the_stage() -> None:
    summary = maxrl_summary()
    parts = costs.time_parts(summary)
    assert sum(part.seconds for part in parts) == pytest.approx(60)
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert parts[-1].label == "everything else"
    assert costs.wait_share(summary) == pytest.approx(0.06)
    assert costs.read_bound(summary).startswith("Sampling programs bounds this stage")
    assert check_of(with_summary(summary), "Waiting for the judge").state == GOOD
    summary["seconds"] |= {"wait_s": 30.0, "updates_s": 86.4}
    assert costs.read_bound(summary).startswith("Judging bounds this stage")
    assert "more than the 10%" in costs.read_bound(summary)
    assert check_of(with_summary(summary), "Waiting for the judge").state == WATCH


def test_families_are_drawn_by_level_and_untried_ones_are_in_the_table(tmp_path: Path) -> None:
    figure = figures.curriculum(maxrl_summary("x"))
    assert [trace.name for trace in figure.data] == ["your tasks", "level 1", "level 2"]
    run = load_run(make_run(tmp_path / "runs", stages=("maxrl",)))
    blocks = {block.anchor: block for block in policy_section(run).blocks}
    table = blocks["maxrl-curriculum"].table
    assert table.filter(pl.col("family") == "never_tried")["passed lately"].item() == "not tried"
    assert table.height == 4
    assert blocks["maxrl-curriculum"].is_open
    assert blocks["maxrl-guards"].is_open


def test_many_families_are_all_in_the_table() -> None:
    summary = maxrl_summary()
    row = summary["curriculum"][0]
    summary["curriculum"] = [row | {"family": f"f{i}"} for i in range(60)]
    blocks = {b.anchor: b for b in policy_section(with_summary(summary)).blocks}
    assert blocks["maxrl-curriculum"].table.height == 60


def test_a_run_of_an_older_version_has_its_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs", stages=("maxrl",))
    write_json(folder / "artifacts" / "maxrl" / "summary.json", old_summary())
    section = policy_section(load_run(folder))
    drawn = [block.anchor for block in section.blocks]
    assert drawn[:3] == ["maxrl-before-after", "maxrl-compiled", "maxrl-progress"]
    assert not [block for block in section.blocks if block.missing]
    assert "maxrl-kl" not in drawn
    assert write_run_report(folder, self_contained=False).exists()
    table = results_table(folder, "maxrl")
    assert table.filter(pl.col("number") == "held-out tests passed, after")["n"].item()


def test_a_run_that_stopped_in_between_has_its_curves(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs", stages=("maxrl",))
    (folder / "artifacts" / "maxrl" / "summary.json").unlink()
    blocks = {block.anchor: block for block in policy_section(load_run(folder)).blocks}
    assert blocks["maxrl-before-after"].missing
    assert not blocks["maxrl-progress"].missing
    assert not blocks["maxrl-tokens-per-s"].missing


def test_held_out_points_have_their_intervals() -> None:
    rows = [
        ("r", "maxrl", s, str(Metric.HELD_OUT_PASS_RATE), v, 0.0) for s, v in ((0, 0.2), (6, 0.4))
    ]
    metrics = pl.DataFrame(rows, schema=METRIC_SCHEMA, orient="row")
    found = {"looks": [point(0, "before", 10, 30), point(6, "after", 20, 30)]}
    (trace,) = figures.progress(metrics, found).data
    assert list(trace.y) == pytest.approx([10 / 48, 20 / 48])
    assert list(trace.error_y.array) == pytest.approx([0.08, 0.08])
    (plain,) = figures.progress(metrics).data
    assert list(plain.y) == [0.2, 0.4]


def test_nothing_measured_gives_a_reason() -> None:
    for figure in (
        figures.before_after({}, "pass"),
        figures.before_after({}, "compile"),
        figures.paired_rises({}),
        figures.pass_at_curves({}),
        figures.progress(EMPTY),
        figures.time_bars({}),
        figures.seconds(EMPTY),
        figures.throughput(EMPTY, Metric.COMPLETION_TOKENS_S),
        figures.throughput(EMPTY, Metric.PROGRAMS_S),
        figures.curriculum({}),
        looks.outcomes([]),
        looks.error_classes([]),
        looks.error_codes([]),
        looks.reward_parts([]),
        looks.guard_shares([]),
        *(looks.policy_lines([], anchor) for anchor in looks.POLICY_LINES),
    ):
        assert figure.layout.meta["missing"]
        assert figure.layout.title.text
        assert not figure.data


def test_text_of_models_and_users_is_escaped_in_figures() -> None:
    figure = figures.curriculum(maxrl_summary("<b onmouseover=x>"))
    shown = "".join(text for trace in figure.data for text in trace.hovertext)
    assert "<b" not in shown
    assert "&lt;b" in shown
    found = maxrl_summary()["looks"]
    found[0]["mistakes"]["codes"] = {"<a href='x'>E1</a>": 3}
    names = [trace.name for trace in looks.error_codes(found).data]
    assert "&lt;a href='x'&gt;E1&lt;/a&gt;" in names


def test_a_hostile_reason_shows_as_text(tmp_path: Path) -> None:
    """`why_before` may hold a panic message, which a program chooses."""
    folder = make_run(tmp_path / "runs", stages=("maxrl",))
    text = write_run_report(folder, self_contained=False).read_text(encoding="utf-8")
    assert HOSTILE.split("\n")[1].strip() not in text
    assert text.count("&lt;script&gt;window.hacked = 1&lt;/script&gt;") >= 3


def test_results_give_rates_with_intervals_and_counts(tmp_path: Path) -> None:
    table = results_table(make_run(tmp_path / "runs", stages=("maxrl",)), "maxrl")
    rows = {row["number"]: row for row in table.to_dicts()}
    passed = rows["held-out tests passed, after"]
    assert passed["measured"].startswith("53.1% [45.1% to 61.1%]")
    assert "21.9%" in passed["measured"]
    assert "separate: higher" in passed["measured"]
    assert passed["n"] == "96 programs of 24 tasks"
    assert rows["pass@4 on held-out tasks, after"]["n"] == "24 tasks"
    assert rows["alarms of reward hacks"]["measured"] == "none"
    assert rows["could not be judged"]["measured"] == "0.4% (3 of 768)"


def test_rates_of_a_look_without_judged_programs_are_none() -> None:
    assert changes.rate_of(rates(0, 0, 1, 1) | {"n_judged": 0}, "pass") is None
