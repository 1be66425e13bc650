"""The trap gallery without Jupyter: its setup cells, and any card as it comes, corrected or changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labkit.course.cards import Card
from labkit.course.markers import Role
from labkit.course.sources import Cell, read_source
from labkit.course.trapcard import TrapCard
from tests.cells import run

SOURCE = Path(__file__).parents[2] / "notebooks/source/08_trap_gallery.py"


class Leafing:
    """The gallery's notebook with its setup cells run.

    Args:
        exercise: the imports of which exercise are run besides the setup.
    """

    def __init__(self, *exercises: int) -> None:
        self.cells: dict[str, Cell] = {cell.name: cell for cell in read_source(SOURCE).cells}
        self.namespace: dict[str, Any] = {}
        for name in ("setup", *(f"imports-{exercise}" for exercise in exercises)):
            run(self.cells[name].text, self.namespace)

    def text(self, id: str, role: Role = "starter") -> str:
        """The cell of a card in the learner's or in the solutions edition."""
        return self.cells[id].edition(role) or ""

    def any(self, id: str, *swaps: tuple[str, str], role: Role = "starter") -> TrapCard | Card:
        """Run a card's cell in a copy of the notebook, with some text replaced, which must be there."""
        source = self.text(id, role)
        for old, new in swaps:
            assert old in source, f"{old!r} is no longer in {id}"
            source = source.replace(old, new)
        head, call, tail = source.rpartition("gallery.card(")
        return run(f"{head}_card = {call}{tail}", dict(self.namespace))["_card"]

    def card(self, id: str, *swaps: tuple[str, str], role: Role = "starter") -> TrapCard:
        card = self.any(id, *swaps, role=role)
        assert isinstance(card, TrapCard), card
        return card

    def close(self) -> None:
        self.namespace["lab"].close()
