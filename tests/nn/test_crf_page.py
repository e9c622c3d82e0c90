"""docs/crf.md is run as it is written."""

import re
from pathlib import Path

import pytest
import torch

from petkit.nn import CRF, bio_constraints

PAGE = Path(__file__).resolve().parents[2] / "docs/crf.md"


def test_every_example_of_the_page_runs():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    names = {}
    torch.manual_seed(0)
    for block in blocks:
        exec(block, names)
    assert [len(path) for path in names["paths"]] == [4, 3]
    assert names["loss"].isfinite()
    assert names["tokens"].shape == (2, 7)


def test_the_message_of_the_page_is_the_one_that_comes():
    said = re.search(r"`(tags of batch 3 are impossible, .*?)`", PAGE.read_text(), re.DOTALL).group(1)
    crf = CRF(3, constraints=bio_constraints(["O", "B-X", "I-X"]), batch_first=True)
    tags = torch.zeros(4, 9, dtype=torch.int64)
    tags[3, 7] = 2
    with pytest.raises(ValueError, match=re.escape(said)):
        crf(torch.zeros(4, 9, 3), tags)
