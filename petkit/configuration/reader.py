"""Read a YAML recipe: data only, YAML 1.2 scalars, no duplicate keys, bounded, a line number for every key.

PyYAML alone reads `1e-4` as text and `no` as false, keeps the last of two equal keys without a word, and can
be made to build objects. Here PyYAML only finds the structure; the values are made by the code below.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from petkit.errors import ConfigError, InputError

MAX_BYTES = 1 << 20
MAX_NODES = 50_000
MAX_DEPTH = 32


@dataclass(frozen=True)
class LoadedYaml:
    """A recipe as read: nested data, the line of every dotted key, and where it came from."""

    data: dict[str, Any]
    lines: dict[str, int]
    path: Path
    duplicates: tuple[str, ...] = ()
    """One error line per key that stands twice; the data holds the first of them."""


_INTEGER = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
_PATTERNS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    # Integers come first: the pattern for floats also matches them.
    ("int", _INTEGER, [*"-+0123456789"]),
    ("float", _FLOAT, [*"-+.0123456789"]),
)

Resolvers = dict[str, list[tuple[str, re.Pattern[str]]]]


def _resolvers() -> Resolvers:
    """PyYAML's table: first character of a scalar to the tags it may have, with their patterns."""
    table: Resolvers = {}
    for tag, pattern, first_characters in _PATTERNS:
        for first in first_characters:
            table.setdefault(first, []).append((f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$")))
    return table


SCALAR_RESOLVERS = _resolvers()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe scanner with the scalar types of YAML 1.2's core schema and nothing else."""

    yaml_implicit_resolvers = SCALAR_RESOLVERS


def load_yaml(path: Path | str) -> LoadedYaml:
    """Read one recipe file.

    Args:
        path: a UTF-8 YAML file of at most 1 MiB whose top level is a mapping (or empty).

    Returns:
        The data, and the 1-based line of every dotted key (`adapter.bits`, `adapter.targets.0`).

    Raises:
        InputError: the file is missing, a folder, unreadable or too large.
        ConfigError: not YAML, not a mapping, a duplicate key, a tag, or too many nodes.
    """
    return _unique(load_with_duplicates(path))


def load_with_duplicates(path: Path | str) -> LoadedYaml:
    """Like `load_yaml`, but keys that stand twice are left to the caller, who has other errors to tell."""
    path = Path(path)
    return _parse(_read_text(path), path)


def parse_yaml(text: str, path: Path) -> LoadedYaml:
    """Like `load_yaml`, from text that is already in memory; `path` only names it in errors."""
    return _unique(_parse(text, path))


def _unique(loaded: LoadedYaml) -> LoadedYaml:
    if loaded.duplicates:
        raise ConfigError("\n".join(loaded.duplicates))
    return loaded


def _parse(text: str, path: Path) -> LoadedYaml:
    node = _compose(text, path.name)
    if node is None:
        return LoadedYaml({}, {}, path)
    converter = _Converter(path.name)
    data = converter.convert(node, "", 0)
    if data is None:
        return LoadedYaml({}, {}, path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path.name} must hold a mapping of keys to values, got {type(data).__name__}")
    return LoadedYaml(data, converter.lines, path, tuple(converter.duplicates))


def parse_value(text: str, where: str) -> Any:
    """Read one value written in YAML, as in `--set key=VALUE`: a number, text, true, null, or [a, list].

    Raises:
        ConfigError: the text is not a YAML value; the message names `where` it stood.
    """
    node = _compose(text, where)
    return None if node is None else _Converter(where).convert(node, "", 0)


def _read_text(path: Path) -> str:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(
            f"{path} {what}; expected a YAML file (`petkit recipes ls` lists the shipped recipes)"
        )
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InputError(
            f"recipe {path} must be at most {MAX_BYTES} bytes, got {size}; it is hardly a recipe"
        )
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name} must be UTF-8 text; byte {error.start} is not") from error
    except OSError as error:
        raise InputError(f"recipe {path} cannot be read: {error.strerror}") from error


def _compose(text: str, where: str) -> yaml.Node | None:
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{where}:{line} is not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested deeper than {MAX_DEPTH} levels") from error
    finally:
        if loader is not None:
            loader.dispose()


class _Converter:
    """Turns PyYAML's node tree into plain data; remembers lines and duplicates, and bounds the work."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: dict[str, int] = {}
        self.duplicates: list[str] = []
        self.nodes = 0

    def convert(self, node: yaml.Node, path: str, depth: int) -> Any:
        """The value of a node; aliases are followed, each counted against the same bound."""
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ConfigError(
                f"{self.where}:{_line(node)} must expand to at most {MAX_NODES} values in {MAX_DEPTH} levels"
            )
        self.lines.setdefault(path, _line(node))
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.convert(item, _join(path, str(i)), depth + 1) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise ConfigError(
            f"{self.where}:{_line(node)} has the tag {node.tag!r}; recipes hold plain data only"
        )

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise ConfigError(f"{self.where}:{line} a key must be text, got {key_node.value!r}; quote it")
            name = _join(path, key)
            if key in result:
                self.duplicates.append(
                    f"duplicate key {name} ({self.where}:{first[key]} and {line}); keep one"
                )
                continue
            first[key] = self.lines[name] = line
            result[key] = self.convert(value_node, name, depth + 1)
        return result

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return _SCALARS[node.tag](node.value)
        except KeyError:
            raise ConfigError(
                f"{self.where}:{_line(node)} has the tag {node.tag!r}; recipes hold plain data only"
            ) from None
        except ValueError as error:
            raise ConfigError(
                f"{self.where}:{_line(node)} must be a {node.tag.rpartition(':')[2]}, got {node.value[:40]!r}"
            ) from error


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _integer(text: str) -> int:
    # YAML 1.2 has no octal by a leading zero: 010 is ten.
    return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:str": str,
    "tag:yaml.org,2002:null": lambda text: None,
    "tag:yaml.org,2002:bool": _boolean,
    "tag:yaml.org,2002:int": _integer,
    "tag:yaml.org,2002:float": _float,
}


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
