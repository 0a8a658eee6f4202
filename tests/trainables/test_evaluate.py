"""What evaluation adds up: perplexity over all targets, accuracy and macro F1 as scikit-learn counts them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from lorafront.trainables.data import TokenRows
from lorafront.trainables.evaluate import class_metrics, language_metrics, perplexity
from lorafront.trainables.seq_cls import SEQ_CLS

LABELS = 3
answers = st.lists(st.tuples(st.integers(0, LABELS - 1), st.integers(0, LABELS - 1)), min_size=1, max_size=40)


def sums(pairs: list[tuple[int, int]]) -> torch.Tensor:
    """Two batches of (truth, said), tallied as the task does and added."""
    total = torch.zeros(2 + LABELS * LABELS, dtype=torch.float64)
    for batch in (pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]):
        if batch:
            truth, said = torch.tensor(batch).T
            logits = torch.nn.functional.one_hot(said, LABELS).float()
            total += SEQ_CLS.tally(Says(logits), {"input_ids": truth, "attention_mask": truth, "labels": truth})
    return total


class Says:
    """Stands where a model stands, and says what it was told to."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def __call__(self, **_: torch.Tensor) -> Says:
        return self


@given(answers)
def test_accuracy_and_f1_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    """Whatever the answers and however they fall into batches."""
    truth, said = zip(*pairs, strict=True)
    found = class_metrics(sums(pairs))
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, said))
    assert found["f1"] == pytest.approx(f1_score(truth, said, average="macro", zero_division=0))


@given(st.lists(st.integers(0, LABELS - 1), min_size=1, max_size=30))
def test_the_reference_of_classification_is_the_most_frequent_label(truth: list[int]) -> None:
    """Always saying it is right as often as it is there."""
    rows = TokenRows.build([([5], label) for label in truth])
    (measured,) = SEQ_CLS.references(rows, ("a", "b", "c")).values()
    assert measured["accuracy"] == pytest.approx(max(np.bincount(truth)) / len(truth))


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 100)), min_size=1, max_size=10))
def test_perplexity_weighs_targets_and_not_batches(batches: list[tuple[float, int]]) -> None:
    """exp(all NLL / all targets), not a mean of batch means."""
    total = torch.tensor([[mean * count, count] for mean, count in batches], dtype=torch.float64).sum(0)
    expected = math.exp(sum(mean * count for mean, count in batches) / sum(count for _, count in batches))
    assert language_metrics(total)["perplexity"] == pytest.approx(expected)


@pytest.mark.parametrize(("nll", "expected"), [(0.0, 1.0), (1e4, math.inf), (math.nan, math.inf), (math.inf, math.inf)])
def test_perplexity_that_overflows_is_infinite(nll: float, expected: float) -> None:
    """So that the trial ends as diverged and not with an OverflowError."""
    assert perplexity(nll) == expected
