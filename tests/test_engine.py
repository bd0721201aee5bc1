"""The engine against the torch model, and early exit against a plain NumPy model."""

import math

import numpy as np
import pytest
import torch

from nanochat_lib.config import ModelConfig
from nanochat_lib.errors import WorkbenchError
from nanochat_lib.model import engine as engine_module
from nanochat_lib.model.decoding.sampling import distribution, draw, exp32, uniform
from nanochat_lib.model.engine import Engine
from nanochat_lib.model.looplm import LoopLM
from nanochat_lib.model.request import Draft, Generation, Sampling

SMALL = {
    "vocab_size": 300, "d_model": 48, "n_layers": 2, "n_loops": 3, "n_heads": 4, "n_kv_heads": 2,
    "d_ff": 72, "max_seq_len": 96,
}  # fmt: skip


def small_model(**changes) -> LoopLM:
    """Return a model whose logits and exits vary: the fresh head and gate are nearly constant."""
    # not checked: real vocabularies have at least all bytes
    model = LoopLM(ModelConfig.model_construct(**(SMALL | changes)), seed=1).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        model.head.weight.normal_(std=0.4, generator=generator)
        model.embed.weight.normal_(std=1.0, generator=generator)
        model.exit_gate.weight.normal_(std=0.4, generator=generator)
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.fixture(autouse=True, scope="module")
def _one_torch_thread():
    """Tiny products on many threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def engine(model):
    return Engine.from_model(model, max_batch=8, threads=2)


def some_prompts(n: int, longest: int = 40, vocab_size: int = 300) -> list[list[int]]:
    rng = np.random.default_rng(11)
    return [rng.integers(0, vocab_size, rng.integers(1, longest)).tolist() for _ in range(n)]


@torch.no_grad()
def torch_logits(model: LoopLM, tokens: list[int], n_loops: int | None = None) -> np.ndarray:
    output = model(torch.tensor([tokens]), n_loops)
    return model.logits(output.hidden[-1])[0].numpy()


def is_greedy(model: LoopLM, prompt: list[int], tokens: list[int]) -> bool:
    """Return whether torch, reading prompt and tokens at once, would have chosen each token."""
    choices = torch_logits(model, [*prompt, *tokens[:-1]]).argmax(axis=1)
    return choices[len(prompt) - 1 :].tolist() == tokens


def relative_errors(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return per position the largest difference over the largest logit."""
    return np.abs(found - wanted).max(axis=1) / np.abs(wanted).max(axis=1)


@pytest.mark.parametrize("n_loops", [1, 2, 3])
def test_logits_equal_the_torch_model_at_every_depth(model, engine, n_loops):
    """Most positions agree to 1e-4, the head's 16 bits. Float rounding differs, so now and then an
    activation lies on the other side of a half and its code is one off, which later positions of
    a sequence see: hence many short sequences, and a loose bound on the worst.
    """
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(40):
        tokens = rng.integers(0, 300, 6).tolist()
        wanted = torch_logits(model, tokens, n_loops)
        errors.extend(relative_errors(engine.logits(tokens, n_loops=n_loops), wanted))
    assert np.median(errors) < 5e-5
    assert np.mean(np.array(errors) < 1e-4) > 0.85
    assert max(errors) < 0.1


@pytest.mark.parametrize("changes", [{"n_kv_heads": 4}, {"n_kv_heads": 1}, {"d_model": 64}])
def test_float_model_logits_equal_torch_closely(changes):
    """Without quantisation nothing can flip: every position agrees."""
    model = small_model(ternary=False, **changes)
    tokens = np.random.default_rng(1).integers(0, 300, 70).tolist()
    found = Engine.from_model(model, max_batch=1, threads=1).logits(tokens)
    assert relative_errors(found, torch_logits(model, tokens)).max() < 1e-4


def test_greedy_text_is_that_of_the_torch_model(model, engine):
    prompts = some_prompts(6, longest=30)
    found = engine.generate(prompts, Sampling(30, temperature=0))
    for prompt, generation in zip(prompts, found, strict=True):
        assert len(generation.tokens) == 30
        assert is_greedy(model, prompt, generation.tokens)
        assert generation.exit_loops == [3] * 30


def test_token_entropy_is_that_of_the_distribution(model, engine):
    prompt = some_prompts(1)[0]
    generation = engine.generate([prompt], Sampling(1, 0.5, top_k=2))[0]
    log_p = torch.log_softmax(torch.from_numpy(torch_logits(model, prompt)[-1]).double(), dim=0)
    assert math.isclose(
        generation.token_entropy[0], float(-(log_p.exp() * log_p).sum()), rel_tol=1e-3
    )


class PlainLoopLM:
    """One token at a time in NumPy float64, with the early exit and the shared cache spelled out.

    Independent of the engine: no packing, no batching, no compaction, lists as caches.
    """

    def __init__(self, model: LoopLM):
        self.config = model.config
        self.w = {name: value.double().numpy() for name, value in model.state_dict().items()}
        self.cache: dict[tuple[int, int], list] = {
            (r, i): [] for r in range(self.config.n_loops) for i in range(self.config.n_layers)
        }

    def _norm(self, x, name):
        return x / np.sqrt(np.mean(x * x) + self.config.norm_eps) * self.w[name]

    def _turn(self, heads, position):
        half = np.arange(self.config.head_size // 2)
        angle = position * self.config.rope_base ** (-2 * half / self.config.head_size)
        turned = (heads[:, ::2] + 1j * heads[:, 1::2]) * np.exp(1j * angle)
        return np.stack([turned.real, turned.imag], axis=-1).reshape(heads.shape)

    def _layer(self, x, loop, layer, position):
        c, prefix = self.config, f"layers.{layer}."
        w = {k.split(".")[2]: v for k, v in self.w.items() if k.startswith(prefix)}
        normed = self._norm(x, f"layers.{layer}.attn_norm.weight")
        q, k, v = ((w[name] @ normed).reshape(-1, c.head_size) for name in ("q", "k", "v"))
        history = self.cache[loop, layer]
        history.append((self._turn(k, position), v))
        attended = []
        for head, query in enumerate(self._turn(q, position)):
            kv_head = head // (c.n_heads // c.n_kv_heads)
            scores = np.array([keys[kv_head] @ query for keys, _ in history]) / c.head_size**0.5
            weight = np.exp(scores - scores.max())
            values = np.array([values[kv_head] for _, values in history])
            attended.append(weight / weight.sum() @ values)
        x = x + w["o"] @ np.concatenate(attended)
        normed = self._norm(x, f"layers.{layer}.ffn_norm.weight")
        gate, up = w["gate"] @ normed, w["up"] @ normed
        return x + w["down"] @ (gate / (1 + np.exp(-gate)) * up)

    def read(self, token: int, position: int, threshold: float) -> tuple[np.ndarray, int]:
        """Return the logits after one token and the loop (from 1) at which it left."""
        x, survival = self.w["embed.weight"][token], 1.0
        for loop in range(self.config.n_loops):
            for layer in range(self.config.n_layers):
                x = self._layer(x, loop, layer, position)
            x = self._norm(x, "final_norm.weight")
            gate = float(self.w["exit_gate.weight"][0] @ x + self.w["exit_gate.bias"][0])
            survival *= 1 - 1 / (1 + math.exp(-gate))
            if loop + 1 == self.config.n_loops or 1 - survival >= threshold:
                break
        for later in range(loop + 1, self.config.n_loops):
            for layer in range(self.config.n_layers):
                self.cache[later, layer].append(self.cache[loop, layer][-1])
        return self.w["head.weight"] @ x, loop + 1


@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.8, 1.0])
def test_early_exit_skips_loops_and_shares_the_last_cache(threshold):
    """Prompts run all loops, generated tokens leave early; later tokens read shared caches."""
    model = small_model(ternary=False)
    engine = Engine.from_model(model, max_batch=4, threads=2)
    prompts = some_prompts(5, longest=12)
    found = engine.generate(prompts, Sampling(25, 0, exit_threshold=threshold))
    depths = set()
    for prompt, generation in zip(prompts, found, strict=True):
        plain = PlainLoopLM(model)
        for position, token in enumerate(prompt[:-1]):
            plain.read(token, position, threshold=2.0)
        token = prompt[-1]
        for i in range(25):
            logits, depth = plain.read(token, len(prompt) - 1 + i, threshold)
            token = int(logits.argmax())
            assert (generation.tokens[i], generation.exit_loops[i]) == (token, depth), i
            depths.add(depth)
    assert depths == ({3} if threshold == 1 else {1, 2, 3} if threshold > 0.5 else depths)


def test_text_does_not_depend_on_the_batch_or_the_threads(model, engine):
    prompts = some_prompts(20)
    sampling = Sampling(20, exit_threshold=0.6, top_p=0.95)
    seeds = [1000 + i for i in range(20)]
    together = engine.generate(prompts, sampling, seed=seeds)
    backwards = engine.generate(prompts[::-1], sampling, seed=seeds[::-1])[::-1]
    assert together == backwards
    single = Engine.from_model(model, max_batch=1, threads=1)
    for i in (0, 7, 19):
        assert single.generate([prompts[i]], sampling, seed=[seeds[i]])[0] == together[i]
    other = engine.generate(prompts, sampling, seed=5)
    assert together != other
    assert engine.generate(prompts, sampling, seed=5) == other


@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 1}, {"ternary": False}])
def test_a_team_of_threads_writes_the_text_of_one(changes, monkeypatch):
    """Fewer prompts than threads: rows and heads are shared, also when heads are fewer."""
    monkeypatch.setattr(engine_module, "usable_cores", lambda: 5)
    model, prompts = small_model(**changes), some_prompts(2)
    one = Engine.from_model(model, max_batch=2, threads=1)
    for threads in (2, 5):
        team = Engine.from_model(model, max_batch=8, threads=threads)
        for sampling in (Sampling(20, 0), Sampling(20, top_p=0.9, exit_threshold=0.6)):
            wanted = one.generate(prompts, sampling, seed=[5, 6])
            assert team.generate(prompts, sampling, seed=[5, 6]) == wanted
            assert team.generate(prompts[:1], sampling, seed=[5]) == wanted[:1]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_prompt_that_stands_several_times_is_read_once(model, engine, threads, monkeypatch):
    """Samples of one prompt: the text of reading it every time, also across groups of slots."""
    first, second, third = some_prompts(3, longest=60)
    prompts = [first, second, first, first, [7], second, [7], third, first]
    sharing = Engine.from_model(model, max_batch=4, threads=threads)
    found = sharing.generate(prompts, Sampling(15), seed=range(9))
    monkeypatch.setattr(engine_module, "_twins", lambda prompts: np.full(len(prompts), -1))
    assert sharing.generate(prompts, Sampling(15), seed=range(9)) == found
    assert found[0].tokens != found[2].tokens


def test_a_team_has_no_more_threads_than_cores(model, monkeypatch):
    sizes = []
    new_team = engine_module.new_team
    monkeypatch.setattr(engine_module, "new_team", lambda n: sizes.append(n) or new_team(n))
    monkeypatch.setattr(engine_module, "usable_cores", lambda: 2)
    many = Engine.from_model(model, max_batch=4, threads=100)
    greedy = Sampling(5, temperature=0)
    assert many.generate([[1, 2]], greedy) == many.generate([[1, 2]] * 4, greedy)[:1]
    assert sizes == [2, 1]


def test_weights_of_1_6_bits_give_the_same_text(model):
    prompts = some_prompts(5)
    wanted = Engine.from_model(model, max_batch=4, threads=1).generate(
        prompts, Sampling(20), seed=2
    )
    engine = Engine.from_model(model, max_batch=4, threads=2, packing="base3")
    assert engine.generate(prompts, Sampling(20), seed=2) == wanted
    engine.reload(model)
    assert engine.generate(prompts, Sampling(20), seed=2) == wanted


def without_passes(generations: list[Generation]) -> list[tuple]:
    return [(g.tokens, g.exit_loops, g.token_entropy) for g in generations]


@pytest.mark.parametrize("draft", [Draft(1, 1), Draft(1, 4), Draft(2, 3)])
@pytest.mark.parametrize("threads", [1, 3])
def test_drafting_writes_the_greedy_text_of_full_depth(model, engine, draft, threads, monkeypatch):
    """Sequences end at different places: at a stop token, a limit, or the end of the context."""
    monkeypatch.setattr(engine_module, "usable_cores", lambda: 3)
    prompts = [*some_prompts(7), [5] * 90, [5] * 96]
    drafting = Engine.from_model(model, max_batch=6, threads=threads, draft=draft)
    for batch in (prompts, prompts[:2], prompts[-1:]):
        free = engine.generate(batch, Sampling(25, temperature=0))
        stop = frozenset({free[0].tokens[-1]})
        for stop_ids in (frozenset(), stop):
            sampling = Sampling(25, temperature=0, stop_ids=stop_ids)
            wanted = engine.generate(batch, sampling)
            found = drafting.generate(batch, sampling)
            assert without_passes(found) == without_passes(wanted)
            assert all(one.passes <= len(one.tokens) for one in found)
            assert [one.passes for one in wanted] == [len(one.tokens) for one in wanted]


@pytest.mark.parametrize("sampling", [Sampling(3), Sampling(3, 0.7, top_k=4, top_p=0.9)])
def test_drafted_text_has_the_distribution_of_full_depth(sampling):
    """Three tokens of a vocabulary of 6, 30,000 times: chi-square over all 216 texts."""
    model = small_model(vocab_size=6)
    top = (sampling.top_k, sampling.top_p)
    wanted = np.zeros((6, 6, 6))
    scratch = np.empty((2, 6), np.float32)

    def next_token(tokens: list[int]) -> np.ndarray:
        logits = torch_logits(model, [3, 1, *tokens])[-1]
        distribution(logits, sampling.temperature, top, *scratch)
        return scratch[0].astype(np.float64)

    for first, p_first in enumerate(next_token([])):
        for second, p_second in enumerate(next_token([first])):
            wanted[first, second] = p_first * p_second * next_token([first, second])
    engine = Engine.from_model(model, max_batch=64, threads=1, draft=Draft(1, 3))
    found = engine.generate([[3, 1]] * 30_000, sampling, seed=4)
    assert sum(one.passes for one in found) < 3 * len(found)
    counts = np.zeros((6, 6, 6))
    np.add.at(counts, tuple(np.array([one.tokens for one in found]).T), 1)
    assert not counts[wanted == 0].any()
    expected = wanted * len(found)
    kept = expected > 5
    rest = expected[~kept].sum(), counts[~kept].sum()
    chi_square = ((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    chi_square += (rest[1] - rest[0]) ** 2 / max(rest[0], 1)
    degrees = kept.sum()
    assert chi_square < degrees + 6 * math.sqrt(2 * degrees), (chi_square, degrees)


def test_prompts_longer_than_a_pass_are_read_in_pieces(model):
    """70 prompt tokens, 64 rows to a pass: the same text as reading them by torch at once."""
    prompt = np.random.default_rng(3).integers(0, 300, 70).tolist()
    found = Engine.from_model(model, max_batch=2, threads=1).generate(
        [prompt, prompt[:50]], Sampling(10, temperature=0)
    )
    assert is_greedy(model, prompt, found[0].tokens)
    assert is_greedy(model, prompt[:50], found[1].tokens)


def test_stop_tokens_end_a_sequence_and_are_kept(engine):
    prompts = some_prompts(4)
    free = engine.generate(prompts, Sampling(15), seed=3)
    stop = free[0].tokens[6]
    stopped = engine.generate(prompts, Sampling(15, stop_ids=frozenset({stop})), seed=3)
    for before, after in zip(free, stopped, strict=True):
        n = before.tokens.index(stop) + 1 if stop in before.tokens else 15
        assert after.tokens == before.tokens[:n]
        assert len(after.exit_loops) == len(after.token_entropy) == n


def test_generation_ends_when_the_sequence_is_full(engine):
    full = [5] * 96
    found = engine.generate([full, full[:90]], Sampling(50))
    assert [len(one.tokens) for one in found] == [1, 7]


def test_reload_gives_the_text_of_the_new_weights(model):
    engine = Engine.from_model(model, max_batch=2, threads=1)
    prompts, greedy = some_prompts(2), Sampling(10, temperature=0)
    other = small_model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1).add_(0.01)
    before = engine.generate(prompts, greedy)
    engine.reload(other)
    fresh = Engine.from_model(other, max_batch=2, threads=1)
    after = engine.generate(prompts, greedy)
    assert after == fresh.generate(prompts, greedy)
    engine.reload(model)
    assert engine.generate(prompts, greedy) == before


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"),
    [(0, 1.0, 1.0), (0, 1.0, 0.7), (3, 1.0, 1.0), (0, 0.6, 1.3), (5, 0.7, 1.0), (1, 1.0, 1.0)],
)
def test_sampled_frequencies_are_those_of_the_distribution(top_k, top_p, temperature):
    """20,000 draws against the distribution written with a sort; chi-square at 1e-6."""
    logits = np.random.default_rng(4).standard_normal(12).astype(np.float32) * 1.5
    p = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    order = np.argsort(-p)
    kept = order[: top_k or 12]
    mass = np.cumsum(p[kept]) / p[kept].sum()
    kept = kept[: int(np.searchsorted(mass, top_p - 1e-12)) + 1]
    wanted = np.zeros(12)
    wanted[kept] = p[kept] / p[kept].sum()
    found, scratch = np.empty(12, np.float32), np.empty(12, np.float32)
    distribution(logits, temperature, (top_k, top_p), found, scratch)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    draws = [draw(found, uniform(np.uint64(9), i)) for i in range(20_000)]
    counts = np.bincount(draws, minlength=12)
    assert not counts[wanted == 0].any()
    expected = wanted[kept] * len(draws)
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum()
    degrees = len(kept) - 1
    assert chi_square <= degrees + 7 * math.sqrt(2 * degrees) + 25 * (degrees > 0)


def test_exp32_agrees_with_float64():
    x = np.linspace(-86, 87, 4001).astype(np.float32)
    found = np.array([exp32(value) for value in x], dtype=np.float64)
    np.testing.assert_allclose(found, np.exp(x.astype(np.float64)), rtol=3e-7)


def test_no_prompts_give_no_generations(engine):
    assert engine.generate([], Sampling(5)) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompts": [[1], []]}, "Prompt 1 has 0 tokens"),
        ({"prompts": [[1] * 97]}, "Prompt 0 has 97 tokens"),
        ({"prompts": [[300]]}, "another tokenizer"),
        ({"prompts": [[-1]]}, "another tokenizer"),
        ({"max_new_tokens": 0}, "max_new_tokens must lie"),
        ({"temperature": -1.0}, "temperature must lie"),
        ({"temperature": float("nan")}, "temperature must lie"),
        ({"top_p": 0.0}, "top_p must lie"),
        ({"top_k": -1}, "top_k must lie"),
        ({"exit_threshold": 1.5}, "exit_threshold must lie"),
        ({"seed": [1, 2]}, "2 seeds were given for 1 prompts"),
    ],
)
def test_bad_arguments_are_refused(engine, changes, reason):
    changes, asked = dict(changes), {"prompts": [[1]], "seed": 0}
    asked |= {name: changes.pop(name) for name in asked if name in changes}
    with pytest.raises(WorkbenchError, match=reason):
        engine.generate(sampling=Sampling(**{"max_new_tokens": 3} | changes), **asked)


def test_bad_models_are_refused(model, engine):
    broken = small_model()
    with torch.no_grad():
        broken.layers[1].up.weight[3, 4] = float("nan")
    with pytest.raises(WorkbenchError, match=r"layers\.1\.up\.weight holds NaN"):
        Engine.from_model(broken, max_batch=1, threads=1)
    with pytest.raises(WorkbenchError, match="cannot take"):
        engine.reload(small_model(n_loops=2))
    with pytest.raises(WorkbenchError, match="exceeds the model's 96"):
        Engine.from_model(model, max_seq_len=97)
    with pytest.raises(WorkbenchError, match="at least 1"):
        Engine.from_model(model, max_batch=0)
    with pytest.raises(WorkbenchError, match="no packing 'base4'"):
        Engine.from_model(model, packing="base4")
    for draft in (Draft(3, 4), Draft(0, 4), Draft(1, 0)):
        with pytest.raises(WorkbenchError, match="1 to 2 of this model's 3 loops"):
            Engine.from_model(model, draft=draft)
    drafting = Engine.from_model(model, max_batch=1, draft=Draft())
    with pytest.raises(WorkbenchError, match="one or the other"):
        drafting.generate([[1]], Sampling(1, exit_threshold=0.5))
