"""The logits of a merged folder against those of the same merge in memory, in a process of its own.

The process is started with `PETKIT_CPU_KERNELS=torch`, so that the merge in memory is plain torch's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petkit.errors import PetkitError

if TYPE_CHECKING:
    from petkit.artifacts import Check

NAME = "logits"
# Of the largest logit: both models hold the same weights, which are added up in the same order.
TOLERANCE = 1e-5


def checked_logits(stage: Path, config: Path, seed: int, base: str | None) -> Check:
    """Compare a merged folder with the merge in memory, on a fixed batch.

    Args:
        stage: the folder.
        config: the merge's YAML.
        seed: of the merge.
        base: folder of the base, whose logits must differ; None where there is none.

    Returns:
        The check.
    """
    from petkit.artifacts import Check

    environment = {"PETKIT_CPU_KERNELS": "torch", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "petkit.cli.merged_logits",
        str(stage),
        str(config),
        str(seed),
        base or "",
    ]
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        return Check(NAME, False, f"cannot be computed: {said[-1]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    is_same = found["difference"] <= TOLERANCE * found["largest"]
    detail = (
        f"at most {found['difference']:.1e} from the merge in memory, the largest is {found['largest']:.3g}"
    )
    if found["change"] is not None:
        detail += f"; {found['change']:.1e} from the base"
    return Check(NAME, is_same and found["is_finite"] and found["change"] != 0, detail)


def compared(stage: Path, config: Path, seed: int, base: str | None) -> dict[str, Any]:
    """What the child process finds out."""
    from petkit.merging.config import read_merge_config
    from petkit.merging.in_memory import merged_in_memory
    from petkit.models.fixed_batch import fixed_output

    written = fixed_output(stage)
    wanted = fixed_output(stage, merged_in_memory(read_merge_config(config), seed))
    before = fixed_output(Path(base)) if base else None
    is_comparable = before is not None and before.shape == written.shape
    return {
        "difference": float((written - wanted).abs().max()),
        "largest": float(wanted.abs().max()),
        "change": float((written - before).abs().max()) if before is not None and is_comparable else None,
        "is_finite": bool(written.isfinite().all()),
    }


def main(arguments: list[str]) -> None:
    """Print what was found as one line of JSON."""
    stage, config, seed, base = arguments
    try:
        print(json.dumps(compared(Path(stage), Path(config), int(seed), base or None)))
    except PetkitError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
