"""The literal table of methods of merging."""

from __future__ import annotations

import difflib

from petkit.errors import ConfigError
from petkit.merging.combining import Method
from petkit.merging.methods.breadcrumbs import Breadcrumbs, BreadcrumbsTies
from petkit.merging.methods.dare import DareLinear, DareTies
from petkit.merging.methods.della import Della, DellaLinear
from petkit.merging.methods.linear import Linear
from petkit.merging.methods.model_stock import ModelStock
from petkit.merging.methods.passthrough import Passthrough
from petkit.merging.methods.sce import Sce
from petkit.merging.methods.slerp import Slerp
from petkit.merging.methods.task_arithmetic import TaskArithmetic
from petkit.merging.methods.ties import Ties
from petkit.merging.methods.tsv import Tsv

METHODS: tuple[Method, ...] = (
    Linear(),
    TaskArithmetic(),
    Ties(),
    DareLinear(),
    DareTies(),
    Sce(),
    Tsv(),
    Slerp(),
    ModelStock(),
    Della(),
    DellaLinear(),
    Breadcrumbs(),
    BreadcrumbsTies(),
    Passthrough(),
)


def method_named(name: str) -> Method:
    """A method.

    Args:
        name: as in `merge_method`.

    Raises:
        ConfigError: there is none; the nearest name is given.
    """
    known = {method.name: method for method in METHODS}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"merge_method must be one of {', '.join(known)}, got {name!r}{hint}")
