"""Peak memory in closed form equals the trace of the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from architectures import FAMILIES, small_config
from support import lora
from transformers import AutoConfig, PretrainedConfig

from lorafront.spaces import modules
from lorafront.spaces.errors import NotTraced
from lorafront.spaces.lora import LoraConfiguration
from lorafront.trainables.config import Attention, ModelConfig, TrainingConfig, TrialConfig
from lorafront.trainables.data import TokenRows
from lorafront.trainables.memory_model import MemoryModel, Shapes, exact, with_depth
from lorafront.trainables.memory_trace import DeviceKind, Timeline, TracedSession, traced
from lorafront.trainables.model_facts import model_facts
from lorafront.trainables.task import Task, task_named

PLAIN, RECOMPUTED = TrainingConfig(rows=64), TrainingConfig(rows=64, gradient_checkpointing=True)
PAGED = TrainingConfig(rows=64, optimizer="paged_adamw_8bit")
MIB = 2**20


def session(
    config: PretrainedConfig,
    task: Task,
    one: LoraConfiguration,
    training: TrainingConfig,
    shapes: Shapes,
    device: DeviceKind = "cpu",
    attention: Attention = "auto",
) -> TracedSession:
    """The model traced in its full depth."""
    facts = model_facts(config, task)
    trial = TrialConfig(
        task=task.name, model=ModelConfig(name="m", attention=attention), training=training, rungs=(64,), seed=0,
        tokens=Path("t"), lora=one.model_copy(update={"batch_size": shapes.rows}),
        labels=("0", "1") if task.new_head else (), targets=modules.resolve(one.modules, list(facts.linears)).targets,
    )  # fmt: skip
    start = shapes.tokens if shapes.completion else 1
    longest = ([0] * (shapes.tokens + shapes.completion), start)
    shorter = ([0] * (shapes.tokens - 1), min(start, shapes.tokens - 2)) if shapes.padded else longest
    return traced(trial, config, task, TokenRows.build([longest, *[shorter] * (shapes.rows - 1)]), device)


def compare(
    family: str,
    one: LoraConfiguration,
    training: TrainingConfig,
    device: DeviceKind = "cpu",
    attention: Attention = "auto",
    shapes: Sequence[Shapes] = (Shapes(4, 33), Shapes(2, 70)),
) -> None:
    """The closed form against traces of five layers, for two ranks, batches and lengths."""
    task = task_named(FAMILIES[family][0])
    config = with_depth(small_config(family), 5)
    labels = ("0", "1") if task.new_head else ()
    model = MemoryModel(config, task, labels, attention, device=device)
    for rank, batch in zip((16, 4), shapes, strict=True):
        both = replace(batch, completion=batch.tokens // 3) if task.name == "seq_2_seq_lm" else batch
        asked = one.model_copy(update={"rank": rank})
        predicted = model.predict(asked, training, both)
        step = predicted.total - predicted.parts["workspace"]
        measured = session(config, task, asked, training, both, device, attention).memory.allocated
        assert step == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize(
    ("family", "one", "training"),
    [
        ("llama", lora(quantization="nf4", dropout=0.1), PLAIN),
        ("llama", lora(quantization="bf16", modules="all-linear", gradient_accumulation=2), RECOMPUTED),
        ("gpt-2", lora(quantization="int8"), PLAIN),
        ("qwen2", lora(quantization="nf4_double", bias="all"), RECOMPUTED),
        ("phi-2", lora(quantization="fp32", modules="attention+mlp"), PAGED),
        ("bert", lora(quantization="nf4"), PLAIN),
        ("t5", lora(quantization="bf16"), RECOMPUTED),
    ],
)
def test_closed_form_is_the_trace(family: str, one: LoraConfiguration, training: TrainingConfig) -> None:
    """From steps of two and three layers follow those of five, for other ranks, batches and lengths, within 0.1 %."""
    compare(family, one, training)


@pytest.mark.parametrize("quantization", ["bf16", "nf4"])
@pytest.mark.parametrize("layers", [1, 4])
def test_a_few_layers_are_traced_as_they_are(tmp_path: Path, quantization: str, layers: int) -> None:
    """One trace is enough, and exact: nothing is extrapolated."""
    config, task, shapes = with_depth(small_config("llama"), layers), task_named("causal_lm"), Shapes(4, 33)
    one = lora(quantization=quantization)
    predicted = MemoryModel(config, task, cache=tmp_path).predict(one, PLAIN, shapes)
    assert predicted.total == session(config, task, one, PLAIN, shapes).memory.allocated
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_closed_form_of_single_rows() -> None:
    """A batch of one row, which is never padded, is a kind of its own."""
    single = [Shapes(1, 33, padded=False), Shapes(1, 70, padded=False)]
    compare("llama", lora(quantization="bf16"), PLAIN, shapes=single)


def test_closed_form_of_eager_attention() -> None:
    """Attention that keeps its matrix of tokens by tokens is predicted as well."""
    compare("llama", lora(quantization="bf16"), PLAIN, attention="eager")


@pytest.mark.parametrize(
    ("family", "one", "training"),
    [
        ("llama", lora(quantization="int8", modules="all-linear", dropout=0.1), PLAIN),
        ("qwen2", lora(quantization="nf4_double"), RECOMPUTED),
        ("phi-2", lora(quantization="bf16", gradient_accumulation=2), PAGED),
        ("t5", lora(quantization="fp32"), PLAIN),
    ],
)
def test_closed_form_for_cuda_is_its_trace(family: str, one: LoraConfiguration, training: TrainingConfig) -> None:
    """What the step on a GPU allocates otherwise follows to other sizes in the same way."""
    compare(family, one, training, device="cuda")


def made(line: Timeline, phase: str, size: int) -> int:
    """Number of storages of so many bytes that came in a phase of the step."""
    return sum(line.phases[at] == phase and found == size for found, at in zip(line.sizes, line.made, strict=True))


def test_kernels_of_a_gpu_are_seen() -> None:
    """int8 multiplies into int32, 4-bit weights are unpacked in the forward pass, flash attention sums in float32."""
    config, task, shapes = small_config("llama"), task_named("causal_lm"), Shapes(3, 37, padded=False)
    wide, tokens = config.intermediate_size, shapes.rows * shapes.tokens
    expected = {  # what it is, in which phase, bytes
        "int8": ("forward", tokens * wide * 4),
        "nf4": ("forward", config.hidden_size * wide * 2),
        "bf16": ("backward", tokens * config.hidden_size * 4),
    }
    for quantization, (phase, size) in expected.items():
        one = lora(quantization=quantization, modules="query+value")
        lines = [session(config, task, one, PLAIN, shapes, device).timeline for device in ("cpu", "cuda")]
        on_cpu, on_gpu = (made(line, phase, size) for line in lines)
        assert on_gpu > on_cpu, quantization


def test_dropout_keeps_a_byte_per_element_on_a_gpu() -> None:
    """There its mask is of booleans, where a CPU keeps noise as wide as the input."""
    task, shapes, one = task_named("causal_lm"), Shapes(4, 64, padded=False), lora(quantization="bf16", dropout=0.1)
    needs = {d: MemoryModel(small_config("llama"), task, device=d).predict(one, PLAIN, shapes) for d in ("cpu", "cuda")}
    assert needs["cuda"].parts["activations"] < needs["cpu"].parts["activations"]


def test_paged_states_are_not_in_a_gpus_allocator() -> None:
    """States of parameters of at least 100,000 elements stand in managed memory; their scales do not."""
    config = AutoConfig.for_model(
        "llama", hidden_size=1024, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8, vocab_size=512
    )
    task, shapes = task_named("causal_lm"), Shapes(2, 16)
    on_cpu, on_gpu = MemoryModel(config, task), MemoryModel(config, task, device="cuda")
    for rank, paged in ((97, False), (98, True)):
        one = lora(rank=rank, modules="all-linear")
        elements = sum(one.rank * (a + b) for n, (a, b) in model_facts(config, task).linears.items() if n != "lm_head")
        states = on_cpu.predict(one, PAGED, shapes).parts["optimizer"]
        assert states >= 2 * elements
        left = on_gpu.predict(one, PAGED, shapes).parts["optimizer"]
        assert (left < elements) if paged else (left == states)


def test_workspaces_of_cublas_are_a_part() -> None:
    """On a GPU one for each of two threads, larger from Hopper on and where nothing is said; on a CPU none."""
    config, task = small_config("llama"), task_named("causal_lm")
    kinds = ({}, {"device": "cuda"}, {"device": "cuda", "capability": 8})
    models = [MemoryModel(config, task, **kind) for kind in kinds]
    predicted = [model.predict(lora(), PLAIN, Shapes(2, 16)) for model in models]
    assert [one.parts["workspace"] for one in predicted] == [0, 64 * MIB, 16.25 * MIB]
    assert predicted[1].total - predicted[2].total == 47.75 * MIB


@pytest.mark.parametrize("quantization", ["bf16", "nf4"])
def test_closed_form_of_a_real_architecture(quantization: str) -> None:
    """The 16 layers of a Llama of 1.2 billion parameters are predicted within 0.1 % from its config alone."""
    config = AutoConfig.for_model(
        "llama", hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=True, max_position_embeddings=131072,
    )  # fmt: skip
    one, shapes, task = lora(quantization=quantization, rank=32), Shapes(4, 512), task_named("causal_lm")
    predicted = MemoryModel(config, task).predict(one, PLAIN, shapes)
    assert predicted.total == pytest.approx(session(config, task, one, PLAIN, shapes).memory.allocated, rel=1e-3)
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
    config, task = with_depth(small_config("llama"), 5), task_named("causal_lm")
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
    """Rows as long as a sliding window, and sides of different depth."""
    assert exact(small_config("llama"), 512)
    assert exact(AutoConfig.for_model("mistral", sliding_window=4096), 512)
    assert not exact(AutoConfig.for_model("mistral", sliding_window=512), 512)
    assert exact(AutoConfig.for_model("t5", num_layers=6), 512)
    assert not exact(AutoConfig.for_model("t5", num_layers=12, num_decoder_layers=4), 512)
