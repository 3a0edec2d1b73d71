"""Tables on a terminal of the usual width."""

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from pretrain.evaluation.tables import passkey_table, position_table, task_table, text_table


def shown(table: Table) -> str:
    file = io.StringIO()
    Console(file=file, width=80).print(table)
    return file.getvalue()


@pytest.fixture
def large() -> dict[str, Any]:
    """Results whose numbers take as much room as any do."""
    row = {"tokens": 1_234_567_890, "bits_per_byte": 12.3456, "perplexity": 98_765.432, "gain": -10.1234}
    ablation = [{**row, "reach": reach, "prefix_tokens": round(reach * 1_130_048)} for reach in (0.0, 0.25, 1.0)]
    return {
        **row,
        **{"words": 123_456_789, "word_perplexity": 1.5e21, "accuracy": 0.12345, "tokens_per_second": 1_234_567.8},
        **{"windows": 9, "windows_of_split": 10, "ablation_windows": 5, "ablation": ablation},
        **{"loss": 10.5, "latents": 1_048_576, "loss_by_position": [12.3456] * 16},
        "baselines": {"order_0": 4.5, "order_2": 2.3, "xz": 1.9},
    }


def test_no_number_of_a_text_is_cut(large: dict[str, Any]) -> None:
    table = shown(text_table("a corpus with a long name, validation text", large))
    assert "…" not in table
    assert all(text in table for text in ("12.3456", "98,765.432", "-10.1234", "1.5e+21", "1,234,567,890 tokens"))
    assert table.count("tokens/s") == 1 and "1,234,568 tokens/s" in table
    assert "…" not in shown(position_table(large))


def test_metrics_of_a_task_have_headings_and_their_errors_beside_them() -> None:
    metrics = {"acc": 0.25, "acc_stderr": 0.0123, "a metric of a very long name " * 3: 123_456.789}
    table = shown(task_table("chosen", metrics | {"exact_match,strict": 0.5, "exact_match_stderr,strict": 0.25}))
    assert all(text in table for text in ("metric", "value", "0.2500 ± 0.0123", "0.5000 ± 0.2500", "123,456.7890"))
    assert "stderr" not in table and "…" not in table


def test_passkeys_by_length_and_depth_fit() -> None:
    table = shown(passkey_table({1_048_576: {depth / 4: 1.0 for depth in range(5)}}))
    assert "…" not in table and "1,048,576 tokens" in table and table.count("100%") == 6
