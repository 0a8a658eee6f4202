"""The packed engine gives the numbers of stock PEFT, whatever else is in the pack."""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import FAMILIES, VOCABULARY, build
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from support import lora

from lorafront.spaces import modules
from lorafront.trainables import packed_lora, packed_slot
from lorafront.trainables.config import ModelConfig, TrainingConfig, TrialConfig
from lorafront.trainables.data import TokenData, TokenRows, store
from lorafront.trainables.evaluate import tally
from lorafront.trainables.frozen_base import BaseCache
from lorafront.trainables.keyed_random import keep, site_keys, threshold, word
from lorafront.trainables.model_facts import model_facts
from lorafront.trainables.models import load_config
from lorafront.trainables.packed_engine import PackedEngine
from lorafront.trainables.peft_session import PeftSession, open_session
from lorafront.trainables.task import task_named

STEPS, BATCH = 6, 2
STYLES = ["llama", "phi-2", "gpt-2", "bert"]
MIXED = [
    {"rank": 4, "alpha": 8.0, "modules": "query+key+value", "learning_rate": 5e-3},
    {"rank": 16, "alpha": 16.0, "modules": "attention", "learning_rate": 1e-3, "scheduler": "cosine"},
    {"rank": 64, "alpha": 128.0, "modules": "all-linear", "learning_rate": 2e-3, "weight_decay": 0.1},
    {"rank": 6, "alpha": 3.0, "modules": "all-linear", "learning_rate": 1e-2, "warmup": 0.3},
]


def token_rows(task: str, count: int, seed: int) -> TokenRows:
    """Rows of unequal length that are not all noise."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        start, length = int(draw.integers(2, VOCABULARY)), int(draw.integers(5, 12))
        ids = [(start + 3 * i) % (VOCABULARY - 2) + 2 for i in range(length)]
        rows.append((ids, start % 2 if task == "seq_cls" else 2))
    return TokenRows.build(rows)


@dataclass
class Place:
    """A small model without dropout of its own, its data, and its bases."""

    family: str
    model: ModelConfig
    files: dict[str, Path]
    bases: BaseCache

    def trial(self, *, training: dict[str, Any] | None = None, seed: int = 0, steps: int = STEPS, **changes: Any):
        task = FAMILIES[self.family][0]
        labels = ("0", "1") if task == "seq_cls" else ()
        configuration = lora(**{"quantization": "fp32", "batch_size": BATCH, **changes})
        facts = model_facts(load_config(self.model), task_named(task))
        rows = steps * BATCH * configuration.gradient_accumulation
        return TrialConfig(
            task=task,
            model=self.model,
            training=TrainingConfig(rows=rows, **(training or {})),
            lora=configuration,
            targets=modules.resolve(configuration.modules, list(facts.linears)).targets,
            rungs=(rows // 2, rows),
            seed=seed,
            tokens=self.files[task],
            labels=labels,
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for task in ("causal_lm", "seq_cls"):
        made[task] = tmp_path_factory.mktemp("tokens") / f"{task}.safetensors"
        labels = ("0", "1") if task == "seq_cls" else ()
        store(made[task], TokenData(token_rows(task, 40, 0), token_rows(task, 12, 1), 1, {}, labels))
    return made


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> dict[str, Place]:
    return {
        name: Place(name, without_dropout(name, tmp_path_factory.mktemp("model")), files, BaseCache())
        for name in STYLES
    }


def without_dropout(family: str, folder: Path) -> ModelConfig:
    """A model whose base drops nothing by itself: stock PEFT draws its masks from another generator."""
    model = build(family, folder)
    file = folder / "config.json"
    kept = {name: 0.0 if "drop" in name else value for name, value in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(kept))
    return model


@dataclass
class Found:
    """What a trial gave: loss of each step, evaluation, what was trained."""

    losses: list[float]
    measured: dict[str, Any]
    values: dict[str, torch.Tensor]


class Replayed(torch.nn.Module):
    """The packed engine's dropout of one linear's adapter, for stock PEFT."""

    def __init__(self, name: str, session: PeftSession, longest: int) -> None:
        super().__init__()
        self.name, self.session, self.longest, self.calls = name, session, longest, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        lora = self.session.config.lora
        numbers = [
            torch.tensor([n], dtype=torch.int32)
            for n in (word(str(self.session.config.seed)), self.calls, word(self.name))
        ]
        self.calls += 1
        if x.dim() == 3:
            places = torch.arange(x.shape[0], dtype=torch.int32)[:, None] * self.longest
            places = (places + torch.arange(x.shape[1], dtype=torch.int32)).flatten()
        else:
            places = torch.arange(x.shape[0], dtype=torch.int32)
        kept = keep(site_keys(*numbers)[:, 0], threshold(lora.dropout), places, x.shape[-1])
        return torch.where(kept.view(x.shape), x / (1 - lora.dropout), 0)


def stock(place: Place, config: TrialConfig) -> Found:
    """Stock PEFT alone, with the masks of the packed engine where there is dropout."""
    session = open_session(config, place.bases)
    longest = max(int(rows.lengths.max()) for rows in (session.data.train, session.data.evaluation))
    for name, module in session.model.base_model.model.named_modules():
        if config.lora.dropout and hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = Replayed(name, session, longest)
    session.train(config.rows)
    losses = torch.stack(session._losses).tolist()
    measured = session.evaluate()
    trained = {name: p.detach().clone() for name, p in session.model.named_parameters() if p.requires_grad}
    session.close()
    return Found(
        losses,
        measured,
        {name.replace(".default", "").replace(".modules_to_save", ""): value for name, value in trained.items()},
    )


def packed(place: Place, configs: list[TrialConfig]) -> list[Found]:
    """All in one pack."""
    engine = PackedEngine(configs[0], place.bases)
    try:
        sessions = [engine.open(config) for config in configs]
        engine.train({session: session.config.rows for session in sessions})
        losses = [torch.stack(session._losses).tolist() for session in sessions]
        engine.evaluate(sessions)
        values = [{n: v.clone() for n, v in session.slot.numbers["values"].items()} for session in sessions]
        return [Found(*one) for one in zip(losses, [s.evaluate() for s in sessions], values, strict=True)]
    finally:
        engine.close()


def assert_equal(found: Found, expected: Found) -> None:
    """To the tolerances that are promised in float32."""
    assert found.losses == pytest.approx(expected.losses, rel=1e-5)
    assert found.measured["eval_loss"] == pytest.approx(expected.measured["eval_loss"], rel=1e-5)
    assert set(found.values) == set(expected.values)
    for name, value in expected.values.items():
        torch.testing.assert_close(found.values[name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("family", STYLES)
def test_a_mixed_pack_gives_the_numbers_of_stock_peft(places: dict[str, Place], family: str, dropout: float) -> None:
    """Loss at every step, evaluation and adapters of ranks 4 to 64 on different modules equal those trained alone."""
    place = places[family]
    configs = [place.trial(**changes, dropout=dropout * (index % 2)) for index, changes in enumerate(MIXED)]
    for config, found in zip(configs, packed(place, configs), strict=True):
        expected = stock(place, config)
        assert_equal(found, expected)
        timed = {name for name in expected.measured if "second" in name or "vram" in name or "memory" in name}
        assert set(expected.measured) - timed == set(found.measured) - timed
        for name in set(expected.measured) - timed:
            value = expected.measured[name]
            assert found.measured[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4))


@pytest.mark.parametrize(
    ("family", "quantization"), [("llama", "bf16"), ("llama", "nf4"), ("llama", "int8"), ("bert", "nf4_double")]
)
def test_quantized_and_16_bit_packs_learn_as_stock_peft_does(
    places: dict[str, Place], family: str, quantization: str
) -> None:
    """The final evaluation loss is within 0.002 nats of stock PEFT's, which rounds at other places."""
    place = places[family]
    configs = [place.trial(**changes, quantization=quantization) for changes in MIXED]
    for config, found in zip(configs, packed(place, configs), strict=True):
        assert found.measured["eval_loss"] == pytest.approx(stock(place, config).measured["eval_loss"], abs=0.002)


def test_float16_scales_each_trials_loss(places: dict[str, Place]) -> None:
    """float16 learns as stock PEFT under its gradient scaler does."""
    place = places["llama"]
    configs = [place.trial(**changes, quantization="fp16") for changes in MIXED]
    for config, found in zip(configs, packed(place, configs), strict=True):
        assert found.measured["eval_loss"] == pytest.approx(stock(place, config).measured["eval_loss"], abs=0.002)


@pytest.mark.parametrize("quantization", ["bf16", "nf4"])
def test_recomputed_activations_of_16_bits_are_those_of_the_forward_pass(
    places: dict[str, Place], quantization: str
) -> None:
    """Gradient checkpointing changes no loss but by rounding, engine after engine, and leaves no hook behind."""
    place = places["llama"]
    found = [
        packed(place, [place.trial(quantization=quantization, training={"gradient_checkpointing": on})])[0].losses
        for on in (False, True, True)
    ]
    assert found[1] == found[2] == pytest.approx(found[0], rel=1e-3)
    base = PackedEngine(place.trial(quantization=quantization), place.bases).base
    assert not base.model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize(("checkpointing", "dropout"), [(False, 0.1), (True, 0.0)])
def test_accumulated_passes_of_different_seeds_equal_stock_peft(
    places: dict[str, Place], checkpointing: bool, dropout: float
) -> None:
    """Trials that see other rows, padded to other lengths, over two passes a step, give their own numbers."""
    place, training = places["llama"], {"gradient_checkpointing": checkpointing}
    configs = [
        place.trial(**changes, gradient_accumulation=2, dropout=dropout, training=training, seed=seed)
        for seed, changes in enumerate(MIXED)
    ]
    for config, found in zip(configs, packed(place, configs), strict=True):
        assert_equal(found, stock(place, config))


@pytest.mark.parametrize("quantization", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_result_does_not_depend_on_slot_or_neighbours(
    places: dict[str, Place], quantization: str, dropout: float
) -> None:
    """The same bits alone, in the first and in the last slot of a full pack of other trials."""
    place = places["llama"]
    own = place.trial(rank=8, quantization=quantization, dropout=dropout, steps=3)
    others = [
        place.trial(**{**MIXED[i % 4], "quantization": quantization, "dropout": 0.3 * (i % 2)}, steps=3)
        for i in range(7)
    ]
    (alone,), first, last = packed(place, [own]), packed(place, [own, *others])[0], packed(place, [*others, own])[-1]
    for found in (first, last):
        assert found.losses == alone.losses
        assert found.measured["eval_loss"] == alone.measured["eval_loss"]
        assert all(torch.equal(found.values[name], value) for name, value in alone.values.items())


def test_the_filling_of_ranks_stays_exactly_zero(places: dict[str, Place]) -> None:
    """Gradients, moments and values beyond a trial's own rank, and of modules that it does not adapt, are 0."""
    place = places["llama"]
    engine = PackedEngine(place.trial(), place.bases)
    sessions = [engine.open(place.trial(rank=5, weight_decay=0.1)), engine.open(place.trial(rank=8, weight_decay=0.1))]
    engine.train({session: session.config.rows for session in sessions})
    (bucket,) = engine._stack.buckets
    numbers = sum(p.numel() for p in sessions[0].slot.numbers["values"].values())
    for flat in (bucket.values, *bucket.trained):
        own = sum(int(view.count_nonzero()) for view in sessions[0].slot._views(bucket.layout, flat, 0).values())
        assert int(flat[0].count_nonzero()) == own <= numbers < flat.shape[1]
    engine.close()


def test_a_trial_that_diverges_takes_nobody_with_it(places: dict[str, Place]) -> None:
    """Its loss is no number any more; the numbers of the others are those without it."""
    place = places["llama"]
    good = [place.trial(**changes) for changes in MIXED]
    bad = place.trial(learning_rate=1e30, rank=8)
    found = packed(place, [*good[:2], bad, *good[2:]])
    assert np.isnan(found[2].measured["train_loss"])
    for one, expected in zip([*found[:2], *found[3:]], packed(place, good), strict=True):
        assert one.losses == expected.losses
        assert np.isfinite(one.measured["eval_loss"])


def test_trials_join_and_leave_while_others_go_on(places: dict[str, Place]) -> None:
    """One that stays when another leaves, and one that joins later, give what they give alone."""
    place = places["llama"]
    first, second, third = (place.trial(**changes) for changes in MIXED[:3])
    engine = PackedEngine(first, place.bases)
    one, two = engine.open(first), engine.open(second)
    engine.train({one: 6, two: 6})
    one.close()
    three = engine.open(third)
    engine.train({two: 12, three: 12})
    engine.train({three: 12})
    measured = {session: session.evaluate()["eval_loss"] for session in (two, three)}
    engine.close()
    for session in (two, three):
        assert measured[session] == pytest.approx(stock(place, session.config).measured["eval_loss"], rel=1e-5)


def test_what_is_saved_is_what_stock_peft_saves_and_loads(places: dict[str, Place], tmp_path: Path) -> None:
    """The same adapter configuration; stock PEFT finds the same logits; names and shapes of the state are the same."""
    for family in STYLES:
        place = places[family]
        config = place.trial(rank=6, modules="all-linear")
        ours, theirs = tmp_path / family / "ours", tmp_path / family / "theirs"
        for folder in (ours, theirs):
            folder.mkdir(parents=True)
        engine = PackedEngine(config, place.bases)
        session, _ = engine.open(config), engine.open(place.trial(rank=64))
        session.train(config.rows)
        session.save(ours)
        loss = session.evaluate()["eval_loss"]
        engine.close()
        alone = open_session(config, place.bases)
        alone.train(config.rows)
        alone.save(theirs)
        alone.close()
        for file in ("adapter/adapter_config.json", "base.json"):
            own, other = (json.loads((one / file).read_text()) for one in (ours, theirs))
            # PEFT adds the names that a head may have, some twice, whether the model has them or not.
            assert set(own.pop("modules_to_save", None) or ()) <= set(other.pop("modules_to_save", None) or ())
            assert own == other
        for file in ("adapter/adapter_model.safetensors", "optimizer.safetensors"):
            shapes = [{name: (t.shape, t.dtype) for name, t in load_file(one / file).items()} for one in (ours, theirs)]
            assert shapes[0] == shapes[1]
        stock_one = PeftModel.from_pretrained(alone.base.model, ours / "adapter").eval()
        sums = tally(stock_one, alone.task, alone.data.evaluation, 1, BATCH, torch.device("cpu"))
        assert alone.task.metrics(sums)["eval_loss"] == pytest.approx(loss, rel=1e-6)
        alone.base.detach(stock_one)


@pytest.mark.parametrize(("family", "quantization"), [("llama", "fp16"), ("bert", "fp32")])
@pytest.mark.parametrize("other", ["pack", "stock before", "stock after"])
def test_a_checkpoint_goes_on_in_either_engine(
    places: dict[str, Place], family: str, quantization: str, other: str, tmp_path: Path
) -> None:
    """To the bit in a pack, and as if it had been one engine all the time where stock PEFT begins or ends."""
    place = places[family]
    config = place.trial(rank=6, quantization=quantization)
    (whole,) = packed(place, [config])
    engine = PackedEngine(config, place.bases)
    first = open_session(config, place.bases) if other == "stock before" else engine.open(config)
    first.train(config.rungs[0])
    first.save(tmp_path)
    first.close()
    engine.close()
    engine = PackedEngine(config, place.bases)
    second = open_session(config, place.bases) if other == "stock after" else engine.open(config)
    second.load(tmp_path)
    second.train(config.rows)
    losses, loss = torch.stack(second._losses).tolist(), second.evaluate()["eval_loss"]
    second.close()
    engine.close()
    if other == "pack":
        assert (losses, loss) == (whole.losses, whole.measured["eval_loss"])
    else:
        assert losses == pytest.approx(whole.losses, rel=1e-5 if quantization == "fp32" else 2e-3)
        assert loss == pytest.approx(whole.measured["eval_loss"], rel=1e-5 if quantization == "fp32" else 2e-3)


@pytest.mark.parametrize(("family", "quantization"), [("gpt-2", "fp32"), ("bert", "fp32"), ("gpt-2", "bf16")])
def test_dropout_of_the_base_depends_on_the_trial_alone(
    files: dict[str, Path], family: str, quantization: str, tmp_path: Path
) -> None:
    """Models that drop by themselves: the same numbers alone and beside others, others for another seed."""
    place = Place(family, build(family, tmp_path), files, BaseCache())
    base = {"quantization": quantization}
    own, others = place.trial(rank=8, **base), [place.trial(**changes, **base, seed=7) for changes in MIXED]
    (alone,), beside = packed(place, [own]), packed(place, [*others, own])[-1]
    assert beside.losses == pytest.approx(alone.losses, rel=1e-6)
    plain = Place(family, without_dropout(family, tmp_path), files, BaseCache())
    (undropped,) = packed(plain, [plain.trial(rank=8, **base)])
    assert undropped.losses[0] != alone.losses[0]
    assert packed(place, [place.trial(rank=8, seed=1, **base)])[0].losses[0] != alone.losses[0]


CHANGES = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 40),
        "alpha": st.floats(1, 64),
        "modules": st.sampled_from(["query+key+value", "attention", "mlp", "all-linear"]),
        "learning_rate": st.floats(1e-4, 1e-2),
        "dropout": st.sampled_from([0.0, 0.1, 0.5]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "warmup": st.sampled_from([0.0, 0.5]),
        "scheduler": st.sampled_from(["linear", "cosine", "constant"]),
        "seed": st.integers(0, 2),
        "steps": st.integers(2, 4),
    }
)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(family=st.sampled_from(STYLES), changes=st.lists(CHANGES, min_size=1, max_size=5))
def test_random_packs_equal_stock_peft(places: dict[str, Place], family: str, changes: list[dict[str, Any]]) -> None:
    """Whatever differs inside a pack, each trial's numbers are its own, also of unequal lengths."""
    place = places[family]
    configs = [place.trial(**one) for one in changes]
    engine = PackedEngine(configs[0], place.bases)
    sessions = [engine.open(config) for config in configs]
    while left := {one: one.config.rows for one in sessions if one.rows_seen < one.config.rows}:
        engine.train(left)
    losses = [torch.stack(one._losses).tolist() for one in sessions]
    engine.close()
    for config, found in zip(configs, losses, strict=True):
        assert found == pytest.approx(stock(place, config).losses, rel=1e-5)


def test_engines_of_one_base_take_turns(places: dict[str, Place]) -> None:
    """Packs of other batch sizes use the same weights; each gives its own numbers, and nothing is left on the model."""
    place = places["llama"]
    configs = [place.trial(), place.trial(batch_size=4)]
    alone = [packed(place, [config])[0].losses for config in configs]
    engines = [PackedEngine(config, place.bases) for config in configs]
    sessions = [engine.open(config) for engine, config in zip(engines, configs, strict=True)]
    for rows in (4, 8, 12):
        for session in sessions:
            session.train(rows)
    assert [torch.stack(session._losses).tolist() for session in sessions] == alone
    for engine in engines:
        engine.close()
    assert not any("forward" in vars(module) for module in engines[0].model.modules())


def test_a_pass_that_breaks_off_leaves_every_slot_as_it_was(
    places: dict[str, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After memory ran out in the backward pass the same step is taken again, with the same rows, by fewer."""
    place = places["llama"]
    configs = [place.trial(**changes, gradient_accumulation=2) for changes in MIXED]
    whole = packed(place, configs)
    engine = PackedEngine(configs[0], place.bases)
    sessions = [engine.open(config) for config in configs]
    engine.train(dict.fromkeys(sessions, 8))
    calls = iter(range(100))

    def full(*_: Any, **__: Any) -> Any:
        if next(calls) == 5:
            raise MemoryError
        return torch.bmm(*_, **__)

    with monkeypatch.context() as patch:
        patch.setattr(packed_lora.torch, "bmm", full)
        with pytest.raises(MemoryError):
            engine.train(dict.fromkeys(sessions, 12))
    for session in sessions[2:]:
        session.close()
    engine.train(dict.fromkeys(sessions[:2], 24))
    losses = [torch.stack(session._losses).tolist() for session in sessions[:2]]
    engine.close()
    assert losses == [found.losses for found in whole[:2]]


def test_memory_that_runs_out_while_one_joins_costs_the_others_nothing(
    places: dict[str, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were there go on from where they were, with the newcomer gone."""
    place = places["llama"]
    configs = [place.trial(**changes) for changes in MIXED[:2]]
    whole = packed(place, configs)
    engine = PackedEngine(configs[0], place.bases)
    sessions = [engine.open(config) for config in configs]
    engine.train(dict.fromkeys(sessions, 6))
    new = engine.open(place.trial(rank=64))
    made = iter(range(100))

    def full(*arguments: Any) -> Any:
        if next(made) == 1:
            raise MemoryError
        return stack_bucket(*arguments)

    stack_bucket = packed_slot._bucket
    with monkeypatch.context() as patch:
        patch.setattr(packed_slot, "_bucket", full)
        with pytest.raises(MemoryError):
            engine.train({**dict.fromkeys(sessions, 12), new: 6})
    new.close()
    engine.train(dict.fromkeys(sessions, 12))
    found = [torch.stack(one._losses).tolist() for one in sessions]
    engine.close()
    assert found == [one.losses for one in whole]


def test_stock_peft_and_packs_do_not_mix_on_one_base(places: dict[str, Place]) -> None:
    """A pack is set aside while stock PEFT trains, and goes on after it; during it, it is refused."""
    place = places["llama"]
    config = place.trial()
    (whole,) = packed(place, [config])
    engine = PackedEngine(config, place.bases)
    session = engine.open(config)
    session.train(6)
    alone = open_session(place.trial(seed=3), place.bases)
    alone.train(6)
    with pytest.raises(RuntimeError, match="detach it first"):
        session.train(12)
    alone.close()
    session.train(12)
    assert torch.stack(session._losses).tolist() == whole.losses
    engine.close()


def test_a_session_takes_back_an_earlier_state(places: dict[str, Place], tmp_path: Path) -> None:
    """Loading into a slot that trains brings back its numbers, moments and counts; its mate does not notice."""
    place = places["llama"]
    configs = [place.trial(**changes) for changes in MIXED[:2]]
    whole = packed(place, configs)
    engine = PackedEngine(configs[0], place.bases)
    one, mate = (engine.open(config) for config in configs)
    engine.train({one: 4, mate: 4})
    one.save(tmp_path)
    engine.train({one: 8})
    one.load(tmp_path)
    engine.train({one: 12, mate: 12})
    assert [torch.stack(session._losses).tolist() for session in (one, mate)] == [found.losses for found in whole]
    engine.close()


def test_a_slot_that_left_keeps_no_memory(places: dict[str, Place]) -> None:
    """Of trials that end one after another, only those that train have numbers in memory."""
    place = places["llama"]
    engine = PackedEngine(place.trial(), place.bases)
    sessions = [engine.open(place.trial(rank=8)) for _ in range(4)]
    buckets = []
    for rows in (2, 4, 6, 8):
        engine.train(dict.fromkeys(sessions, rows))
        buckets += [weakref.ref(bucket) for bucket in engine._stack.buckets]
        if len(sessions) > 1:
            sessions.pop().close()
    assert [bucket() is None for bucket in buckets] == [True, True, True, False]
    engine.close()


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama classifier"])
def test_a_head_that_the_base_already_has_is_trained_on(family: str, files: dict[str, Path], tmp_path: Path) -> None:
    """A classifier that was trained before goes on with its own head, as with stock PEFT."""
    from transformers import AutoModelForSequenceClassification

    without_dropout(family, tmp_path)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2).save_pretrained(tmp_path)
    place = Place(family, ModelConfig(name=str(tmp_path)), files, BaseCache())
    configs = [place.trial(rank=4), place.trial(rank=16, modules="all-linear")]
    for config, found in zip(configs, packed(place, configs), strict=True):
        assert_equal(found, stock(place, config))
