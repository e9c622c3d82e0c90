import pytest

from petkit.artifacts.checks import CHECKS, Check, exit_code, parse_checks, write_checks
from petkit.errors import ArtifactError


def test_the_gravest_failure_gives_the_exit_code():
    good, gate, damaged, unsafe = (Check("x", code == 0, exit_code=code) for code in (0, 3, 2, 5))
    assert exit_code([]) == exit_code([good]) == 0
    assert exit_code([good, gate]) == 3
    assert exit_code([gate, damaged]) == 2
    assert exit_code([damaged, unsafe, gate]) == 5


def test_checks_are_read_back(tmp_path):
    checks = [Check("reload", True, "0 differ"), Check("gate", False, "0.3 < 0.5")]
    write_checks(tmp_path, checks)
    assert parse_checks((tmp_path / CHECKS).read_bytes(), CHECKS) == checks


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"checks": [1]}', b'{"checks": [{"nme": 1}]}', b"[" * 99_999]
)
def test_what_is_no_list_of_checks_is_refused(content):
    with pytest.raises(ArtifactError, match=r"checks\.json is not a list of checks"):
        parse_checks(content, CHECKS)
