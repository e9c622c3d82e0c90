import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from petkit.artifacts.peft_config import alpha_for, parse_config, rank_of, scaling_of
from petkit.errors import ArtifactError, InputError

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


def parse(**changes):
    return parse_config(json.dumps({**PLAIN, **changes}).encode(), "adapter_config.json")


def test_the_factor_follows_rank_alpha_and_patterns():
    config = parse(rank_pattern={"0.q": 2, ".*v": 8}, alpha_pattern={"h.1.q": 3})
    assert [rank_of(config, layer) for layer in ("h.0.q", "h.1.q", "h.9.v", "h.10.q")] == [2, 4, 8, 4]
    assert scaling_of(config, "h.0.q") == 4.0
    assert scaling_of(config, "h.1.q") == 0.75
    assert scaling_of(parse(use_rslora=True), "x") == 8 / math.sqrt(4)


def test_a_pattern_matches_on_a_boundary_only():
    config = parse(rank_pattern={"q": 2})
    assert rank_of(config, "h.q") == rank_of(config, "q") == 2
    assert rank_of(config, "h.qq") == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "cannot keep the method IA3"),
        ({"peft_type": "VERA"}, "cannot keep the method VERA"),
        ({"peft_type": None}, "cannot keep the method None"),
        ({"bias": "all"}, "cannot keep bias='all'"),
        ({"use_dora": True}, r"cannot keep DoRA \(use_dora\)=true"),
        ({"lora_bias": True}, "LoRA with bias"),
        ({"layer_replication": [[0, 4]]}, "layer replication"),
        ({"trainable_token_indices": [1, 2]}, "trainable tokens"),
        ({"target_parameters": ["experts.w"]}, "LoRA on bare parameters"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"alora_invocation_tokens": [5]}, "activated LoRA"),
        ({"feature_of_tomorrow": 1}, "cannot keep feature_of_tomorrow=1"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base model"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq'"),
    ],
)
def test_refuses_by_name_what_cannot_be_kept(changes, message):
    with pytest.raises(InputError, match=message):
        parse(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 0}, "r must be a whole number of at least 1, got '0'"),
        ({"r": True}, "r must be a whole number"),
        ({"lora_alpha": -1}, "lora_alpha must be a number above 0"),
        ({"lora_alpha": None}, "lora_alpha must be a number above 0"),
        ({"lora_dropout": 1}, "lora_dropout must be a number from 0 to below 1"),
        ({"rank_pattern": [1]}, "rank_pattern must be an object"),
        ({"rank_pattern": {"q": 1.5}}, r"rank_pattern\['q'\] must be a whole number"),
        ({"alpha_pattern": {"q": 0}}, r"alpha_pattern\['q'\] must be a number above 0"),
        ({"alpha_pattern": {"(": 1}}, "is not a regular expression"),
        ({"modules_to_save": "classifier"}, "modules_to_save must be a list of names"),
    ],
)
def test_refuses_values(changes, message):
    with pytest.raises(ArtifactError, match=message):
        parse(**changes)


@pytest.mark.parametrize("raw", [b"", b"[]", b"\xff", b"[" * 99_999])
def test_refuses_what_is_no_object(raw):
    with pytest.raises(ArtifactError):
        parse_config(raw, "x")


@pytest.mark.parametrize("pattern", ["(a+)+", "(a|b)*c", "(a{1,9}){1,9}", "a*b*c*d*", "x" * 257])
def test_refuses_patterns_that_could_take_for_ever(pattern):
    start = time.perf_counter()
    with pytest.raises(ArtifactError, match="is too complex"):
        parse(rank_pattern={pattern: 4})
    assert time.perf_counter() - start < 10


@given(st.floats(1e-3, 1e3), st.integers(1, 4096))
def test_alpha_gives_the_scaling_back(scaling, rank):
    assert alpha_for(scaling, rank) / rank == pytest.approx(scaling, rel=2**-51)


def test_alpha_is_whole_where_it_can_be():
    assert alpha_for(2.0, 8) == 16
    assert isinstance(alpha_for(2.0, 8), int)
    assert alpha_for(0.1, 8) == 0.8
