import json

from petkit.artifacts import PackedMatrix
from tests.artifacts.support import adapter_matrices, head, write_small

SITES = {"s": (4, 2, 4)}


def pair(tmp_path):
    packed = adapter_matrices(SITES, 1)
    first = write_small(tmp_path / "a", packed=packed, dense=head())
    codes = packed["s.up"].codes()
    codes[0, 0] ^= 1
    old = packed["s.up"]
    changed = {**packed, "s.up": PackedMatrix.from_codes(codes, old.shift, old.scale, 1)}
    return first, write_small(tmp_path / "b", packed=changed, dense=head())


def test_the_same_artifact(petkit, tmp_path):
    first, _ = pair(tmp_path)
    result = petkit("diff", first, first, "--exit-code")
    assert result.code == 0
    assert "are the same" in result.out
    assert json.loads(petkit("diff", first, first, "--json").out)["differences"] == []


def test_a_difference_is_shown_and_changes_the_exit_code_only_when_asked(petkit, tmp_path):
    first, second = pair(tmp_path)
    result = petkit("diff", first, second)
    assert result.code == 0
    assert "1 bits flipped, 1 of 8 codes (12.50%)" in result.out
    result = petkit("diff", first, second, "--exit-code", "--json")
    assert result.code == 3
    assert json.loads(result.out)["same"] is False


def test_a_missing_artifact(petkit, tmp_path):
    first, _ = pair(tmp_path)
    assert petkit("diff", first, tmp_path / "none").code == 2
