import importlib
import json
import os
import subprocess
import sys

import pytest
import torch

import petkit.ops
from petkit.errors import MissingError
from petkit.ops import _library

OPERATORS = [
    "adapter_bank",
    "adapter_bank_add_",
    "finite_rows",
    "lowbit_dequantize",
    "lowbit_fake_quantize",
    "lowbit_fake_quantize_backward",
    "lowbit_linear",
    "lowbit_linear_backward",
    "lowbit_quantize",
    "lowbit_transpose",
    "magnitude_counts",
    "magnitudes_within",
    "merge_deltas",
    "merge_linear",
]


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


def test_public_names():
    assert sorted(petkit.ops.__all__) == petkit.ops.__all__ == dir(petkit.ops)
    for name in petkit.ops.__all__:
        assert callable(getattr(petkit.ops, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        petkit.ops.nothing  # noqa: B018


def test_a_function_wins_over_the_submodule_of_its_name():
    importlib.import_module("petkit.ops.lowbit_quantize")
    importlib.import_module("petkit.ops.adapter_bank")
    assert petkit.ops.lowbit_quantize.__name__ == "lowbit_quantize"
    assert petkit.ops.adapter_bank.__name__ == "adapter_bank"


def test_importing_the_package_does_not_import_torch():
    result = run_python("import sys, petkit.ops; sys.exit('torch' in sys.modules)")
    assert result.returncode == 0, result.stderr


def test_backend_says_what_runs():
    facts = petkit.ops.backend()
    assert facts["cpu_kernels"] in facts["available"]
    assert facts["available"][-1] == "torch"
    assert facts["why"]
    assert facts["compiled"] == (len(facts["available"]) > 1)
    json.dumps(facts)


def test_switching_kernels(kernels):
    assert petkit.ops.backend()["cpu_kernels"] == kernels


def test_unknown_kernels_are_refused():
    with pytest.raises(
        MissingError, match=r"PETKIT_CPU_KERNELS must be one of .*torch on this machine, got 'sse'"
    ):
        _library.use_kernels("sse")


@pytest.mark.parametrize("name", _library.available_kernels())
def test_the_environment_forces_kernels(name):
    code = "import petkit.ops, json; print(json.dumps(petkit.ops.backend()))"
    result = run_python(code, PETKIT_CPU_KERNELS=name)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["cpu_kernels"] == name
    assert f"PETKIT_CPU_KERNELS={name}" in facts["why"]


def test_the_environment_cannot_ask_for_what_is_missing():
    result = run_python("import petkit.ops; petkit.ops.backend()", PETKIT_CPU_KERNELS="altivec")
    assert result.returncode != 0
    assert "PETKIT_CPU_KERNELS must be one of" in result.stderr


def test_both_definitions_have_the_same_schemas():
    here = {name: str(getattr(torch.ops.petkit, name).default._schema) for name in OPERATORS}
    code = (
        "import json, torch, petkit.ops as ops; [getattr(ops, name) for name in ops.__all__]; "
        f"print(json.dumps({{n: str(getattr(torch.ops.petkit, n).default._schema) for n in {OPERATORS}}}))"
    )
    result = run_python(code, PETKIT_CPU_KERNELS="torch")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == here
