"""The tree is as CONTRIBUTING.md says: this names the file of an op or a method that is missing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINE_LIMIT = 600
HEAVY = {"torch", "torchvision", "timm", "transformers", "accelerate", "safetensors", "matplotlib"}
METHOD_FILES = ("__init__.py", "README.md", "config.py", "algorithm.py", "recipe.py")
# A table of constants, not a computation on tensors: it has no kernel of its own.
WITHOUT_KERNEL = {"lowbit_codebook"}
# Models are merged on the CPU, where they are read from files; on CUDA tensors the pure-torch default runs.
WITHOUT_CUDA = {"merge_linear", "merge_deltas", "magnitude_counts", "magnitudes_within", "finite_rows"}
# Ops whose name does not begin with that of their family's reference.
FAMILIES = {"magnitude_counts": "merge", "magnitudes_within": "merge", "finite_rows": "merge"}
# How AdapterBank lays out its up-projections: a step inside adapter_bank, with no function of its own.
INTERNAL = {"lowbit_transpose"}

OPS = sorted(path.stem for path in (ROOT / "petkit/ops").glob("*.py") if not path.stem.startswith("_"))
METHODS = sorted(path for path in (ROOT / "petkit/methods").glob("[a-z]*") if path.is_dir())


def sources(*patterns):
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def relative(path):
    return str(path.relative_to(ROOT))


def reference_of(op):
    """Ops of one family may share a reference: lowbit.py judges lowbit_linear."""
    family = ROOT / f"tests/reference/{FAMILIES.get(op, op.split('_')[0])}.py"
    return family if family.exists() else ROOT / f"tests/reference/{op}.py"


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_all_its_files(op):
    files = [ROOT / f"petkit/ops/{op}.py", ROOT / f"tests/ops/test_{op}.py", reference_of(op)]
    if op not in WITHOUT_KERNEL:
        files += [ROOT / f"cpp/ops/{op}.cpp", ROOT / f"petkit/benchmarks/ops/bench_{op}.py"]
    if op not in WITHOUT_KERNEL | WITHOUT_CUDA:
        files.append(ROOT / f"csrc_cuda/{op}.cu")
    missing = [relative(file) for file in files if not file.exists()]
    assert not missing, f"the op {op} lacks {', '.join(missing)}"


def test_an_op_said_to_have_no_cuda_kernel_has_none():
    assert set(OPS) >= WITHOUT_CUDA
    assert not [op for op in WITHOUT_CUDA if (ROOT / f"csrc_cuda/{op}.cu").exists()]


def test_every_kernel_belongs_to_an_op():
    kernels = {path.stem for path in sources("cpp/ops/*.cpp", "csrc_cuda/*.cu")} - {"module"}
    strangers = kernels - set(OPS) - INTERNAL
    assert not strangers, f"no petkit/ops/X.py for {', '.join(sorted(strangers))}"


@pytest.mark.parametrize("folder", METHODS, ids=lambda folder: folder.name)
def test_a_method_has_all_its_files(folder):
    missing = [name for name in METHOD_FILES if not (folder / name).exists()]
    assert not missing, f"{relative(folder)} lacks {', '.join(missing)}"


def test_no_file_is_too_long():
    files = sources("petkit/**/*.py", "tests/**/*.py", "cpp/**/*.[ch]*", "csrc_cuda/**/*.c*")
    long = {relative(file): len(file.read_text().splitlines()) for file in files}
    assert not {name: lines for name, lines in long.items() if lines > LINE_LIMIT}


def imported(tree):
    """Top-level packages that a module imports when it is imported; `if TYPE_CHECKING:` is not run."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from imported(node)


LIGHT = sources(
    "petkit/cli/*.py",
    "petkit/configuration/*.py",
    "petkit/*.py",
    "petkit/**/config.py",
    "petkit/**/__init__.py",
    "petkit/artifacts/manifest.py",
)


@pytest.mark.parametrize("file", LIGHT, ids=relative)
def test_light_modules_import_nothing_heavy(file):
    packages = {name.partition(".")[0] for name in imported(ast.parse(file.read_text()))}
    assert not packages & HEAVY


def test_light_modules_do_not_even_lead_to_torch():
    names = [relative(file).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in LIGHT]
    names = [name for name in names if not name.endswith("__main__")]
    code = (
        f"import importlib, sys\nfor n in {names}: importlib.import_module(n)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("file", sources("tests/reference/*.py"), ids=relative)
def test_references_are_independent(file):
    names = set(imported(ast.parse(file.read_text())))
    packages = {name.partition(".")[0] for name in names if not name.startswith("tests.reference")}
    strangers = packages - set(sys.stdlib_module_names) - {"numpy", "scipy"}
    assert not strangers, f"{relative(file)} must judge alone, but imports {', '.join(sorted(strangers))}"


def test_tests_mirror_the_package():
    folders = {path.parent for path in sources("petkit/*/__init__.py")}
    without = [folder.name for folder in sorted(folders) if not (ROOT / "tests" / folder.name).is_dir()]
    # tests/data holds files; the tests of petkit/data are in tests/data_loading.
    assert not set(without) - {"data"}, f"no tests for {', '.join(without)}"


def test_the_c_core_is_free_of_torch():
    offenders = [
        relative(file)
        for file in sources("cpp/core/**/*.[ch]*", "cpp/include/**/*.h")
        if "#include <torch" in file.read_text() or "#include <ATen" in file.read_text()
    ]
    assert not offenders
