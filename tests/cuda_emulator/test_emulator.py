"""The emulator itself: it must report mistakes that a device would hide or hang on."""

import numpy as np
import pytest


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("missed_barrier", "not reached by every thread"),
        ("two_barriers", r"wait at different barriers \(lines \d+ and \d+\)"),
        ("missed_shuffle", "not reached by every thread"),
        ("reads_past_end", r"thread \(0, 0, 0\) touched memory outside every buffer"),
        ("writes_before_start", "wrote outside the buffer 'target'"),
        ("too_many_threads", "1 to 1024 threads"),
        ("too_much_shared", "65536 bytes of shared memory exceed the limit of 49152"),
    ],
)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_mistakes_are_reported(cuda, example, message, order):
    with pytest.raises(RuntimeError, match=message):
        cuda.run_example(example, order)
    # It is usable afterwards.
    cuda.run_example("collectives", order)


def test_thread_orders_expose_a_missing_barrier(cuda):
    results = {cuda.run_example("reverse_without_barrier", order)[:64].tobytes() for order in (0, 1, 2)}
    assert len(results) > 1


def test_shared_memory_starts_as_nan_in_every_block(cuda):
    assert np.isnan(cuda.run_example("reads_unwritten_shared", 0)[:2]).all()


@pytest.mark.parametrize("order", [0, 1, 2])
def test_warp_collectives_and_atomics(cuda, order):
    result = cuda.run_example("collectives", order)
    lanes = np.arange(32)
    np.testing.assert_array_equal(result[:32], np.where(lanes + 4 < 32, lanes + 4, lanes))
    np.testing.assert_array_equal(result[32:64], 3)
    np.testing.assert_array_equal(result[64:96], 11)
    assert result[96] == 32


def test_half_precision_conversions_round_to_nearest_even(cuda):
    every_half = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(cuda.round_trip(every_half, True), every_half)
    bits = np.random.default_rng(0).integers(0, 1 << 32, 50_000, dtype=np.uint64).astype(np.uint32)
    values = np.concatenate(
        [bits.view(np.float32), np.float32(1e-6) * np.arange(-500, 500, dtype=np.float32)]
    )
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(cuda.round_trip(values, True), expected)


def test_bfloat16_conversions_round_to_nearest_even(cuda):
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(0).integers(0, 1 << 32, 50_000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    expected = torch.from_numpy(values.copy()).bfloat16().float().numpy()
    np.testing.assert_array_equal(cuda.round_trip(values, False), expected)
