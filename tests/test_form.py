"""The settings form: it accepts what `load_profile` accepts, and says why it does not."""

from __future__ import annotations

import pytest

from nanochat_lib.config import RunConfig, load_profile
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.report.widgets.form import SettingsForm, parse_lines, value_of
from nanochat_lib.stages import STAGES


@pytest.fixture
def form() -> SettingsForm:
    """Return the form of stage 2 on the laptop profile."""
    return SettingsForm("laptop", {"seed": 3}, STAGES["pretrain"].sections)


def test_untouched_it_changes_nothing(form: SettingsForm) -> None:
    assert form.is_valid
    assert form.overrides == {"seed": 3}


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_form_with_every_setting(stage: str) -> None:
    found = SettingsForm("laptop", {}, STAGES[stage].sections)
    for section in STAGES[stage].sections:
        info = RunConfig.model_fields[section.split(".")[0]]
        names = info.annotation.model_fields if "." not in section else ()
        for name in names:
            assert f"{section}.{name}" in found._fields


def test_every_shown_value_reads_back_as_itself() -> None:
    base = load_profile("laptop")
    form = SettingsForm("laptop", {}, ("data", "corpus", "eval", "hardware", "maxrl"))
    for key, field in form._fields.items():
        typed, wanted = field.value, value_of(base, key)
        assert (tuple(typed) if isinstance(typed, list) else typed) == wanted, key


def test_typed_values_become_overrides_that_load(form: SettingsForm) -> None:
    form.set("pretrain.total_steps", "100")
    form.set("pretrain.optimizer", "adamw")
    form.set("pretrain.learning_rate", "2e-3")
    assert form.overrides == {
        "seed": 3,
        "pretrain.total_steps": 100,
        "pretrain.optimizer": "adamw",
        "pretrain.learning_rate": 0.002,
    }
    assert load_profile("laptop", form.overrides).pretrain.learning_rate == 0.002


def test_what_is_not_typed_follows_what_is(form: SettingsForm) -> None:
    form.set("pretrain.total_steps", "100")
    assert form._fields["pretrain.warmup_steps"].input.value == "5"
    form.set("pretrain.warmup_steps", "35")
    assert form.overrides["pretrain.warmup_steps"] == 35
    form.set("pretrain.total_steps", "700")
    assert form.overrides == {"seed": 3}


@pytest.mark.parametrize(
    ("key", "text", "complaint"),
    [
        ("pretrain.total_steps", "0", "greater than or equal to 1, found 0"),
        ("pretrain.total_steps", "many", "valid integer"),
        ("pretrain.learning_rate", "", "valid number"),
        ("pretrain.total_steps", "2.5", "found 2.5"),
        ("pretrain.tinyrust_share", "1.5", "less than or equal to 1"),
    ],
)
def test_a_wrong_value_is_named_beside_its_field(
    form: SettingsForm, key: str, text: str, complaint: str
) -> None:
    form.set(key, text)
    assert not form.is_valid
    assert complaint in form._fields[key].complaint
    with pytest.raises(WorkbenchError):
        load_profile("laptop", form.overrides)


def test_values_that_contradict_each_other_are_both_named(form: SettingsForm) -> None:
    form.set("pretrain.batch_size", "7")
    assert "batch_size 7 must be a multiple of micro_batch_size 8" in form.error
    form.reset()
    assert form.is_valid


def test_other_settings_by_name_and_the_nearest_key(form: SettingsForm) -> None:
    form._more.value = "verify.run_cpu_s = 4\neval.k = [1]\n"
    assert form.is_valid
    assert form.overrides == {"seed": 3, "verify.run_cpu_s": 4, "eval.k": [1]}
    form._more.value = "verify.run_cpus = 4"
    assert "Did you mean 'verify.run_cpu_s'?" in form.error
    form._more.value = "verify.run_cpu_s"
    assert "expected lines of key = value" in form.error


def test_a_hostile_value_stays_text(form: SettingsForm) -> None:
    form.set("pretrain.total_steps", "<script>alert(1)</script>")
    shown = form._fields["pretrain.total_steps"]._note.value
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_lines_are_flattened() -> None:
    assert parse_lines("a.b = 1\n[c]\nd = 'x'") == {"a.b": 1, "c.d": "x"}
