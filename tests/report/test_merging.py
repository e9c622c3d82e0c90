import re

import torch

from petkit.merging.analysis.gains import gain_consistency
from petkit.merging.analysis.streamed import analyze_state_dicts
from petkit.report.merging import divergence_tables, gains_table, model_table, pair_table, write_merging_page

DIVERGENCE = {"estimate": 0.125, "standard_error": 0.01}
NEIGHBOURS = [{"domain": "maths", "own_expert": "maths", "expert": "<code>", "margin": 0.1, "verdict": "not"}]
NEIGHBOURHOOD = {
    "experts": ["maths", "<code>"],
    "domains": ["maths", "poems"],
    "sampling": {"max_new_tokens": 9, "samples": 1, "seed": 4},
    "merged": {
        "ties": {
            "cells": [
                {
                    "expert": "maths",
                    "domain": "maths",
                    "per_token": DIVERGENCE,
                    "per_sequence": {"estimate": -2.0, "standard_error": None},
                    "prompts": 3,
                    "responses": 3,
                    "tokens": 27,
                }
            ],
            "neighbours_per_token": NEIGHBOURS,
        }
    },
}


def result(**more):
    source = torch.Generator().manual_seed(0)
    base = {"h.0.mlp.w": torch.randn(30, generator=source), "h.1.attn.w": torch.randn(30, generator=source)}
    base["norm.w"] = torch.ones(3)
    models = {}
    for name in ("maths", "<code>", "ties"):
        moved = {
            key: one + (key != "norm.w") * torch.randn(one.shape, generator=source)
            for key, one in base.items()
        }
        models[name] = moved
    records = [{"name": name, "role": "expert", "folder": f"x/{name}"} for name in models]
    return {"base": "x/base", "models": records, "weights": analyze_state_dicts(models, base), **more}


def test_the_page_holds_everything(tmp_path):
    scores = torch.rand(4, 9, generator=torch.Generator().manual_seed(0)).double().numpy()
    gains = gain_consistency(scores[0], {"maths": scores[1], "<code>": scores[2]}, {"ties": scores[3]})
    page = write_merging_page(tmp_path, result(neighbourhood=NEIGHBOURHOOD, gains=gains)).read_text()
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == [
        "Models",
        "Pairs of models",
        "Kinds of modules",
        "Layers",
        "Policy neighbourhood of ties",
        "Gain consistency",
    ]
    assert page.count("data:image/png;base64") == 8
    assert len(list((tmp_path / "plots").glob("*.png"))) == 8
    assert "<code>" not in page
    assert "maths · &lt;code&gt;" in page
    assert "0.125 ± 0.01" in page
    assert not re.search(r"https?://", page)


def test_weights_alone_make_a_page(tmp_path):
    page = write_merging_page(tmp_path, result(neighbourhood=None, gains=None)).read_text()
    assert page.count("data:image/png;base64") == 7
    assert "Gain" not in page


def test_tables_say_what_numbers_mean():
    weights = result()["weights"]
    assert "|w - w0| > 0.001 max(|w|, |w0|)" in model_table(weights).plain()
    pairs = pair_table(weights).plain()
    assert "projected to 256" in pairs
    assert "standard deviation is about 0.0625" in pairs
    assert len(pair_table(weights).rows) == 3


def test_what_is_missing_is_empty():
    table = divergence_tables(NEIGHBOURHOOD)[0]
    assert table.rows == (("maths", "0.125 ± 0.01", None), ("<code>", None, None))
    scores = torch.rand(3, 9).double().numpy()
    found = gains_table(gain_consistency(scores[0], {"a": scores[1]}, {"same": scores[0]}))
    assert found.rows[1][-2:] == (None, "")
