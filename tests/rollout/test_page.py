"""The example of docs/edrm.md is run as it is written."""

import re
import subprocess
import sys
from pathlib import Path

from tests.serving.text_models import save_llama

PAGE = Path(__file__).resolve().parents[2] / "docs/edrm.md"


def test_the_example_of_the_tracker_runs(tmp_path, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if "EntropyTracker" in block)
    names = {"folder": save_llama(tmp_path / "model")}
    exec(block, names)
    lengths = [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert lengths == [len(one) for one in names["tracker"].trajectories()]
    assert all(0 < length <= 64 for length in lengths)


def test_the_tracker_loads_on_first_use():
    code = (
        "import sys, petkit.rollout\n"
        "assert 'torch' not in sys.modules\n"
        "from petkit.rollout import EntropyTracker, Trajectory\n"
        "assert 'torch' in sys.modules and 'EntropyTracker' in dir(petkit.rollout)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
