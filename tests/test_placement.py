"""NUMA placement, with made-up nodes: who runs where, and that what is copied is the same."""

import os
from pathlib import Path

import numpy as np
import pytest
from test_engine import small_model, some_prompts

from kernels import placement
from kernels.team import new_team
from nanochat_lib.model import engine as engine_module
from nanochat_lib.model.engine import Engine
from nanochat_lib.model.request import Sampling

GREEDY = Sampling(10, temperature=0)

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system binds no threads"
)


def test_nodes_are_the_usable_processors_of_each(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 9, 10})
    for node, text in ((0, "0-1,4\n"), (1, "2,8-10\n"), (2, "5-7\n"), (10, "\n")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(text)
    assert placement.numa_nodes(tmp_path) == [frozenset({0, 1}), frozenset({2, 9, 10})]
    assert placement.numa_nodes(tmp_path / "absent") == []


def test_neighbours_in_a_team_share_a_node():
    nodes = [frozenset({0}), frozenset({1})]
    assert [placement.node_of(rank, 4, nodes) for rank in range(4)] == [
        *nodes[:1] * 2,
        *nodes[1:] * 2,
    ]


def test_shares_of_all_threads_are_the_whole():
    source = np.arange(2 * 7 * 3).reshape(2, 7, 3)
    target = np.zeros_like(source)
    for team in new_team(3):
        placement.copy_share(source, target, team)
    assert np.array_equal(source, target)


def test_an_engine_on_two_nodes_binds_its_threads_and_writes_the_same_text(monkeypatch):
    cpus = frozenset(os.sched_getaffinity(0))
    nodes, bound = [cpus, cpus | {10_000}], []
    monkeypatch.setattr(engine_module, "numa_nodes", lambda: nodes)
    monkeypatch.setattr(engine_module, "bind_to", bound.append)
    model, prompts = small_model(), some_prompts(1)
    wanted = Engine.from_model(model, max_batch=1, threads=1).generate(prompts, GREEDY)
    placed = Engine.from_model(model, max_batch=2, threads=2, numa=True)
    assert bound == nodes
    assert placed.generate(prompts, GREEDY) == wanted
    assert len(bound) == 4
    bound.clear()
    placed.generate(some_prompts(4), Sampling(2, temperature=0))  # each thread its own
    assert sorted(bound, key=nodes.index) == nodes
    placed.reload(model)
    assert placed.generate(prompts, GREEDY) == wanted


def test_one_node_is_a_message_and_nothing_else(monkeypatch, caplog):
    monkeypatch.setattr(engine_module, "numa_nodes", lambda: [frozenset({0})])
    monkeypatch.setattr(engine_module, "bind_to", lambda cpus: pytest.fail("bound"))
    Engine.from_model(small_model(), max_batch=1, threads=1, numa=True)
    assert "shows 1 node: nothing to place" in caplog.text
