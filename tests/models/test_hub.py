"""The hub, answering or not."""

import logging

import pytest
from huggingface_hub import constants

from petkit.errors import OfflineError
from petkit.models import hub
from petkit.models.config import ModelConfig
from petkit.models.loading import load_model


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "hf/someone/something"])
def test_a_hub_that_does_not_answer_is_asked_once(name, monkeypatch, caplog):
    asked = []
    monkeypatch.setattr(hub, "_answers", lambda endpoint: bool(asked.append(endpoint)))
    with pytest.raises(OfflineError, match="the hub cannot be reached: go online or give"):
        load_model(ModelConfig(name=name), "image_classification")
    assert len(asked) == 1
    assert not [record for record in caplog.records if "Retrying" in record.message]
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "hf/someone/something"])
def test_offline_by_choice_says_so(name, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_answers", lambda endpoint: pytest.fail("the hub was asked"))
    with pytest.raises(OfflineError, match="run once without --offline"):
        load_model(ModelConfig(name=name), "image_classification")


def test_a_hub_that_answers_is_used(monkeypatch):
    monkeypatch.setattr(hub, "_answers", lambda endpoint: True)
    level = logging.getLogger("huggingface_hub").level
    with hub.hub_or_cache():
        assert constants.HF_HUB_OFFLINE is False
    assert logging.getLogger("huggingface_hub").level == level


def test_no_network_is_no_answer():
    assert not hub._answers("http://127.0.0.1:9")
