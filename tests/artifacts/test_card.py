from __future__ import annotations

from petkit.artifacts import Base, Manifest, step
from petkit.artifacts.card import write_card

ROWS = [("accuracy", "80 %")]


def card(base: Base, **options: str) -> str:
    manifest = Manifest(base=base, lineage=(step("train adapter", {}, {}),))
    return write_card(manifest, "lora, 1 bit", "About it.", ROWS, **options)


def test_a_card_names_the_base_and_how_it_was_made() -> None:
    text = card(Base(id="timm/x", revision="abc", sha256="0" * 64), licence="mit", note="Note.")
    assert text.startswith(
        "# lora, 1 bit, for timm/x\n\nAbout it.\n\n| | |\n|---|---|\n| accuracy | 80 % |\n"
    )
    assert "| base | `timm/x` at revision `abc` |" in text
    assert (
        f"| sha256 of the base's weights | `{'0' * 64}` |\n| licence of the base | mit |\n\nNote.\n" in text
    )
    assert "* `petkit train adapter`, petkit " in text
    assert text.endswith("petkit predict FOLDER INPUT...\n```\n")


def test_what_is_not_known_is_said() -> None:
    text = card(Base(id="timm/x"))
    assert "| base | `timm/x` |" in text
    assert "| sha256 of the base's weights | not recorded |" in text
    assert "| licence of the base | not known to petkit: ask its publisher |\n\n## History" in text
