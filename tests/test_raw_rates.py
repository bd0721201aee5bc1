"""The raw rates of the toolchain's documentation: sums that agree, in the known range."""

import pytest

from nanochat_lib.data.build import raw_rates
from nanochat_lib.errors import WorkbenchError


def test_a_sample_of_the_documentation_compiles_as_far_as_it_is_stable():
    rows = raw_rates.raw_rates(150)
    total = rows[-1]
    assert total["book"] == "all"
    assert {"std", "book"} <= {row["book"] for row in rows}
    for name in set(total) - {"book"}:
        assert total[name] == sum(row[name] for row in rows[:-1])
    assert 140 <= total["n_judged"] <= 320
    assert total["n_stable_compiled"] <= total["n_compiled"] <= total["n_judged"]
    assert total["n_stable_compiled"] / total["n_stable"] > 0.85
    assert total["n_stable"] < total["n_judged"]


def test_a_toolchain_without_documentation_is_named(monkeypatch):
    class Bare:
        docs = None

    monkeypatch.setattr(raw_rates, "find_toolchain", Bare)
    with pytest.raises(WorkbenchError, match="rust-docs"):
        raw_rates.raw_rates()
