"""Kernels: integers bit-equal to the reference on every backend, and refusals at the door."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels import cpu, reference
from kernels.compile import LEVELS

BACKENDS = ["reference", *LEVELS]
PACKINGS = list(kernels.PACKINGS)


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param not in kernels.backends():
        pytest.skip(f"{request.param}: this CPU cannot run it")
    return request.param


def exact_products(codes: np.ndarray, x_q: np.ndarray) -> np.ndarray:
    """Multiply in Python integers of unlimited size."""
    return np.array(
        [[sum(int(c) * int(x) for c, x in zip(row, token, strict=True)) for row in codes]
         for token in x_q]
    )  # fmt: skip


def test_reference_is_the_plain_dot_product():
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (5, 37)).astype(np.int8)
    x_q = rng.integers(-128, 128, (3, 37)).astype(np.int8)
    assert np.array_equal(reference.accumulate(codes, x_q), exact_products(codes, x_q))


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_tail_length_is_bit_equal(backend, packing):
    rng = np.random.default_rng(1)
    for k in [*range(1, 50), 127, 128, 129, 255, 256, 257, 271]:
        n, b = 1 + k % 37, 1 + k % 6
        codes = rng.integers(-1, 2, (n, k)).astype(np.int8)
        x_q = rng.integers(-128, 128, (b, k)).astype(np.int8)
        packed = kernels.pack(codes, packing)
        found = kernels.accumulate(packed, x_q, n_rows=n, packing=packing, backend=backend)
        assert np.array_equal(found, reference.accumulate(codes, x_q)), (n, k, b)


@pytest.mark.parametrize("code", [-1, 0, 1])
@pytest.mark.parametrize("x", [-128, -127, 127])
@pytest.mark.parametrize("k", [128, 2560, 6912])
@pytest.mark.parametrize("packing", PACKINGS)
def test_extreme_inputs_do_not_overflow(backend, code, x, k, packing):
    """All codes equal, all activations at the end of int8: the largest sums there are."""
    packed = kernels.pack(np.full((17, k), code, dtype=np.int8), packing)
    for b in (1, 5):
        x_q = np.full((b, k), x, dtype=np.int8)
        found = kernels.accumulate(packed, x_q, n_rows=17, packing=packing, backend=backend)
        assert (found == code * x * k).all()


@pytest.mark.parametrize("name", BACKENDS[1:])
@pytest.mark.parametrize("x", [-128, 127])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("code", [-1, 1])
def test_longest_row_is_exact(name, x, packing, code):
    if name not in kernels.backends():
        pytest.skip(f"{name}: this CPU cannot run it")
    k = kernels.PACKINGS[packing].max_k
    packed = kernels.pack(np.full((1, k), code, dtype=np.int8), packing)
    for b in (1, 4):
        x_q = np.full((b, k), x, dtype=np.int8)
        found = kernels.accumulate(packed, x_q, n_rows=1, packing=packing, backend=name)
        assert (found == code * x * k).all()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("shape", [(32, 64, 32), (80, 1100, 67), (48, 530, 96), (300, 40, 33)])
def test_many_tokens_are_bit_equal(backend, shape, packing):
    """Enough tokens for tiles; tokens, row groups and inputs left over; extreme values."""
    n, k, b = shape
    rng = np.random.default_rng(6)
    codes = rng.integers(-1, 2, (n, k)).astype(np.int8)
    x_q = rng.integers(-128, 128, (b, k)).astype(np.int8)
    codes[0], codes[-1], x_q[0], x_q[-1] = 1, 0, 127, -128
    packed, options = kernels.pack(codes, packing), {"packing": packing, "backend": backend}
    found = kernels.accumulate(packed, x_q, n_rows=n, threads=2, **options)
    assert np.array_equal(found, reference.accumulate(codes, x_q))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 600), st.integers(1, 9))
def test_random_shapes_are_bit_equal_on_all_backends(seed, n, k, b):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (n, k)).astype(np.int8)
    codes[rng.random(n) < 0.2] = 0  # empty rows
    x_q = rng.integers(-128, 128, (b, k)).astype(np.int8)
    wanted = reference.accumulate(codes, x_q)
    for name, packing in itertools.product(kernels.backends(), PACKINGS):
        packed = kernels.pack(codes, packing)
        found = kernels.accumulate(packed, x_q, n_rows=n, packing=packing, backend=name)
        assert np.array_equal(found, wanted), (name, packing)


def test_quantised_activations_match_the_reference(backend):
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((40, 300)) * 10.0 ** rng.integers(-8, 8, (40, 1))).astype(np.float32)
    x[3] = 0
    x[4] = np.float32(1e-20)
    x[5, :] = [0.5, 1.5, 127.0] * 100  # halves: round to even
    x_q, act_scale = kernels.quantize_activations(x, backend=backend)
    wanted_q, wanted_scale = reference.quantize_activations(x)
    assert np.array_equal(x_q, wanted_q)
    assert np.array_equal(act_scale, wanted_scale)
    assert x_q[5, :3].tolist() == [0, 2, 127]
    assert not x_q[3].any()


def test_per_tensor_and_per_row_scales(backend):
    rng = np.random.default_rng(3)
    codes = rng.integers(-1, 2, (21, 50)).astype(np.int8)
    x = rng.standard_normal((3, 50)).astype(np.float32)
    packed = kernels.pack(codes)
    rows = rng.random(21).astype(np.float32)
    one = kernels.ternary_matmul(packed, 0.25, x, n_rows=21, backend=backend)
    each = kernels.ternary_matmul(packed, rows, x, backend=backend)
    x_q, act_scale = reference.quantize_activations(x)
    dequantised = act_scale[:, None] * x_q
    np.testing.assert_allclose(one, dequantised @ (0.25 * codes.T), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(each, dequantised @ (codes.T * rows), rtol=1e-5, atol=1e-5)
    assert np.array_equal(each, reference.ternary_matmul(packed, rows, x, 21))


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_scale_for_each_group_of_inputs(backend, packing):
    """Against the dequantised weight in float64: each group of inputs has its own row scales."""
    rng = np.random.default_rng(7)
    codes = rng.integers(-1, 2, (21, 240)).astype(np.int8)
    x = rng.standard_normal((3, 240)).astype(np.float32)
    scales = rng.random((4, 21)).astype(np.float32)
    packed = np.stack([kernels.pack(part, packing) for part in np.split(codes, 4, axis=1)])
    options = {"packing": packing, "backend": backend}
    found = kernels.ternary_matmul(packed, scales, x, **options)
    x_q, act_scale = reference.quantize_activations(x)
    weight = codes * np.repeat(scales, 60, axis=0).reshape(4, 60, 21).transpose(2, 0, 1).reshape(
        21, 240
    ).astype(np.float64)
    wanted = act_scale[:, None] * (x_q.astype(np.float64) @ weight.T)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    one = kernels.ternary_matmul(packed, scales[:, :1].copy(), x, n_rows=21, **options)
    each = kernels.ternary_matmul(packed, np.repeat(scales[:, :1], 21, axis=1), x, **options)
    assert np.array_equal(one, each)


def test_threads_give_the_same_bits(backend):
    rng = np.random.default_rng(4)
    codes = rng.integers(-1, 2, (100, 200)).astype(np.int8)
    x = rng.standard_normal((6, 200)).astype(np.float32)
    packed = kernels.pack(codes)

    def product(threads):
        return kernels.ternary_matmul(packed, 1.0, x, backend=backend, threads=threads)

    wanted = product(1)
    assert np.array_equal(product(3), wanted)
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(found, wanted) for found in pool.map(product, [1] * 8))


def test_dense_product_does_not_depend_on_the_batch():
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((112, 70)).astype(np.float32)
    tiles = np.ascontiguousarray(weight.reshape(7, 16, 70).transpose(0, 2, 1))
    x = rng.standard_normal((7, 70)).astype(np.float32)
    together = np.empty((7, 112), dtype=np.float32)
    cpu.dense(tiles, x, 7, 70, (0, 7), together)
    np.testing.assert_allclose(together, x.astype(np.float64) @ weight.T, rtol=1e-4, atol=1e-5)
    for token in range(7):
        alone = np.empty((1, 112), dtype=np.float32)
        cpu.dense(tiles, x[token : token + 1], 1, 70, (0, 7), alone)
        assert np.array_equal(alone[0], together[token])


def sound_arguments() -> dict:
    codes = np.ones((20, 40), dtype=np.int8)
    x = np.ones((2, 40), dtype=np.float32)
    return {"packed": kernels.pack(codes), "weight_scale": 1.0, "x": x}


BAD = {
    "x must be float32": {"x": np.ones((2, 40))},
    "x must be float32 (B, K)": {"x": np.ones(40, dtype=np.float32)},
    "not empty": {"x": np.ones((0, 40), dtype=np.float32)},
    "C-contiguous and aligned": {"x": np.ones((40, 2), dtype=np.float32).T},
    "x holds NaN or infinity": {"x": np.full((2, 40), np.nan, dtype=np.float32)},
    "x holds NaN": {"x": np.full((2, 40), -np.inf, dtype=np.float32)},
    "packed must be uint8 (2, 4, 64)": {"x": np.ones((2, 50), dtype=np.float32)},
    "packed must be uint8 (N/16": {"packed": np.zeros(64, dtype=np.uint8)},
    "packed must be uint8": {"packed": np.zeros((2, 3, 64), dtype=np.int8)},
    "packed must be C-contiguous": {"packed": np.zeros((2, 3, 128), dtype=np.uint8)[..., ::2]},
    "1 <= K <= 524287": {"x": np.ones((1, kernels.MAX_K + 1), dtype=np.float32)},
    "weight_scale must be": {"weight_scale": np.ones((2, 2), dtype=np.float32)},
    "weight_scale holds NaN": {"weight_scale": float("nan")},
    "packed must be uint8 (5": {"n_rows": 70},
    "no kernel backend": {"backend": "tpu"},
    "no packing": {"packing": "3bit"},
    "packed must be uint8 (2, 2, 64)": {"packing": "base3"},
    "1 <= K <= 65535": {"x": np.ones((1, 70_000), dtype=np.float32), "packing": "base3"},
    "the 3 groups": {
        "packed": np.zeros((3, 2, 1, 64), dtype=np.uint8),
        "weight_scale": np.ones((3, 20)),
    },
    "weight_scale must be float32 (2, N)": {"packed": np.zeros((2, 2, 2, 64), dtype=np.uint8)},
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_arguments_are_refused_before_a_kernel_runs(backend, reason):
    arguments = sound_arguments() | {"backend": backend} | BAD[reason]
    with pytest.raises(ValueError) as refusal:
        kernels.ternary_matmul(**arguments)
    assert reason in str(refusal.value)


SHAPES = [(2, 3, 64), (2, 2, 64), (1, 3, 64), (2, 2, 2, 64), (0, 3, 64), (2, 3, 0)]
ODD = [
    *[None, 0, -1, 20, 1.5, "x", [], float("nan")],
    *[np.zeros(shape, np.uint8) for shape in SHAPES],
    *[np.ones(shape, np.float32) for shape in [(20,), (1, 20), (2, 20), (2, 41), (0, 40)]],
    *[np.ones((2, 40), kind) for kind in (np.float16, np.float64, np.int8, object)],
    np.full((2, 40), np.inf, np.float32),
    np.ones((2, 80), np.float32)[:, ::2],
    np.frombuffer(bytes(321), np.uint8)[1:].view(np.float32).reshape(2, 40),  # not aligned
    np.frombuffer(bytes(range(128)) * 3, np.uint8).reshape(2, 3, 64),  # corrupted
    np.zeros((2, 3, 64), np.int8),
]


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["packed", "weight_scale", "x", "n_rows"]),
        st.sampled_from(ODD),
        max_size=3,
    ),
    st.sampled_from(PACKINGS),
    st.sampled_from(kernels.backends()),
)
def test_whatever_the_arguments_an_error_or_a_product(changes, packing, name):
    """No combination of odd values ends the process, and what is not refused has its shape."""
    arguments = sound_arguments() | {"packing": packing, "backend": name} | changes
    try:
        found = kernels.ternary_matmul(**arguments)
    except (ValueError, TypeError):
        return
    assert found.dtype == np.float32
    assert found.shape[0] == len(arguments["x"])


def test_backend_is_chosen_by_argument_then_environment_then_machine(monkeypatch):
    assert kernels.choose_backend() == kernels.backends()[-1]
    monkeypatch.setenv("NANOCHAT_KERNEL", "generic")
    assert kernels.choose_backend() == "generic"
    assert kernels.choose_backend("reference") == "reference"
    assert [row["backend"] for row in kernels.describe() if row["chosen"]] == ["generic"]


def test_the_best_level_is_bounded_by_what_is_asked_and_by_the_machine(monkeypatch):
    here = [name for name in kernels.backends() if name != "reference"]
    assert kernels.best_level() == here[-1]
    for name in here:
        assert kernels.best_level(name) == name
    monkeypatch.setattr(kernels, "backends", lambda: ("reference", "generic", "avx2"))
    asked = ("generic", "avx2", "avx512vnni", "amx")
    assert [kernels.best_level(name) for name in asked] == ["generic", "avx2", "avx2", "avx2"]
    with pytest.raises(ValueError, match="no kernel level 'AVX2'; known: generic, avx2"):
        kernels.best_level("AVX2")
    monkeypatch.setenv("NANOCHAT_KERNEL", "generic")
    assert kernels.best_level() == "generic"
    monkeypatch.setenv("NANOCHAT_KERNEL", "reference")
    assert kernels.best_level("avx2") == "generic"


def test_a_cpu_without_avx2_is_served_by_the_generic_backend(tmp_path):
    """A fresh process that is told to know only SSE2: avx2 is refused, and never compiled."""
    program = """
import numpy as np, kernels
assert kernels.backends() == ("reference", "generic"), kernels.backends()
codes = np.ones((16, 32), np.int8)
x = np.full((2, 32), 3, np.int8)
assert (kernels.accumulate(kernels.pack(codes), x, n_rows=16) == 96).all()
try:
    kernels.choose_backend("avx2")
except ValueError as refusal:
    print(refusal)
"""
    environment = os.environ | {
        "NUMBA_CPU_NAME": "x86-64",
        "NUMBA_CPU_FEATURES": "+sse,+sse2,+cx8,+fxsr,+mmx,+x87",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "needs avx2" in done.stdout


def test_cache_folder_falls_back_when_home_cannot_be_written(tmp_path):
    """A read-only cache folder: the kernels still run, from any working directory."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    program = (
        "import numpy as np, kernels; from pathlib import Path; "
        "from kernels.compile import cache_dir; print(cache_dir(Path(kernels.__file__).parent)); "
        "print(kernels.quantize_activations(np.ones((1, 4), np.float32))[0].tolist())"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(blocked), "TMPDIR": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(str(tmp_path))
    assert done.stdout.splitlines()[1] == "[[127, 127, 127, 127]]"
