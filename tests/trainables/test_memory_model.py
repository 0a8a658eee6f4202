"""Peak memory in closed form equals the trace of the whole model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from architectures import FAMILIES, small_config
from support import lora
from transformers import AutoConfig, PretrainedConfig

from lorafront.spaces import modules
from lorafront.spaces.errors import NotTraced
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.config import ModelConfig, TrainingConfig, TrialConfig
from lorafront.trainables.data import TokenRows
from lorafront.trainables.memory_model import MemoryModel, Shapes, exact, with_depth
from lorafront.trainables.memory_trace import trace
from lorafront.trainables.model_facts import model_facts
from lorafront.trainables.task import Task, task_named

PLAIN, RECOMPUTED = TrainingConfig(rows=64), TrainingConfig(rows=64, gradient_checkpointing=True)


def whole(
    config: PretrainedConfig, task: Task, one: LoraConfiguration, training: TrainingConfig, shapes: Shapes
) -> int:
    """Traced peak bytes of the model in its full depth."""
    facts = model_facts(config, task)
    trial = TrialConfig(
        task=task.name, model=ModelConfig(name="m"), training=training, rungs=(64,), seed=0, tokens=Path("t"),
        lora=one.model_copy(update={"batch_size": shapes.rows}), labels=("0", "1") if task.new_head else (),
        targets=modules.resolve(one.modules, list(facts.linears)).targets,
    )  # fmt: skip
    start = shapes.tokens if shapes.completion else 1
    longest = ([0] * (shapes.tokens + shapes.completion), start)
    shorter = ([0] * (shapes.tokens - 1), min(start, shapes.tokens - 2)) if shapes.padded else longest
    return trace(trial, config, task, TokenRows.build([longest, *[shorter] * (shapes.rows - 1)])).allocated


@pytest.mark.parametrize(
    ("family", "one", "training"),
    [
        ("llama", lora(quantization="nf4", dropout=0.1), PLAIN),
        ("llama", lora(quantization="bf16", modules="all-linear"), RECOMPUTED),
        ("gpt-2", lora(quantization="int8"), PLAIN),
        ("qwen2", lora(quantization="nf4_double", bias="all"), RECOMPUTED),
        ("phi-2", lora(quantization="fp32", modules="attention+mlp"), PLAIN),
        ("bert", lora(quantization="nf4"), PLAIN),
        ("t5", lora(quantization="bf16"), RECOMPUTED),
    ],
)
def test_closed_form_is_the_trace(family: str, one: LoraConfiguration, training: TrainingConfig) -> None:
    """From steps of two and three layers follow those of five, for other ranks, batches and lengths, within 0.1 %."""
    task = task_named(FAMILIES[family][0])
    config = with_depth(small_config(family), 5)
    model = MemoryModel(config, task, ("0", "1") if task.new_head else ())
    completion = 9 if task.name == "seq_2_seq_lm" else 0
    for rank, shapes in ((16, Shapes(4, 33, completion)), (4, Shapes(2, 70, 3 * completion))):
        asked = one.model_copy(update={"rank": rank})
        predicted = model.predict(asked, training, shapes)
        assert predicted.total == pytest.approx(whole(config, task, asked, training, shapes), rel=1e-3)


@pytest.mark.parametrize("quantization", ["bf16", "nf4"])
def test_closed_form_of_a_real_architecture(quantization: str) -> None:
    """The 16 layers of a Llama of 1.2 billion parameters are predicted within 0.1 % from its config alone."""
    config = AutoConfig.for_model(
        "llama", hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True, max_position_embeddings=131072,
    )  # fmt: skip
    one, shapes, task = lora(quantization=quantization, rank=32), Shapes(4, 512), task_named("causal_lm")
    predicted = MemoryModel(config, task).predict(one, PLAIN, shapes)
    assert predicted.total == pytest.approx(whole(config, task, one, PLAIN, shapes), rel=1e-3)
    facts = model_facts(config, task)
    linear = sum(a * b for name, (a, b) in facts.linears.items() if name != "lm_head")
    stored = 2 if quantization == "bf16" else 0.5 + 4 / 64  # a float32 scale for each block of 64
    expected = linear * stored + (facts.parameters - linear) * 2
    assert predicted.parts["base"] == pytest.approx(expected, rel=0.001)


def test_parts_grow_with_what_they_are_for() -> None:
    """Adapters and optimizer states grow with the rank, logits with rows and tokens, the base with neither."""
    model = MemoryModel(small_config("llama"), task_named("causal_lm"))
    small = model.predict(lora(rank=4), PLAIN, Shapes(2, 16)).parts
    ranked = model.predict(lora(rank=64), PLAIN, Shapes(2, 16)).parts
    longer = model.predict(lora(rank=4), PLAIN, Shapes(2, 64)).parts
    assert ranked["adapters"] == 16 * small["adapters"]
    assert ranked["optimizer"] > 10 * small["optimizer"]
    assert longer["logits"] == 4 * small["logits"]
    assert small["base"] == ranked["base"] == longer["base"]


def test_what_was_traced_is_kept(tmp_path: Path) -> None:
    """Another model of the same config reads it; a file that is cut short is traced again."""
    config, task = small_config("llama"), task_named("causal_lm")
    first = MemoryModel(config, task, cache=tmp_path).predict(lora(), PLAIN, Shapes(2, 16))
    files = sorted(tmp_path.glob("*.npz"))
    written = [file.stat().st_mtime_ns for file in files]
    again = MemoryModel(config, task, cache=tmp_path).predict(lora(rank=8), PLAIN, Shapes(3, 16))
    assert len(files) == 2
    assert [file.stat().st_mtime_ns for file in files] == written
    assert again.total > first.total
    files[0].write_bytes(files[0].read_bytes()[:100])
    assert MemoryModel(config, task, cache=tmp_path).predict(lora(), PLAIN, Shapes(2, 16)) == first
    with np.load(files[0]) as found:
        assert "phases" in found.files


def test_a_model_that_cannot_be_traced_says_so() -> None:
    """OPT draws which layers to leave out; that is asked once, and is an error that callers can expect."""
    config = AutoConfig.for_model(
        "opt", vocab_size=512, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=2,
        word_embed_proj_dim=64, layerdrop=0.1,
    )  # fmt: skip
    model = MemoryModel(config, task_named("causal_lm"))
    for _ in range(2):
        with pytest.raises(NotTraced):
            model.predict(lora(), PLAIN, Shapes(2, 16))


def test_where_the_closed_form_is_not_exact_is_known() -> None:
    """The 8-bit optimizer, rows as long as a sliding window, and sides of different depth."""
    plain, eight_bit = TrainingConfig(rows=64), TrainingConfig(rows=64, optimizer="paged_adamw_8bit")
    assert exact(small_config("llama"), plain, 512)
    assert not exact(small_config("llama"), eight_bit, 512)
    assert exact(AutoConfig.for_model("mistral", sliding_window=4096), plain, 512)
    assert not exact(AutoConfig.for_model("mistral", sliding_window=512), plain, 512)
    assert exact(AutoConfig.for_model("t5", num_layers=6), plain, 512)
    assert not exact(AutoConfig.for_model("t5", num_layers=12, num_decoder_layers=4), plain, 512)
