import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from petkit.artifacts import read_artifact, write_artifact
from petkit.artifacts.petl_vit import (
    export_settings,
    parse_settings,
    read_checkpoint,
    to_manifest,
    write_checkpoint,
)
from petkit.configuration import load_yaml
from petkit.errors import ArtifactError, ConfigError, InputError, SafetyError
from tests.artifacts.support import adapter_matrices, head, manifest, write_small

FILES = sorted((Path(__file__).parents[1] / "data" / "petl_vit").glob("*.bin"))
YAML = {"method": "lora", "bit": 1, "dim": 32, "num_class": 4, "scale": 10.0}


def settings_of(path):
    return parse_settings(load_yaml(path.with_suffix(".yaml")).data, path.name)


def artifact_of(path, folder):
    settings = settings_of(path)
    packed, dense = read_checkpoint(path, settings)
    write_artifact(folder, manifest=to_manifest(settings), config={}, packed=packed, dense=dense)
    return read_artifact(folder)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_checkpoints_come_back_byte_for_byte(tmp_path, path):
    artifact = artifact_of(path, tmp_path / "a")
    settings = export_settings(artifact)
    assert settings == settings_of(path)
    assert write_checkpoint(artifact, settings) == path.read_bytes()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_checkpoints_mean_what_was_measured(tmp_path, path):
    packed = artifact_of(path, tmp_path / "a").packed
    assert len(packed) == (24 if "adaptformer" in path.name else 48) + ("bihead" in path.name)
    for name, matrix in packed.items():
        if name == "head":
            continue
        # Trained weights: half of the signs positive; down near its uniform start, which is wider than up.
        assert matrix.shape == ((32, 768) if name.endswith("down") else (768, 32))
        assert abs(matrix.codes().mean() - 0.5) < 0.01
        if name.endswith("down"):
            assert packed[f"{name[:-4]}up"].scale < matrix.scale < 0.045


def test_the_layout_is_read_by_hand(tmp_path):
    path = next(path for path in FILES if path.stem == "lora-bihead-kitti-bit1-dim32")
    raw, packed = path.read_bytes(), artifact_of(path, tmp_path / "a").packed
    matrix = packed["blocks.3.attn.qkv.lora_v.up"]
    start = (3 * 4 + 3) * (3072 + 8)
    assert np.frombuffer(raw, "<f4", 2, start + 3072).tolist() == [matrix.shift, matrix.scale]
    assert matrix.codes()[0, :8].tolist() == [raw[start] >> place & 1 for place in range(8)]
    assert packed["head"].shape == (4, 768)
    assert np.frombuffer(raw, "<f4", 2, len(raw) - 8).tolist() == [packed["head"].shift, packed["head"].scale]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("method", ["adaptformer", "lora"])
def test_other_widths_round_trip(tmp_path, bits, method):
    sites = ["adaptformer"] if method == "adaptformer" else ["attn.qkv.lora_q", "attn.qkv.lora_v"]
    shapes = {f"blocks.{block}.{site}": (768, 1, 768) for block in range(12) for site in sites}
    kind = "petl_vit" if bits == 8 else "normal_l1"
    packed = {name: _with_kind(matrix, kind) for name, matrix in adapter_matrices(shapes, bits).items()}
    adapter = {"method": method, "bits": bits, "bottleneck": 1, "scale": 0.1, "codebook": kind}
    folder = write_small(tmp_path / "a", packed=packed, dense=head(768), manifest=manifest(adapter=adapter))
    artifact = read_artifact(folder)
    settings = export_settings(artifact)
    (tmp_path / "x.bin").write_bytes(write_checkpoint(artifact, settings))
    again, dense = read_checkpoint(tmp_path / "x.bin", parse_settings(settings.to_dict(), "x.yaml"))
    assert all(np.array_equal(again[name].stream, matrix.stream) for name, matrix in packed.items())
    assert np.array_equal(dense["head.weight"], head(768)["head.weight"])


def _with_kind(matrix, kind):
    return type(matrix)(matrix.shape, matrix.bits, kind, matrix.shift, matrix.scale, matrix.stream)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bit": 3}, "bit must be 1, 2, 4 or 8, got 3"),
        ({"bit": 32}, "bit must be a whole number from 1 to 8, got 32"),
        ({"bit": True}, "bit must be a whole number"),
        ({"dim": 0}, "dim must be a whole number from 1 to 4096, got 0"),
        ({"num_class": "4"}, "num_class must be a whole number"),
        ({"scale": float("nan")}, "scale must be a number above 0, got nan"),
        ({"method": "vpt"}, "method must be adaptformer or lora"),
        ({"method": "lora-x"}, "method must be adaptformer or lora"),
        ({"backbone": "resnet50"}, "backbone must be vit_base_patch16_224_in21k"),
        ({"surprise": 1}, r"unknown \['surprise'\]"),
    ],
)
def test_refuses_settings(changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings({**YAML, **changes}, "x.yaml")


def test_refuses_missing_settings():
    with pytest.raises(ConfigError, match=r"missing \['bit', 'dim'\]"):
        parse_settings({key: value for key, value in YAML.items() if key not in ("bit", "dim")}, "x.yaml")


def test_refuses_another_length_or_nan(tmp_path):
    raw, settings, path = FILES[0].read_bytes(), settings_of(FILES[0]), tmp_path / "x.bin"
    for damaged in (raw[:-1], raw + b"\0", b""):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=f"has {len(damaged)} bytes, expected 74312 for"):
            read_checkpoint(path, settings)
    path.write_bytes(raw[:3072] + np.float32(np.nan).tobytes() + raw[3076:])
    with pytest.raises(ArtifactError, match=r"blocks\.0\.adaptformer\.down: shift and scale must be finite"):
        read_checkpoint(path, settings)
    with pytest.raises(InputError, match="is missing"):
        read_checkpoint(tmp_path / "none.bin", settings)


def test_refuses_pickles_of_every_kind(tmp_path):
    settings, path = settings_of(FILES[0]), tmp_path / "x.bin"
    state = {"weight": torch.ones(3)}
    for write in (
        lambda: torch.save(state, path),
        lambda: torch.save(state, path, _use_new_zipfile_serialization=False),
        *(
            lambda protocol=protocol: path.write_bytes(pickle.dumps([1], protocol))
            for protocol in (2, 3, 4, 5)
        ),
    ):
        write()
        with pytest.raises(SafetyError, match="is a pickle"):
            read_checkpoint(path, settings)


def test_codes_that_begin_like_a_pickle_are_read(tmp_path):
    raw = FILES[0].read_bytes()
    (tmp_path / "x.bin").write_bytes(b"\x80\x02" + raw[2:-1] + b"\x3d")
    assert read_checkpoint(tmp_path / "x.bin", settings_of(FILES[0]))


def vit_b(sites=("adaptformer",), width=768, hidden=1, blocks=12, bits=1):
    return adapter_matrices(
        {f"blocks.{b}.{s}": (width, hidden, width) for b in range(blocks) for s in sites}, bits
    )


@pytest.mark.parametrize(
    ("adapter", "packed", "dense", "message"),
    [
        (
            {"method": "houlsby"},
            vit_b(),
            head(768),
            "petl-vit holds adaptformer and lora adapters, .* is houlsby",
        ),
        ({}, vit_b(width=384), head(384), r"needs blocks\.0\.adaptformer\.down as \(1, 768\)"),
        ({}, vit_b(blocks=11), head(768), r"needs blocks\.11\.adaptformer\.down .* it is missing"),
        ({}, vit_b(blocks=13), head(768), r"no place for blocks\.12\.adaptformer\.down"),
        ({}, vit_b(), {**head(768), "norm.bias": np.ones(768, np.float32)}, r"no place for norm\.bias"),
        (
            {},
            vit_b(),
            {"head.weight": head(768)["head.weight"]},
            r"needs head\.bias in float32, it is missing",
        ),
        ({}, vit_b(), {}, "needs a classifier"),
        ({}, vit_b(), head(10), "needs a head of 2 x 768"),
        ({"bits": 8}, vit_b(bits=8), head(768), "petl-vit has its own 8-bit levels"),
        ({"method": "lora"}, vit_b(["attn.qkv.lora_k"]), head(768), "expects lora in blocks.0"),
    ],
)
def test_refuses_to_export_what_the_format_cannot_hold(tmp_path, adapter, packed, dense, message):
    known = {"method": "adaptformer", "bits": 1, "codebook": "normal_l1", **adapter}
    artifact = read_artifact(
        write_small(tmp_path / "a", packed=packed, dense=dense, manifest=manifest(adapter=known))
    )
    with pytest.raises(InputError, match=message):
        write_checkpoint(artifact, export_settings(artifact))


def test_refuses_to_export_32_bits_and_sites_that_differ_in_scale(tmp_path):
    packed = vit_b()
    scaled = manifest(scaling={"blocks.0.adaptformer": 2.0})
    artifact = read_artifact(write_small(tmp_path / "a", packed=packed, dense=head(768), manifest=scaled))
    with pytest.raises(InputError, match="one scale for all sites"):
        export_settings(artifact)
    dense = {f"{name}.weight": matrix.dequantize() for name, matrix in packed.items()}
    artifact = read_artifact(
        write_small(tmp_path / "b", packed={}, dense={**dense, **head(768)}, manifest=manifest(bits=32))
    )
    with pytest.raises(InputError, match="this one has 32: petkit quantize it first"):
        export_settings(artifact)


def test_codes_that_do_not_fill_bytes_cannot_be_exported(tmp_path):
    from petkit.artifacts.petl_vit import _check_writable
    from tests.artifacts.support import random_matrix

    with pytest.raises(InputError, match="do not fill bytes"):
        _check_writable("x", random_matrix((3, 5), 2))
