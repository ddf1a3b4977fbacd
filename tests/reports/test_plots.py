"""Pictures of any content: labels are letters and no formulas, sizes grow, nothing overlaps."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from lrnnx_app import plots
from lrnnx_app.spec import DataSpec, Example
from lrnnx_app.train import artifacts
from tests.helpers import SMALL

ODD = ("a$b$", "$\\frac{", "\\$1", "\x1b[31m", "a\nb", "中文", "\udcff", "", "x" * 300, "é")


def drawn(figure: Figure) -> Figure:
    """A figure that was drawn; a warning, as of a letter that the font lacks, is an error in this suite."""
    figure.canvas.draw()
    return figure


def apart(labels: list[Any]) -> None:
    """No text lies over the next one."""
    boxes = [text.get_window_extent() for text in labels if text.get_text()]
    assert not [(a, b) for a, b in pairwise(boxes) if a.overlaps(b)]


@pytest.mark.parametrize("text", ODD)
def test_labels_are_short_and_as_they_were_written(text: str) -> None:
    figure = plots.comparison([text], {text: ([1.0], [None])})
    title = figure.axes[0].set_title(plots.label(text))
    drawn(figure)
    shown, math = title._preprocess_math(title.get_text())  # type: ignore[attr-defined]  (matplotlib's own)
    assert math is False
    assert len(shown) <= 30
    assert shown.isprintable()
    if text.isprintable() and len(text) < 30 and text.isascii():
        assert shown == text


def test_a_long_label_keeps_both_ends_and_may_take_lines() -> None:
    assert plots.label("begin" + "x" * 99 + "end", 20).startswith("beginx")
    assert plots.label("begin" + "x" * 99 + "end", 20).endswith("xend")
    assert plots.label("one two three", 30, 8) == "one two\nthree"


@pytest.mark.parametrize("classes", [2, 10, 41, 100])
def test_labels_of_a_confusion_matrix_do_not_overlap(classes: int) -> None:
    counts = np.full((classes, classes), 99999)
    names = tuple(f"a class of number {i}" for i in range(classes))
    axis = drawn(plots.confusion_matrix(counts, names)).axes[0]
    apart(axis.get_xticklabels())
    apart(axis.get_yticklabels())
    assert len(axis.texts) == (classes**2 if classes <= plots.NUMBERED else 0)
    apart(axis.texts[:classes])


@pytest.mark.parametrize("counts", [np.zeros((2, 2)), np.full((2, 2), 7), np.diag([3.0, 2e7])])
def test_numbers_of_a_confusion_matrix_differ_from_their_ground(counts: np.ndarray) -> None:
    axis = drawn(plots.confusion_matrix(counts, ())).axes[0]
    image = axis.images[0]
    for text, count in zip(axis.texts, counts.flat, strict=True):
        ground = float(np.mean(image.cmap(image.norm(count))[:3]))
        assert abs(ground - (text.get_color() == "white")) > 0.35
    assert [text.get_text() for text in axis.texts][-1] == (
        "2e+07" if counts.max() > 1e6 else f"{counts[1, 1]:.0f}"
    )


@pytest.mark.parametrize("runs", [1, 3, 20])
def test_a_comparison_has_room_for_every_run(runs: int) -> None:
    names = [f"s5 d_state={i} and many other settings that differ, such as these ones" for i in range(runs)]
    values: dict[str, Any] = {
        "accuracy": ([0.9] * runs, [0.1] * runs),
        "parameters": ([1e5] * runs, [None] * runs),
    }
    figure = drawn(plots.comparison(names, values))
    apart(figure.axes[0].get_yticklabels())
    assert all(axis.get_window_extent().width > 150 for axis in figure.axes)


@pytest.mark.parametrize("steps", [1, 2, 5000])
@pytest.mark.parametrize("kind", ["events", "frames", "pixels"])
def test_examples_with_titles_of_any_kind(kind: str, steps: int) -> None:
    if kind == "pixels":
        rows = [Example(torch.rand(16, 1), torch.tensor(0)) for _ in ODD]
    else:
        x = torch.arange(steps) if kind == "events" else torch.rand(steps, 6)
        rows = [Example(x, torch.tensor(0), torch.full((steps,), 5.0)) for _ in ODD]
    spec = DataSpec(d_input=5000, d_output=2, tokens=kind == "events")
    figure = drawn(plots.examples(rows, [f"{title} (98%), is {title}" for title in ODD], spec))
    titles = [axis.title for axis in figure.axes]
    across = 4 if kind == "pixels" else 2
    for line in range(0, len(ODD), across):
        apart(titles[line : line + across])


def test_many_metrics_and_nothing_heard_are_drawn(tmp_path: Path) -> None:
    keys = [f"train/a${i}" for i in range(9)]
    (tmp_path / "metrics.csv").write_text(f"step,{','.join(keys)}\n1{',1' * 9}\n2{',2' * 9}\n")
    figure = plots.learning_curves(tmp_path / "metrics.csv")
    assert figure is not None
    assert drawn(figure).get_size_inches()[0] < 20
    drawn(plots.spectrograms({"input": torch.zeros(0)}, 8000))


def test_pictures_and_sounds_are_called_by_names_that_files_and_tags_can_have(tmp_path: Path) -> None:
    class Task:
        spec = SimpleNamespace(sample_rate=8000)

        def figures(self) -> Iterator[tuple[str, Figure]]:
            for index, name in enumerate((*ODD, "a/b", "../c", "a\0b")):
                yield f"{index}_{name}", Figure((1, 1))

        def sounds(self) -> Iterator[tuple[str, torch.Tensor]]:
            yield "0_\udcff/x/noisy", torch.zeros(10)

    folder = tmp_path / "run é"
    folder.mkdir()
    artifacts.draw(Task(), folder, 1)  # type: ignore[arg-type]  (a stand-in)
    names = [path.name for path in (folder / "plots").iterdir()]
    assert len(names) == len(ODD) + 3
    assert all(name.isprintable() and len(name) < 70 for name in names)


def test_a_run_folder_is_called_by_any_bytes_once_it_is_trained(lrnnx, tmp_path: Path) -> None:
    odd, plain = tmp_path / "run \udcff", tmp_path / "run"
    words = ["digits_lru", *SMALL, "trainer.max_epochs=-1", "model.d_model=8", "model.depth=1"]
    lrnnx("train", *words, "-o", odd).refuses("run \\xff: no UTF-8")
    assert not odd.exists()
    lrnnx("train", *words, "-o", plain).done()
    assert (plain / "plots" / "confusion_matrix.png").stat().st_size > 0
    plain.rename(odd)
    lrnnx("evaluate", odd, "--json").done()
    lrnnx("compare", odd, "-o", odd / "c.png").done()
    assert (odd / "c.png").stat().st_size > 0
