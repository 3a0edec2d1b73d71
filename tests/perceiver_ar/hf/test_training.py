"""An exported model in `transformers.Trainer`."""

from pathlib import Path

import pytest
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from tests.perceiver_ar.hf.models import CONTEXT, LATENTS, build, tokens

LEARNING_RATE = 0.1


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_of_trainer_is_a_step_of_our_own_loss(tmp_path: Path, accumulation: int) -> None:
    rows = tokens(4, CONTEXT)
    trained, expected = build(z_loss=0.0), build(z_loss=0.0)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(trained, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in rows])
    trainer.train()

    prefix = CONTEXT - LATENTS
    targets = rows[:, prefix + 1 :]
    # The last latent has nothing to predict within its row.
    targets = torch.nn.functional.pad(targets, (0, 1), value=-100)
    loss = expected.model(rows, prefix, targets=targets).loss.total / (targets != -100).sum()
    loss.backward()
    torch.optim.SGD(expected.parameters(), LEARNING_RATE).step()

    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-3)
    for (name, weight), after in zip(expected.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(after, weight, msg=lambda m, name=name: f"{name}: {m}")


def test_trainer_evaluates_what_the_latents_predict(tmp_path: Path) -> None:
    rows, model = tokens(3, CONTEXT), build()
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_eval_batch_size=2, report_to=[], use_cpu=True)

    def accuracy(evaluation: EvalPrediction) -> dict[str, float]:
        predicted = evaluation.predictions[:, :-1].argmax(-1)
        return {"accuracy": (predicted == evaluation.label_ids[:, -predicted.shape[1] :]).mean()}

    labelled = [{"input_ids": row, "labels": row} for row in rows]
    metrics = Trainer(model, arguments, eval_dataset=labelled, compute_metrics=accuracy).evaluate()

    logits = model.model(rows, CONTEXT - LATENTS).logits[:, :-1]
    targets = rows[:, 1 - LATENTS :]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert metrics["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["eval_accuracy"] == pytest.approx((logits.argmax(-1) == targets).float().mean().item())


def test_a_given_number_of_items_divides_the_summed_loss() -> None:
    model, ids = build(), tokens(2, 20)
    mean = model(ids, labels=ids).loss
    assert model(ids, labels=ids, num_items_in_batch=1).loss.item() == pytest.approx(mean.item() * 2 * (LATENTS - 1))
