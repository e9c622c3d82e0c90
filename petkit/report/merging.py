"""The page of `petkit merge analyze`: what models changed, how far they agree, and what merging kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from petkit.report.heat_maps import Scale, draw_heat_map
from petkit.report.html import Section, write_page
from petkit.report.tables import Cell, Table

# Measures of pairs and how they are drawn: one side of the colours is always what models have in common.
SCALES = {
    "jaccard_excess": Scale("Jaccard overlap minus random", centre=0.0, least=0.1),
    "cosine": Scale("cosine of shifts", centre=0.0, least=0.2),
    "sign_conflict": Scale("share of opposite signs", centre=0.5, least=0.2, form=".0%", flipped=True),
}
FOOTPRINT = Scale("share of weights changed", form=".0%")
TITLES = {
    "jaccard_excess": "Overlap of footprints beyond chance: 0 is what random footprints of these sizes have.",
    "cosine": "Direction of shifts, on all weights: 1 is the same direction, 0 none in common, -1 opposite.",
    "sign_conflict": "Of the weights that both changed, the share that went opposite ways: 50 % is chance.",
}
PERCENT = {"footprint": ".1%", "changed by both": ".1%", "sign conflict": ".1%", "norm / base": ".2%"}
CHANGED = "A weight counts as changed where |w - w0| > {eta:g} max(|w|, |w0|)."


def write_merging_page(folder: Path, result: Mapping[str, Any], title: str = "Analysis of a merge") -> Path:
    """Write `report.html` and its pictures under `plots`.

    Args:
        folder: to write to.
        result: content of analysis.json.
        title: of the page.

    Returns:
        The page.
    """
    plots = folder / "plots"
    names = [one["name"] for one in result["models"]]
    weights = result["weights"]
    sections = [
        _models_section(result),
        _pairs_section(weights, names, plots),
        _kinds_section(weights),
        _layers_section(weights, names, plots),
    ]
    for merged, own in (result.get("neighbourhood") or {}).get("merged", {}).items():
        sections.append(_neighbourhood_section(merged, own, result["neighbourhood"], plots))
    if result.get("gains"):
        sections.append(_gains_section(result["gains"]))
    return write_page(folder / "report.html", title, sections, f"base: {result['base']}")


def model_table(weights: Mapping[str, Any]) -> Table:
    """Footprint and size of each model's shift."""
    rows = tuple(
        (one["model"], one["footprint"], one["norm"], one["relative_norm"])
        for one in weights["whole"]["models"]
    )
    columns = ("model", "footprint", "norm of shift", "norm / base")
    return Table(columns, rows, note=CHANGED.format(eta=weights["eta"]), formats=PERCENT)


def pair_table(weights: Mapping[str, Any]) -> Table:
    """Overlap and direction of each pair of models."""
    projection = weights["projection"]
    projected = f"projected to {projection['dimensions']}"
    rows = tuple(
        (
            pair_name(pair),
            pair["jaccard"],
            pair["jaccard_random"],
            pair["sign_conflict"],
            _tidy(pair["cosine"]),
            _tidy(pair["cosine_overlap"]),
            _tidy(pair["cosine_projected"]),
        )
        for pair in weights["whole"]["pairs"]
    )
    columns = ("models", "Jaccard", "random", "sign conflict", "cosine", "on overlap", projected)
    note = (
        f"Cosines on all weights, on those that both changed, and there after a random projection, whose "
        f"standard deviation is about {projection['standard_deviation']:.3g}."
    )
    decimals = {name: ".3f" for name in columns if name not in ("models", "sign conflict")}
    return Table(columns, rows, note=note, formats=PERCENT | decimals)


def gains_table(gains: Mapping[str, Any]) -> Table:
    """Gain consistency of each model."""
    rows = tuple(
        (
            one["model"],
            one["role"],
            one["score"],
            one["gained"],
            one["lost"],
            one["cosine"],
            _interval(one["low"], one["high"]),
        )
        for one in gains["models"]
    )
    columns = ("model", "role", "mean score", "items gained", "items lost", "cosine", "95 % interval")
    note = (
        f"Cosine of each model's gains over the base with those of the best expert on each of "
        f"{gains['items']} items ({gains['union']['gained']} gained by some expert); bootstrap over items."
    )
    return Table(columns, rows, note=note, formats={"mean score": ".3f", "cosine": ".3f"})


def divergence_tables(neighbourhood: Mapping[str, Any]) -> list[Table]:
    """The matrix of divergences per token of each merged model."""
    tables = []
    for merged, own in neighbourhood["merged"].items():
        domains = neighbourhood["domains"]
        rows = tuple(
            (expert, *(_with_error(_cell(own, expert, domain), "per_token") for domain in domains))
            for expert in neighbourhood["experts"]
        )
        tables.append(Table(("expert", *domains), rows, title=f"KL(expert || {merged}), nats a token"))
    return tables


def pair_name(pair: Mapping[str, Any]) -> str:
    """Two models in one line."""
    return " · ".join(pair["models"])


def _models_section(result: Mapping[str, Any]) -> Section:
    weights = result["weights"]
    about = tuple((one["name"], one["role"], one["folder"]) for one in result["models"])
    left_out = weights["left_out"]
    notes = (f"{len(left_out)} tensors that are no floats are left out.",) if left_out else ()
    count = f"{weights['whole']['parameters']:,} weights in {weights['tensors']} tensors."
    return Section(
        "Models", (count, *notes), tables=(Table(("model", "role", "folder"), about), model_table(weights))
    )


def _pairs_section(weights: Mapping[str, Any], names: Sequence[str], plots: Path) -> Section:
    pairs = {frozenset(pair["models"]): pair for pair in weights["whole"]["pairs"]}
    images = []
    for measure, scale in SCALES.items():
        values = [
            [pairs[frozenset((one, other))][measure] if one != other else None for other in names]
            for one in names
        ]
        images.append(draw_heat_map(names, names, values, scale, plots / f"{measure}.png"))
    captions = {f"{measure}.png": text for measure, text in TITLES.items()}
    return Section("Pairs of models", tables=(pair_table(weights),), images=tuple(images), captions=captions)


def _kinds_section(weights: Mapping[str, Any]) -> Section:
    models = Table(
        ("kind", "weights", *(one["model"] for one in weights["whole"]["models"])),
        tuple(
            (kind, one["parameters"], *(model["footprint"] for model in one["models"]))
            for kind, one in weights["kinds"].items()
        ),
        title="Footprint",
        formats={one["model"]: ".1%" for one in weights["whole"]["models"]},
    )
    rows = tuple(
        (
            kind,
            pair_name(pair),
            pair["jaccard"],
            pair["jaccard_random"],
            pair["sign_conflict"],
            _tidy(pair["cosine"]),
            _tidy(pair["cosine_overlap"]),
        )
        for kind, one in weights["kinds"].items()
        for pair in one["pairs"]
    )
    columns = ("kind", "models", "Jaccard", "random", "sign conflict", "cosine", "on overlap")
    decimals = dict.fromkeys(("Jaccard", "random", "cosine", "on overlap"), ".3f")
    return Section("Kinds of modules", tables=(models, Table(columns, rows, formats=PERCENT | decimals)))


def _layers_section(weights: Mapping[str, Any], names: Sequence[str], plots: Path) -> Section:
    layers = weights["layers"]
    rows = list(layers)
    footprints = [[model["footprint"] for model in one["models"]] for one in layers.values()]
    images = [
        draw_heat_map(rows, names, footprints, FOOTPRINT, plots / "layers_footprint.png", row_label="layer")
    ]
    pairs = [f"{one}\n{other}" for one, other in combinations(names, 2)]
    for measure, scale in SCALES.items():
        values = [[pair[measure] for pair in one["pairs"]] for one in layers.values()]
        target = plots / f"layers_{measure}.png"
        images.append(draw_heat_map(rows, pairs, values, scale, target, row_label="layer"))
    captions = {f"layers_{measure}.png": text for measure, text in TITLES.items()}
    captions["layers_footprint.png"] = "Share of each layer's weights that each model changed."
    return Section("Layers", images=tuple(images), captions=captions)


def _neighbourhood_section(
    merged: str, own: Mapping[str, Any], whole: Mapping[str, Any], plots: Path
) -> Section:
    experts, domains = whole["experts"], whole["domains"]
    values = [
        [_estimate(_cell(own, expert, domain), "per_token") for domain in domains] for expert in experts
    ]
    target = plots / f"divergence_{len(list(plots.glob('divergence_*.png'))) + 1}.png"
    scale = Scale("KL(expert || merged), nats a token", least=1e-3, form=".3f")
    image = draw_heat_map(experts, domains, values, scale, target, row_label="expert")
    caption = (
        f"How far {merged} is from each expert, on what the expert answers to each domain's prompts. "
        "Estimates by sampling, which may lie below 0 where the divergence is smaller than their error."
    )
    return Section(
        f"Policy neighbourhood of {merged}",
        paragraphs=(_sampling_text(whole),),
        tables=(_divergences(own, experts, domains), _verdicts(own["neighbours_per_token"])),
        images=(image,),
        captions={target.name: caption},
    )


def _sampling_text(whole: Mapping[str, Any]) -> str:
    sampling = whole["sampling"]
    return (
        f"Responses of up to {sampling['max_new_tokens']} tokens, {sampling['samples']} for each prompt, "
        f"drawn at temperature 1 with seed {sampling['seed']}, or as given."
    )


def _divergences(own: Mapping[str, Any], experts: Sequence[str], domains: Sequence[str]) -> Table:
    rows = []
    for expert in experts:
        for domain in domains:
            cell = _cell(own, expert, domain)
            if cell is not None:
                measures = (_with_error(cell, unit) for unit in ("per_token", "per_sequence"))
                rows.append((expert, domain, *measures, cell["prompts"], cell["responses"], cell["tokens"]))
    columns = ("expert", "domain", "nats a token", "nats a sequence", "prompts", "responses", "tokens")
    return Table(columns, tuple(rows), note="K1: mean of log pi_expert - log pi_merged, ± standard error.")


def _verdicts(rows: Sequence[Mapping[str, Any]]) -> Table:
    body = tuple(
        (one["domain"], one["own_expert"], one["expert"], one["margin"], one["verdict"]) for one in rows
    )
    columns = ("domain", "its expert", "other expert", "margin, nats a token", "verdict")
    note = (
        "A neighbour diverges less from the merged model than the domain's own expert does; within two "
        "standard errors it is unclear."
    )
    return Table(columns, body, title="Neighbours", note=note)


def _gains_section(gains: Mapping[str, Any]) -> Section:
    return Section("Gain consistency", tables=(gains_table(gains),))


def _cell(own: Mapping[str, Any], expert: str, domain: str) -> Mapping[str, Any] | None:
    for one in own["cells"]:
        if (one["expert"], one["domain"]) == (expert, domain):
            found: Mapping[str, Any] = one
            return found
    return None


def _estimate(cell: Mapping[str, Any] | None, unit: str) -> float | None:
    return None if cell is None else float(cell[unit]["estimate"])


def _with_error(cell: Mapping[str, Any] | None, unit: str) -> Cell:
    if cell is None:
        return None
    value = cell[unit]
    error = value["standard_error"]
    return f"{value['estimate']:.4g}" + ("" if error is None else f" ± {error:.2g}")


def _tidy(cosine: float | None) -> float | None:
    """To three decimals, and never minus zero."""
    return None if cosine is None else round(cosine, 3) + 0.0


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
