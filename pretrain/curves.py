"""Line charts: SVG text that takes its colours of ink and paper from the page around it, or a picture in a file."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

INK = "#010203"
"""Drawn with, then replaced by the page's own text colour."""
PALETTE = ("#4c8dd6", "#e07b39")
"""Readable on white and on black."""
MARK = "#d64c4c"
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Curve:
    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    """None leaves a gap."""


def draw_curves(
    title: str,
    curves: Sequence[Curve],
    levels: Mapping[str, float],
    marks: Mapping[str, Sequence[float]],
    *,
    identity: str,
    x_label: str = "step",
) -> str:
    """An ``<svg>`` element with `curves`, labelled horizontal lines at `levels` and ticks above the x axis at `marks`.

    Its element ids begin with `identity`, so that several charts can stand on one page.
    """
    text = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": identity}):
        figure = _figure(title, curves, levels, marks, x_label)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{identity}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def save_picture(path: Path, title: str, curves: Sequence[Curve]) -> None:
    """Write `curves` over steps as a PNG, black on white; the same curves give the same bytes. Raises OSError."""
    with matplotlib.rc_context(STYLE):
        _figure(title, curves, {}, {}, "step").savefig(path, format="png", dpi=150)


def _figure(
    title: str,
    curves: Sequence[Curve],
    levels: Mapping[str, float],
    marks: Mapping[str, Sequence[float]],
    x_label: str,
) -> Figure:
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.subplots()
    for curve, colour in zip(curves, PALETTE, strict=False):
        y = [float("nan") if value is None else value for value in curve.y]
        axes.plot(curve.x, y, color=colour, label=curve.label, linewidth=1.4, marker="o", markersize=2)
    for name, places in marks.items():
        axes.vlines(places, 0, 0.06, colors=MARK, label=name, transform=axes.get_xaxis_transform())
    for name, value in levels.items():
        axes.axhline(value, color=INK, linewidth=0.8, linestyle=":")
        place = axes.get_yaxis_transform()
        axes.text(0.99, value, name, transform=place, ha="right", va="bottom", fontsize=8)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    if marks or any(curve.label for curve in curves):
        axes.legend(frameon=False)
    return figure
