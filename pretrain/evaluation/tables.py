"""Results as people read them on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

BASELINES = {"order_0": "order-0 entropy", "order_2": "order-2 entropy", "xz": "xz -6"}


def text_table(title: str, results: Mapping[str, Any]) -> Table:
    """What was measured on one text, laid out as in ``evaluation.json``."""
    table = _table(title, "", "bits per byte", "perplexity", "prefix gain")

    def add(label: str, row: Mapping[str, Any], gain: str = "") -> None:
        table.add_row(label, f"{row['bits_per_byte']:.4f}", _perplexity(row["perplexity"]), gain)

    whole = results["windows"] == results["windows_of_split"]
    add(f"{'all' if whole else 'a sample of'} {results['tokens']:,} tokens", results)
    table.add_row(f"  per word, {results['words']:,} words", "", _perplexity(results["word_perplexity"]))
    table.add_row(f"  {results['accuracy']:.2%} predicted right")
    table.add_row(f"  {results['tokens_per_second']:,.0f} tokens/s")
    if results["ablation"]:
        table.add_section()
        spread = "" if results["ablation_windows"] == results["windows"] else ", evenly spread"
        table.add_row(f"{results['ablation'][0]['tokens']:,} tokens{spread}")
    for row in results["ablation"]:
        label = f"  prefix cut to {row['prefix_tokens']:,} tokens" if row["reach"] < 1 else "  whole prefix"
        add(label, row, f"{row['gain']:+.4f}" if row["reach"] else "")
    if results["baselines"]:
        table.add_section()
        for name, label in BASELINES.items():
            table.add_row(label, f"{results['baselines'][name]:.4f}")
    return table


def position_table(results: Mapping[str, Any]) -> Table:
    """The loss of one text by where among the latents a token is predicted."""
    losses, latents = results["loss_by_position"], results["latents"]
    table = _table("by position among the latents", "latents", "nats per token", "against the mean")
    for bucket, loss in enumerate(losses):
        if loss is not None:
            first, last = (-(-edge * latents // len(losses)) for edge in (bucket, bucket + 1))
            label = f"{first + 1:,} to {last:,}" if last > first + 1 else f"{last:,}"
            table.add_row(label, f"{loss:.4f}", f"{loss - results['loss']:+.4f}")
    return table


def task_table(name: str, metrics: Mapping[str, float]) -> Table:
    table = _table(name, "metric", "value")
    for metric, value in shown_metrics(metrics).items():
        table.add_row(metric, value)
    return table


def shown_metrics(metrics: Mapping[str, float]) -> dict[str, str]:
    """Each metric of a task, with its standard error where that is known.

    lm-eval calls that of ``NAME`` ``NAME_stderr``, and that of ``NAME,FILTER`` ``NAME_stderr,FILTER``.
    """
    shown = {}
    for name, value in metrics.items():
        base, comma, rest = name.partition(",")
        error = metrics.get(f"{base}_stderr{comma}{rest}")
        if not base.endswith("_stderr"):
            shown[name] = f"{value:,.4f}" if error is None else f"{value:,.4f} ± {error:.4f}"
    return shown


def passkey_table(accuracy: Mapping[int, Mapping[float, float]]) -> Table:
    """Keys found, by length of the context and depth of the key in it."""
    depths = next(iter(accuracy.values()))
    table = _table("passkeys found", "length", *(f"{depth:.0%} deep" for depth in depths))
    for length, of_length in accuracy.items():
        table.add_row(f"{length:,} tokens", *(f"{share:.0%}" for share in of_length.values()))
    return table


def _perplexity(value: float) -> str:
    return f"{value:,.3f}" if value < 1e5 else f"{value:.3g}"


def _table(title: str, label: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    # Where it is narrow, labels are wrapped: no digit of a number may be lost.
    table.add_column(label, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
