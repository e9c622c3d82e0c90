"""The README.md of an artifact: what every model card says, around what its command adds."""

from __future__ import annotations

from collections.abc import Sequence

from petkit.artifacts.manifest import Manifest, Step


def write_card(
    manifest: Manifest,
    title: str,
    about: str,
    rows: Sequence[tuple[str, str]],
    licence: str | None = None,
    note: str | None = None,
) -> str:
    """Lay a model card out.

    Args:
        manifest: its base and lineage are added.
        title: what the artifact is, before the base's name.
        about: a sentence on what it holds.
        rows: name and value of each measure.
        licence: of the base model, where it is known.
        note: a sentence below the table.

    Returns:
        Markdown.
    """
    base = manifest.base
    revision = f" at revision `{base.revision}`" if base.revision else ""
    facts = [
        *rows,
        ("base", f"`{base.id}`{revision}"),
        ("sha256 of the base's weights", f"`{base.sha256}`" if base.sha256 else "not recorded"),
        ("licence of the base", licence or "not known to petkit: ask its publisher"),
    ]
    use = ("petkit eval FOLDER", "petkit predict FOLDER INPUT...")
    return lay_out(f"{title}, for {base.id}", about, facts, note, manifest.lineage, use)


def lay_out(
    title: str,
    about: str,
    facts: Sequence[tuple[str, str]],
    note: str | None,
    lineage: Sequence[Step],
    use: Sequence[str],
) -> str:
    """Lay out a card of any kind of artifact.

    Args:
        title: its first line.
        about: a sentence on what the artifact holds.
        facts: name and value of each row of its table.
        note: a sentence below the table.
        lineage: the commands that made the artifact.
        use: commands that use it.

    Returns:
        Markdown.
    """
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts)]
    history = [f"* `petkit {one.command}`, petkit {one.version}, {one.created}" for one in lineage]
    sections = [
        [f"# {title}"],
        [about],
        table,
        [note] if note else [],
        ["## History"],
        history,
        ["## Use"],
        ["```", *use, "```"],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"
