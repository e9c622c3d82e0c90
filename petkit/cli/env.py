"""`petkit env`: versions and hardware, to paste into a bug report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from petkit.cli import facts, output
from petkit.cli.common import JsonFlag


def command(as_json: JsonFlag = False) -> None:
    """Print versions, hardware, kernels and settings, to paste into a bug report. It holds no token."""
    report: dict[str, Mapping[str, Any]] = {
        "versions": facts.versions(),
        "platform": facts.platform_facts(),
        "hardware": facts.hardware(),
        "torch": facts.torch_facts(),
        "kernels": facts.kernel_facts(),
        "tools": facts.compilers(),
        "variables": facts.variables(),
    }
    output.print_result(
        "\n".join(_section(title, values) for title, values in report.items()), report, as_json
    )


def _section(title: str, values: Mapping[str, Any]) -> str:
    width = max((len(name) for name in values), default=0)
    lines = [f"  {name:<{width}}  {_text(value)}" for name, value in values.items()]
    return "\n".join([f"{title}:", *(lines or ["  none"])])


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) or "-" if isinstance(value, list | tuple) else str(value)
