"""Searches from Python: run, open, read as frames, choose."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import TINY_LLAMA

from lorafront.search import Search, front_of, load
from lorafront.spaces.errors import InvalidInput, NoFront, SearchNotFound
from lorafront.spaces.lora import HYPERPARAMETERS


@pytest.fixture(scope="module")
def root(ray_session: None, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    Search(
        {
            "name": "one", "model": str(TINY_LLAMA),
            "data": {"path": str(text_file), "max_length": 32, "train_rows": 64, "eval_rows": 8},
            "space": {"rank": [2, 4, 8], "modules": "attention", "quantization": ["nf4", "bf16"], "bias": "none"},
            "training": {"rows": 64, "rungs": 2}, "budget": {"trials": 5}, "early_stopping": "off",
        }
    ).run(folder, engine="toy")  # fmt: skip
    return folder


def test_frames_say_what_the_study_says(root: Path) -> None:
    """Trials, front and rungs with hyperparameters and measurements under their own names."""
    results = load("one", root)
    study = results.study
    assert list(results.trials.index) == [trial.number for trial in study.trials]
    assert set(HYPERPARAMETERS) <= set(results.trials.columns)
    assert list(results.front.index) == [trial.number for trial in front_of(study)]
    for trial in study.trials:
        assert results.trials.loc[trial.number, "perplexity"] == trial.measurements["perplexity"]
        assert results.trials.loc[trial.number, "rank"] == trial.lora.rank
    assert len(results.rungs) == sum(len(trial.rungs) for trial in study.trials)
    assert "5 trials" in repr(results)


def test_replicates_are_a_frame_with_the_ends_of_intervals(root: Path) -> None:
    """None before there are any; then a recommendation goes by them."""
    results = load("one", root)
    assert results.confirmed is None
    frame = results.confirm(seeds=2, engine="toy").confirmed
    assert frame is not None
    assert (frame["perplexity_low"] <= frame["perplexity"]).all()
    assert (frame["perplexity"] <= frame["perplexity_high"]).all()
    chosen = results.recommend()
    assert frame.loc[chosen.trial.number, "verdict"] == "kept"
    assert chosen.trial.measurements["perplexity"] == pytest.approx(frame.loc[chosen.trial.number, "perplexity"])


def test_what_cannot_be_is_said(root: Path) -> None:
    """A name that is not there, a size that is none, a card that is too small."""
    with pytest.raises(SearchNotFound, match="There is: one"):
        load("won", root)
    with pytest.raises(InvalidInput):
        load("one", root).recommend("much")
    with pytest.raises(NoFront, match="the smallest needs"):
        load("one", root).recommend("1MB")
