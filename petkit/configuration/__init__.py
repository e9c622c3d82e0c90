"""Recipes: the YAML reader, the precedence of settings, and errors with line numbers. Torch-free."""

from petkit.configuration.editing import edit_yaml
from petkit.configuration.effects import effective
from petkit.configuration.peeking import peek
from petkit.configuration.reader import LoadedYaml, load_yaml, parse_value
from petkit.configuration.resolution import Resolved, parse_override, resolve
from petkit.configuration.sections import Config, above, applies_to, outside
from petkit.configuration.writer import dump_yaml

__all__ = [
    "Config",
    "LoadedYaml",
    "Resolved",
    "above",
    "applies_to",
    "dump_yaml",
    "edit_yaml",
    "effective",
    "load_yaml",
    "outside",
    "parse_override",
    "parse_value",
    "peek",
    "resolve",
]
