"""Every committed Spanish edition runs in nbclient without an exception; the solutions read well as HTML."""

from __future__ import annotations

import asyncio
import os
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

with warnings.catch_warnings():  # bleach, which nbconvert imports, warns of itself
    warnings.simplefilter("ignore")
    import nbconvert

from labkit.course.exercises import outline
from tests.abreast import abreast

ROOT = Path(__file__).parents[2]
LEARNER = sorted((ROOT / "notebooks/es").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks/es/solutions").glob("*.ipynb"))
# A card of a gallery runs the trap and its cure: the learner's edition shows both, and one run is enough.
READ = [learner if outline(learner.stem).cures else solved for learner, solved in zip(LEARNER, SOLUTIONS, strict=True)]
PAGES = os.environ.get("LABKIT_PAGES")


Runs = dict[Path, Future[Any]]


def execute(path: Path, work: Path) -> Any:
    """Run a notebook in a kernel of its own, where it lies: so it must find the project's root by itself."""
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=180,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,  # else the page would fetch a widget's code instead of showing the card in its place
    )
    asyncio.run(client.async_execute(env=os.environ | {"LABKIT_WORK": str(work)}))
    return notebook


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """The editions that are asked for."""
    with abreast(request, lambda _, path, folder: execute(path, folder)) as jobs:
        yield {path: job for (_, path), job in jobs.items()}


def streams(notebook: Any, name: str) -> list[str]:
    return [
        f"{cell.id}: {output.text}"
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.get("name") == name
    ]


def test_there_are_editions() -> None:
    assert LEARNER and [path.name for path in LEARNER] == [path.name for path in SOLUTIONS]


@pytest.mark.parametrize("path", LEARNER, ids=lambda path: path.stem)
def test_the_untouched_starter_shows_its_trap_and_goes_on(path: Path, runs: Runs) -> None:
    notebook = runs[path].result()
    assert streams(notebook, "stderr") == []
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    third = [cell for cell in notebook.cells if cell.cell_type == "code"][2]
    assert any("text/html" in output.get("data", {}) for output in third.outputs), "the third cell shows a picture"
    assert "<img" in str(third.outputs)


@pytest.mark.parametrize("path", READ, ids=lambda path: path.stem)
def test_the_solution_runs_and_reads_well_as_html(path: Path, runs: Runs) -> None:
    """``LABKIT_PAGES=folder`` keeps the pages."""
    notebook = runs[path].result()
    assert streams(notebook, "stderr") == []
    exporter = nbconvert.HTMLExporter(embed_images=True)
    page, _ = exporter.from_notebook_node(notebook)
    images = [tag for tag in re.findall(r"<img [^>]*>", page) if "data:image" in tag]
    assert images
    for tag in images:
        alt = re.search(r'alt="([^"]*)"', tag)
        assert alt and len(alt[1].split()) >= 5, f"a picture of {path.stem} needs alt text: {tag[:120]}"
    if PAGES:
        (Path(PAGES)).mkdir(parents=True, exist_ok=True)
        (Path(PAGES) / f"{path.stem}.html").write_text(page, encoding="utf-8")
