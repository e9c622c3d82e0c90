"""Write a resolved configuration as YAML that the reader takes back unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from petkit.configuration.effects import effective
from petkit.configuration.reader import SCALAR_RESOLVERS
from petkit.configuration.sections import Config


def dump_yaml(config: Config | Mapping[str, Any]) -> str:
    """A configuration, or plain nested data, as block-style YAML.

    Args:
        config: a resolved configuration, whose keys without an effect are left out so that the text resolves
            to the same configuration again; or a mapping of plain values, written as it is.

    Returns:
        The text, keys in declaration order; floats are spelled so that they read back bit for bit.
    """
    data = effective(config) if isinstance(config, Config) else config
    return yaml.dump(_plain(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe writer, without aliases: they only save bytes and confuse a reader of the file."""

    # Quote what either reader would take for a number, a truth value or a date: ours, or a YAML 1.1 one.
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own name
        first: [*SCALAR_RESOLVERS.get(first, []), *yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])]
        for first in {*SCALAR_RESOLVERS, *yaml.SafeDumper.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Never write an anchor."""
        return True


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
