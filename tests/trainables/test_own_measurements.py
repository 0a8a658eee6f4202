"""What a user adds to a trial: a second evaluation set, a function of the model, a task."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from support import MakeTrial, lora

from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.config import ModelConfig
from lorafront.trainables.data import TokenData, store
from lorafront.trainables.frozen_base import BaseCache
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.peft_session import open_session
from lorafront.trainables.task import TASKS, task_named
from lorafront.trainables.trial import Trial, TrialFolder

OWN = """
import torch
from lorafront.trainables.causal_lm import CausalLM

def answer_length(model, tokenizer):
    assert not model.training and not torch.is_grad_enabled()
    ids = tokenizer("The", return_tensors="pt")["input_ids"].to(model.device)
    torch.rand(7)  # draws from the global generator, as sampling does
    return model.generate(input_ids=ids, max_new_tokens=4, do_sample=True).shape[1]

def broken(model, tokenizer):
    raise KeyError("no such answer")

def no_number(model, tokenizer):
    return "fine"

def merges(model, tokenizer):
    model.merge_adapter()
    return 1.0

class FirstHalf(CausalLM):
    name = "first_half"
    def encode(self, rows, tokenizer, encoding):
        return [(ids[: len(ids) // 2], target) for ids, target in super().encode(rows, tokenizer, encoding)]

TASK = FirstHalf()
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_code.py").write_text(OWN)
    return tmp_path


def test_the_loss_on_a_second_set_is_that_set_evaluated(
    make_trial: MakeTrial, bases: BaseCache, token_file: tuple[Path, TokenData], tmp_path: Path
) -> None:
    """A second set measures what it would as the first one; the bare base is evaluated on it too."""
    tokens = token_file[1]
    both = tmp_path / "both.safetensors"
    store(both, TokenData(tokens.train, tokens.evaluation, tokens.pad_id, also={"other": tokens.train}))
    swapped = tmp_path / "swapped.safetensors"
    store(swapped, TokenData(tokens.train, tokens.train, tokens.pad_id))
    found = []
    for file in (both, swapped):
        session = open_session(make_trial().model_copy(update={"tokens": file}), bases)
        session.train(16)
        found.append(session.evaluate())
        session.close()
    assert found[0]["eval_other_loss"] == found[1]["eval_loss"]
    assert found[0]["base_eval_other_loss"] == found[1]["base_eval_loss"]


def test_a_function_measures_at_the_end_and_disturbs_nothing(
    make_trial: MakeTrial, bases: BaseCache, code: Path
) -> None:
    """It is called once, at full fidelity, in evaluation mode; the losses are those of a trial without it."""
    own = {"functions": {"length": "own_code:answer_length"}, "code": code}
    losses = []
    for extra in ({}, own):
        session = open_session(make_trial(dropout=0.2, rungs=(16, 32)).model_copy(update=extra), bases)
        session.train(16)
        first = session.evaluate()
        assert "length" not in first
        session.train(32)
        last = session.evaluate()
        assert ("length" in last) == bool(extra)
        assert session.model.training
        losses.append((first["eval_loss"], last["eval_loss"]))
        session.close()
    assert losses[0] == losses[1]
    assert 2 <= last["length"] <= 9


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("broken", "objective x (own_code:broken): KeyError: 'no such answer'"),
        ("no_number", "own_code:no_number gave 'fine', which is no number"),
        ("merges", "merged the adapter into the base"),
    ],
)
def test_a_function_that_fails_is_the_trials_own_fault(
    make_trial: MakeTrial, code: Path, tmp_path: Path, function: str, words: str
) -> None:
    """The trial ends with a reason that names what happened; its session lets go of the base."""
    bases = BaseCache()
    config = make_trial(rungs=(16,)).model_copy(update={"functions": {"x": f"own_code:{function}"}, "code": code})
    trial = Trial(lambda: open_session(config, bases), config.rungs, TrialFolder(tmp_path / "trial"))
    report = trial.next_rung()
    assert report.outcome is Outcome.USER_ERROR
    assert words in report.error
    base = weakref.ref(bases.get(config.model, task_named("causal_lm"), "bf16"))
    bases.drop()
    assert base() is None


def test_a_task_of_the_users_own(code: Path) -> None:
    """`module:name` is a task like those that come with the package; what is none says what it lacks."""
    assert task_named("own_code:TASK", code).name == "first_half"
    with pytest.raises(InvalidInput, match=r"own_code:FirstHalf is a class; name an object of it"):
        task_named("own_code:FirstHalf", code)
    with pytest.raises(InvalidInput, match=r"own_code:broken is no task: it lacks auto_class, .*collate"):
        task_named("own_code:broken", code)


@pytest.mark.parametrize("name", TASKS)
def test_tasks_go_by_their_names(name: str) -> None:
    """A task knows itself by the name of the search file, and measures its quality."""
    task = task_named(name)
    assert task.name == name
    sums = torch.tensor([3.0, 4.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert {*task.quality, "eval_loss"} <= set(task.metrics(sums))


def test_biases_learn_at_a_small_learning_rate_in_16_bits(tmp_path: Path, make_trial: MakeTrial) -> None:
    """Steps that bfloat16 would round away add up in float32, and are still there after a checkpoint."""
    from architectures import build

    model: ModelConfig = build("phi-2", tmp_path / "phi")
    config = make_trial(rungs=(160,)).model_copy(
        update={
            "model": model,
            "lora": lora(bias="all", learning_rate=1e-4, scheduler="constant", warmup=0.0),
            "targets": ("q_proj", "dense"),
        }
    )
    bases = BaseCache()
    session = open_session(config, bases)
    with torch.no_grad():  # where bfloat16's next numbers are 0.002 and 0.004 away
        for parameter, master in zip(session.trained, session.masters.parameters, strict=True):
            if parameter.dtype == torch.bfloat16:
                master.fill_(0.5)
    session.masters.give_values()
    session.train(80)
    (tmp_path / "ckpt").mkdir()
    session.save(tmp_path / "ckpt")
    session.train(160)
    expected = session.evaluate()["eval_loss"]
    moved = [p for p in session.trained if p.dtype == torch.bfloat16 and (p != 0.5).any()]
    assert moved
    session.close()
    again = open_session(config, bases)
    again.load(tmp_path / "ckpt")
    again.train(160)
    assert again.evaluate()["eval_loss"] == expected
    again.close()
