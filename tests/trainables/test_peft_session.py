"""The reference session: seeded, resumable, honest about memory, and stock PEFT in what it saves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from support import TINY_LLAMA, MakeTrial
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from lorafront.spaces.quantization import bitsandbytes_arguments
from lorafront.trainables.config import TrialConfig
from lorafront.trainables.data import TokenData, TokenRows
from lorafront.trainables.evaluate import tally
from lorafront.trainables.frozen_base import BaseCache
from lorafront.trainables.peft_session import PeftSession, open_session

QUANTIZATIONS = ["nf4", "nf4_double", "fp4", "int8", "bf16", "fp32"]


def losses(session: PeftSession, *stops: int) -> list[tuple[float, float]]:
    """(training loss, evaluation loss) at each stop; closes the session."""
    found = []
    for rows in stops:
        session.train(rows)
        measured = session.evaluate()
        found.append((measured["train_loss"], measured["eval_loss"]))
    session.close()
    return found


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_same_seed_gives_the_same_losses(make_trial: MakeTrial, bases: BaseCache, quantization: str) -> None:
    """The same seed gives the same losses to the last digit, on a fresh base and on one that another trial has used."""
    trial = make_trial(quantization=quantization, dropout=0.1)
    fresh = losses(open_session(trial, BaseCache()), 16, 32)
    losses(open_session(make_trial(quantization=quantization, rank=8, seed=3), bases), 16)
    assert losses(open_session(trial, bases), 16, 32) == fresh


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_evaluating_changes_nothing(make_trial: MakeTrial, bases: BaseCache, quantization: str) -> None:
    """Train, evaluate, train gives the losses of train, train, and afterwards every adapter still has a gradient."""
    trial = make_trial(quantization=quantization, dropout=0.1)
    straight = open_session(trial, bases)
    straight.train(32)
    last = straight.evaluate()["eval_loss"]
    straight.close()

    session = open_session(trial, bases)
    session.train(16)
    session.evaluate()
    session.train(32)
    assert session.evaluate()["eval_loss"] == last
    batch = session._largest_batch()
    session.task.nll(session.model, batch).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in session.trained)
    session.close()


def test_an_early_rung_is_evaluated_on_a_part(make_trial: MakeTrial, bases: BaseCache) -> None:
    """Half-way the loss is that of half of a large split, at the end that of all of it."""
    trial = make_trial()
    opened = open_session(trial, bases)
    opened.close()
    long = opened.data.train
    split = TokenRows.build([long.row(i % len(long)) for i in range(300)])
    session = PeftSession(opened.base, trial, replace(opened.data, evaluation=split))
    for rows, share in ((16, 0.5), (32, 1)):
        session.train(rows)
        taken = split.part(share)
        sums = tally(session.model, session.task, taken, session.data.pad_id, 4, session.base.device)
        assert session.evaluate()["eval_loss"] == session.task.metrics(sums)["eval_loss"]
        assert len(taken) == 300 * share
    session.close()


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
@pytest.mark.parametrize("quantization", ["nf4", "bf16"])
def test_loaded_session_continues_exactly(
    make_trial: MakeTrial, bases: BaseCache, tmp_path: Path, quantization: str, optimizer: str
) -> None:
    """A session that was saved and loaded gives the losses of one that was never interrupted."""
    trial = make_trial(quantization=quantization, dropout=0.2, training={"optimizer": optimizer}, scheduler="cosine")
    session = open_session(trial, bases)
    session.train(16)
    session.evaluate()
    session.save(tmp_path)
    uninterrupted = losses(session, 32)

    resumed = open_session(trial, bases)
    resumed.load(tmp_path)
    assert resumed.rows_seen == 16
    assert losses(resumed, 32) == uninterrupted


@pytest.mark.parametrize("quantization", ["nf4", "bf16"])
def test_a_session_that_was_cut_between_rungs_measures_the_same(
    make_trial: MakeTrial, bases: BaseCache, tmp_path: Path, quantization: str
) -> None:
    """Interrupted between steps, saved, loaded elsewhere: the training loss of that rung is that of all its steps."""
    trial = make_trial(quantization=quantization, dropout=0.2, gradient_accumulation=2)
    uninterrupted = losses(open_session(trial, bases), 16, 32)
    session = open_session(trial, bases)
    session.train(16)
    first = session.evaluate()
    session.train(32, lambda: session.rows_seen >= 24)
    assert session.rows_seen == 24
    assert session.train_seconds > first["train_seconds"]
    session.save(tmp_path)
    session.close()
    resumed = open_session(trial, bases)
    resumed.load(tmp_path)
    assert losses(resumed, 32) == uninterrupted[1:]


def test_adapting_improves_the_base(make_trial: MakeTrial, bases: BaseCache) -> None:
    """Training on the text brings perplexity on its held-out part far below the bare base's."""
    session = open_session(make_trial(rungs=(256,), rank=16, alpha=32.0, learning_rate=1e-2), bases)
    session.train(256)
    measured = session.evaluate()
    session.close()
    assert measured["perplexity"] < 0.5 * measured["base_perplexity"]


@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16", "fp32"])
def test_saved_adapter_is_stock_peft(
    make_trial: MakeTrial, bases: BaseCache, token_file: tuple[Path, TokenData], tmp_path: Path, quantization: str
) -> None:
    """Stock PEFT loads what was saved and finds the reported perplexity, without our code."""
    session = open_session(make_trial(quantization=quantization), bases)
    session.train(32)
    reported = session.evaluate()["perplexity"]
    dtype = session.base.dtype
    session.save(tmp_path)
    session.close()

    bits = bitsandbytes_arguments(quantization, str(dtype).removeprefix("torch."))
    base = AutoModelForCausalLM.from_pretrained(
        TINY_LLAMA, dtype=dtype, quantization_config=BitsAndBytesConfig(**bits) if bits else None
    )
    model = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    nll, targets = 0.0, 0
    rows = token_file[1].evaluation
    for start in range(0, len(rows), 4):  # int8 looks for outliers over a whole batch, so batches must be the same
        ids = torch.from_numpy(np.stack([rows.row(i)[0] for i in range(start, start + 4)]).astype("int64"))
        with torch.no_grad():
            logits = model(ids).logits[:, :-1].float()
        nll += torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
        targets += ids[:, 1:].numel()
    assert math.exp(nll / targets) == pytest.approx(reported, rel=2e-6)  # sums in another order


def test_gradient_checkpointing_trades_memory_for_nothing_else(make_trial: MakeTrial, bases: BaseCache) -> None:
    """Gradient checkpointing gives the same losses with a lower peak."""
    plain = open_session(make_trial(quantization="fp32"), bases)
    plain_losses, plain_peak = losses(plain, 32), plain.memory.allocated
    recomputed = open_session(make_trial(quantization="fp32", training={"gradient_checkpointing": True}), bases)
    assert losses(recomputed, 32)[0] == pytest.approx(plain_losses[0], rel=1e-6)
    assert recomputed.memory.allocated < 0.95 * plain_peak


def test_accumulation_equals_a_larger_batch(make_trial: MakeTrial, bases: BaseCache) -> None:
    """Two passes of two rows take the step of one pass of four rows, and peak lower."""
    whole = open_session(make_trial(quantization="fp32"), bases)
    split = open_session(make_trial(quantization="fp32"), BaseCache())
    split.close()
    expected, peak = losses(whole, 32), whole.memory.allocated
    halves = open_session(make_trial(quantization="fp32", batch_size=2, gradient_accumulation=2), bases)
    assert losses(halves, 32)[0] == pytest.approx(expected[0], rel=1e-4)
    assert halves.memory.allocated < peak


def test_worker_processes_load_the_same_batches(make_trial: MakeTrial, bases: BaseCache) -> None:
    """Batches prepared by another process give the same losses."""
    here = losses(open_session(make_trial(), bases), 32)
    assert losses(open_session(make_trial(training={"loader_workers": 1}), bases), 32) == here


def test_small_rank_starts_as_a_part_of_a_larger_one(make_trial: MakeTrial, bases: BaseCache) -> None:
    """The initial A of rank 4 is the first four rows of that of rank 8, and lies in PEFT's own range."""

    def initial_a(rank: int) -> dict[str, torch.Tensor]:
        session = open_session(make_trial(rank=rank, quantization="fp32"), bases)
        found = {n: p.detach().clone() for n, p in session.model.named_parameters() if "lora_A" in n}
        session.close()
        return found

    small, large = initial_a(4), initial_a(8)
    for name, tensor in small.items():
        assert torch.equal(tensor, large[name][:4])
        assert 0.5 < tensor.abs().max() * tensor.shape[1] ** 0.5 <= 1


def test_more_adapter_needs_more_memory(make_trial: MakeTrial, bases: BaseCache) -> None:
    """Peak memory and trainable parameters rise with the rank, and NF4 needs less than 16 bits."""

    def measure(**changes: Any) -> tuple[int, float]:
        session = open_session(make_trial(**changes), bases)
        session.train(4)
        params = session.evaluate()["trainable_params"]
        session.close()
        return params, session.memory.allocated

    (few, low), (many, high) = measure(rank=4), measure(rank=32)
    assert many == 8 * few
    assert low < high
    assert measure(rank=4, quantization="nf4")[1] < low


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 32},
        {"dropout": 0.1},
        {"modules": "mlp"},
        {"bias": "all"},
        {"batch_size": 8},
        {"gradient_accumulation": 2},
        {"training": {"gradient_checkpointing": True}},
        {"learning_rate": 0.1, "alpha": 3, "weight_decay": 0.5, "warmup": 0.5, "scheduler": "constant"},
        {"seed": 5},
    ],
    ids=str,
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="on CUDA every trial is measured")
def test_peaks_on_a_used_base_are_those_of_a_fresh_one(make_trial: MakeTrial, changes: dict[str, Any]) -> None:
    """Whatever a base remembers of earlier trials' memory, a trial reports what it would in a process of its own."""

    def peak(trial: TrialConfig, bases: BaseCache) -> int:
        session = open_session(trial, bases)
        session.close()
        return session.memory.allocated

    used = BaseCache()
    peak(make_trial(), used)
    assert peak(make_trial(**changes), used) == peak(make_trial(**changes), BaseCache())


def test_probing_memory_leaves_no_trace(make_trial: MakeTrial, bases: BaseCache) -> None:
    """After the memory probe the adapter is as it was drawn: B zero, no gradient, no step counted."""
    session = open_session(make_trial(), bases)
    assert all(p.abs().sum() == 0 for n, p in session.model.named_parameters() if "lora_B" in n)
    assert all(p.grad is None for p in session.trained)
    assert session.rows_seen == 0
    assert session.optimizer.state_dict()["state"] == {}
    session.close()
