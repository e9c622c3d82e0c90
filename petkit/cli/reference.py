"""What holds for every verb: the exit codes, and the environment variables. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

EXIT_CODES = {
    0: "Done, and every check passed. A run that a limit such as `--max-steps` stopped counts too.",
    1: "The run failed.",
    2: "Usage or configuration, found before any work: a flag, a key, a path, a damaged artifact.",
    3: "The work was done, but a check of its result failed: `--min-accuracy`, `--max-error`, `checks.json`.",
    4: "A package, device or backend that was asked for is missing. `petkit doctor` says what is promised.",
    5: "Refused for safety: a pickle, a path that leaves its folder, remote code.",
    6: "Offline, and a file is not in the cache.",
    130: "Interrupted (Ctrl-C). A run in training saves a checkpoint first, for `--resume`.",
    143: "Terminated (SIGTERM). Likewise.",
}
PREFIX = "PETKIT_"
SETTING = "PETKIT_SET__"
OWN_VARIABLES = {
    "PETKIT_API_KEY": "Key that `petkit serve` demands, and that `petkit route` sends to a server.",
    "PETKIT_CACHE": "Folder of converted base models. Default: `~/.cache/petkit`.",
    "PETKIT_CPU_KERNELS": "CPU kernels to run, such as `torch`. Default: the fastest that this machine has.",
    "PETKIT_CPP": "When installing: 0 leaves the CPU kernels unbuilt, 1 fails when they cannot be built.",
    "PETKIT_CUDA": "When installing: the same of the CUDA kernels.",
    "PETKIT_MERGEKIT": "In the tests: folder that mergekit 0.1.5 was installed into, to compare merges with.",
}
OTHER_VARIABLES = {
    "OPENAI_API_KEY": "Key for the server behind `petkit serve`; for `petkit route` after PETKIT_API_KEY.",
    "HF_HOME": "Cache of the Hugging Face hub.",
    "HF_HUB_OFFLINE": "1 uses the cache alone; `--offline` sets it.",
    "TRANSFORMERS_OFFLINE": "1 uses the cache alone; `--offline` sets it.",
    "CUDA_VISIBLE_DEVICES": "CUDA devices that petkit sees.",
    "CUDA_HOME": "CUDA toolkit that builds the CUDA kernels.",
    "OMP_NUM_THREADS": "CPU threads, where `--threads` does not say.",
    "MKL_NUM_THREADS": "CPU threads of MKL alone.",
    "NO_COLOR": "Anything: no colours.",
}


def unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """Name the PETKIT_ variables that nothing reads.

    Args:
        environment: names and values.

    Returns:
        One sentence each, with the variable that may have been meant.
    """
    for name in sorted(environment):
        if name.startswith(PREFIX) and not name.startswith(SETTING) and name not in OWN_VARIABLES:
            yield f"the environment variable {name} has no effect{_suggestion(name)}"


def _suggestion(name: str) -> str:
    from petkit.cli.catalog import METHODS, load_configuration
    from petkit.configuration.messages import nearest
    from petkit.configuration.sections import leaves

    keys = (path for method in METHODS for path, _, _ in leaves(load_configuration(method)))
    known = {_stem(one): one for one in (*OWN_VARIABLES, *(SETTING + "__".join(key).upper() for key in keys))}
    near = nearest(_stem(name), known)
    return f"; did you mean {known[near]}?" if near else ""


def _stem(name: str) -> str:
    """What tells one variable from another: the prefixes would make all of them alike."""
    return name.removeprefix(PREFIX).removeprefix("SET_").strip("_")
