"""The artifact folder, the one thing that passes between commands. Importing it does not import torch."""

from petkit.artifacts.checks import Check, exit_code, write_checks
from petkit.artifacts.files import atomic_write, write_json
from petkit.artifacts.manifest import Base, Manifest, Preprocess, Source, Step, Task
from petkit.artifacts.packed import PackedMatrix
from petkit.artifacts.provenance import file_sha256, state_dict_sha256, step
from petkit.artifacts.reader import Artifact, read_artifact, read_manifest, read_packed
from petkit.artifacts.run_directory import RunDirectory, open_run
from petkit.artifacts.verification import verify
from petkit.artifacts.writer import staged_artifact, staged_in_run, write_artifact

__all__ = [
    "Artifact",
    "Base",
    "Check",
    "Manifest",
    "PackedMatrix",
    "Preprocess",
    "RunDirectory",
    "Source",
    "Step",
    "Task",
    "atomic_write",
    "exit_code",
    "file_sha256",
    "open_run",
    "read_artifact",
    "read_manifest",
    "read_packed",
    "staged_artifact",
    "staged_in_run",
    "state_dict_sha256",
    "step",
    "verify",
    "write_artifact",
    "write_checks",
    "write_json",
]
