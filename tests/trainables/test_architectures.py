"""Every module group on every family: it resolves, trains, exports to stock PEFT, or says why it cannot."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from architectures import FAMILIES, VOCABULARY, build, small_config
from peft import PeftModel
from support import lora
from transformers import BitsAndBytesConfig

from lorafront.spaces.modules import EVERYTHING, GROUPS, ModuleProblem, Resolved, is_head, resolve
from lorafront.trainables.config import ModelConfig, TrainingConfig, TrialConfig
from lorafront.trainables.data import TokenData, TokenRows, store
from lorafront.trainables.evaluate import tally
from lorafront.trainables.frozen_base import BaseCache, resident_tensors
from lorafront.trainables.model_facts import model_facts
from lorafront.trainables.peft_session import PeftSession, open_session
from lorafront.trainables.task import task_named

ASKED = [*GROUPS, "query+value", "query+key+value", "attention+mlp", EVERYTHING]
LABELS = ("no", "perhaps", "yes")


def token_rows(task: str, count: int, seed: int) -> TokenRows:
    """Random tokens; the second half of a row is its target, or its label is drawn."""
    generator = np.random.default_rng(seed)
    rows = [generator.integers(3, VOCABULARY, size=generator.integers(6, 16)).tolist() for _ in range(count)]
    targets = [int(generator.integers(len(LABELS))) if task == "seq_cls" else len(row) // 2 for row in rows]
    return TokenRows.build(list(zip(rows, targets, strict=True)))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("tokens")
    files = {}
    for task in ("causal_lm", "seq_cls", "seq_2_seq_lm"):
        labels = LABELS if task == "seq_cls" else ()
        files[task] = folder / f"{task}.safetensors"
        store(files[task], TokenData(token_rows(task, 16, 0), token_rows(task, 12, 1), pad_id=1, labels=labels))
    return files


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ModelConfig, BaseCache]:
    return request.param, build(request.param, tmp_path_factory.mktemp("model")), BaseCache()


def open_on(
    family: tuple[str, ModelConfig, BaseCache], tokens: dict[str, Path], found: Resolved, **changes: object
) -> PeftSession:
    name, model, bases = family
    task = FAMILIES[name][0]
    changes = {"quantization": "fp32", "learning_rate": 1e-2, **changes}
    trial = TrialConfig(
        task=task,
        model=model,
        training=TrainingConfig(rows=8),
        lora=lora(**changes),
        targets=found.targets,
        rungs=(8,),
        seed=3,
        tokens=tokens[task],
        labels=LABELS if task == "seq_cls" else (),
    )
    return open_session(trial, bases)


@pytest.mark.parametrize("name", FAMILIES)
def test_groups_divide_the_linear_modules(name: str) -> None:
    """Attention and mlp are disjoint, together everything but heads, and in every layer of encoder and decoder."""
    linears = list(model_facts(small_config(name), task_named(FAMILIES[name][0]), LABELS).linears)
    attention, mlp = set(resolve("attention", linears).names), set(resolve("mlp", linears).names)
    assert attention
    assert mlp
    assert not attention & mlp
    assert attention | mlp == set(resolve(EVERYTHING, linears).names) == {n for n in linears if not is_head(n)}


@pytest.mark.parametrize("group", ASKED)
def test_a_group_trains_and_exports_or_says_why_not(family, tokens, group: str, tmp_path: Path) -> None:
    """Exactly the modules of the group learn, stock PEFT finds the loss again in what is saved, the base stays."""
    name, model, _ = family
    task = task_named(FAMILIES[name][0])
    facts = model_facts(small_config(name), task, LABELS)
    try:
        found = resolve(group, list(facts.linears))
    except ModuleProblem as error:
        assert "fuses" in str(error) or "matches no linear module" in str(error)  # noqa: PT017  # one or the other
        return
    assert not any(map(is_head, found.names))
    session = open_on(family, tokens, found)
    before = [tensor.clone() for tensor in resident_tensors(session.base.model.get_input_embeddings())]
    start = [p.detach().clone() for p in session.trained]
    session.train(8)
    adapted = {
        n.split("base_model.model.")[1].split(".lora_")[0] for n, _ in session.model.named_parameters() if ".lora_" in n
    }
    assert adapted == set(found.names)
    assert all(not torch.equal(p, was) for p, was in zip(session.trained, start, strict=True))
    measured = session.evaluate()
    session.save(tmp_path)
    loss = stock_loss(model, task, session, tmp_path)
    assert loss == pytest.approx(measured["eval_loss"], rel=1e-5)
    session.close()
    assert all(map(torch.equal, before, resident_tensors(session.base.model.get_input_embeddings())))
    assert not any(p.requires_grad for p in session.base.model.parameters())


def stock_loss(model: ModelConfig, task, session: PeftSession, folder: Path) -> float:
    """The evaluation loss of the saved adapter on a base that stock transformers loads."""
    loaded = session.base.loaded_as
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        auto_class = getattr(transformers, loaded["auto_class"])
        bits = loaded["bitsandbytes"]
        base = auto_class.from_pretrained(
            model.name,
            dtype=session.base.dtype,
            quantization_config=BitsAndBytesConfig(**bits) if bits else None,
            **loaded["arguments"],
        )
        base.config.pad_token_id = session.data.pad_id
        adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
    data = session.data
    sums = tally(adapted, task, data.evaluation, data.pad_id, session.batch_size, torch.device("cpu"))
    return task.metrics(sums)["eval_loss"]


def test_the_head_starts_from_the_seed_every_time(family, tokens) -> None:
    """A second trial in the same process loses what the first one lost, heads and biases included."""
    name, _, _ = family
    found = resolve("attention", list(model_facts(small_config(name), task_named(FAMILIES[name][0]), LABELS).linears))
    losses = []
    for _ in range(2):
        session = open_on(family, tokens, found, bias="all")
        session.train(8)
        losses.append(session.evaluate()["eval_loss"])
        session.close()
    assert losses[0] == losses[1]


@pytest.mark.parametrize("quantization", ["nf4", "int8", "bf16"])
def test_a_quantized_base_learns_and_exports(family, tokens, quantization: str, tmp_path: Path) -> None:
    """In 4, 8 and 16 bits every adapter learns, the head is never quantized, and stock PEFT finds the same loss."""
    name, model, _ = family
    task = task_named(FAMILIES[name][0])
    found = resolve("attention+mlp", list(model_facts(small_config(name), task, LABELS).linears))
    session = open_on(family, tokens, found, quantization=quantization)
    heads = [module for n, module in session.base.model.named_modules() if is_head(n) and hasattr(module, "weight")]
    assert heads
    assert all(module.weight.dtype == session.base.dtype for module in heads)
    start = [p.detach().clone() for p in session.masters.parameters]
    session.train(8)
    assert all(not torch.equal(p, was) for p, was in zip(session.masters.parameters, start, strict=True))
    session.save(tmp_path)
    assert stock_loss(model, task, session, tmp_path) == pytest.approx(session.evaluate()["eval_loss"], rel=1e-3)
    session.close()
