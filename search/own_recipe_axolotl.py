"""axolotl's recipes: `axolotl train config.yaml`. Names and defaults: its `utils/schemas` of July 2026."""

from __future__ import annotations

from lorafront.search.own_recipe_fields import Fields, Values, above_zero, flag, mapping, share, text, whole
from lorafront.search.own_recipe_trainer import (
    DEFAULTS,
    Lookup,
    attention,
    dtype,
    entries,
    evaluation,
    modules,
    split,
    trainer,
    variants,
)
from lorafront.trainables.formats import FORMATS

KEYS = ("base_model", "adapter", "micro_batch_size", "num_epochs", "sequence_len", "lora_target_linear", "lora_r",
        "lora_target_modules")  # fmt: skip
_FORMATS = {"alpaca": "alpaca", "completion": "text", "pretrain": "text", "chat_template": "messages",
            "chat_template.default": "messages"}  # fmt: skip
_WORDED_OTHERWISE = {"jeopardy": "question_answer", "alpaca_chat.load_qa": "question_answer"}


def read(f: Fields, _: Lookup) -> Values:
    """Take what has a counterpart; returns axolotl's own defaults."""
    f.put("model.name", "base_model", text)
    adapter = f.take("adapter", text)
    if adapter not in {"lora", "qlora"}:
        f.refuse("adapter", "must be lora or qlora: nothing else is searched here")
    for key in ("rl", "reward_model", "process_reward_model"):
        if f.take(key, lambda value: value is not False):
            f.refuse(key, "is no supervised fine-tuning, so no trial here compares with it")
    f.put("baseline.rank", "lora_r", whole(1))
    f.put("baseline.alpha", "lora_alpha", above_zero)
    f.put("baseline.dropout", "lora_dropout", share)
    modules(f, "lora_target_modules", *(["all-linear"] if f.take("lora_target_linear", flag) else []))
    variants(f, "peft_")
    four, eight = f.take("load_in_4bit", flag), f.take("load_in_8bit", flag)
    held = dtype(f, ("bf16", "bf16"), ("bfloat16", "bf16"), ("fp16", "fp16"), ("float16", "fp16"))
    in_four = _four_bits(f) if four or adapter == "qlora" else None
    f.set("baseline.quantization", in_four or ("int8" if eight else held or "fp32"))
    attention(f, "attn_implementation")
    f.put("data.max_length", "sequence_len", whole(2))
    sizes = {"training.batch_size": "micro_batch_size", "training.eval_batch_size": "eval_batch_size"}
    trainer(f, sizes, optimizer_key="optimizer", scheduler_key="lr_scheduler", epochs_key="num_epochs")
    offloaded = ("offload", "offload_disk")
    checkpointing = f.take("gradient_checkpointing", lambda value: value in offloaded or flag(value))
    f.set("training.gradient_checkpointing", checkpointing)
    evaluation(f, "val_set_size")
    if f.take("train_on_inputs", flag):
        f.leave("train_on_inputs", "prompts are not trained on here")
    for one in entries(f, "datasets"):
        _data(one)
    for one in entries(f, "test_datasets"):
        one.put("data.eval_path", "path", text)
        one.finish()
    return {
        **DEFAULTS, "training.batch_size": 1, "training.epochs": 1.0, "training.warmup": 0.03,
        "training.scheduler": "cosine", "baseline.dropout": 0.0, "data.max_length": 512,
    }  # fmt: skip


def _four_bits(f: Fields) -> str:
    """NF4 with double quantization unless it says otherwise (its `loaders/model.py`)."""
    own = Fields(f.take("bnb_config_kwargs", mapping) or {}, ("bnb_config_kwargs",), f)
    kind, double = own.take("bnb_4bit_quant_type", text), own.take("bnb_4bit_use_double_quant", flag)
    own.finish()
    return "fp4" if kind == "fp4" else "nf4" if double is False else "nf4_double"


def _data(f: Fields) -> None:
    f.put("data.path", "path", text)
    if f.take("data_files", lambda value: isinstance(value, list) and len(value) != 1):
        f.leave("data_files", "one path here")
    else:
        f.put("data.path", "data_files", lambda value: text(value[0] if isinstance(value, list) else value))
    if f.take("ds_type", text) not in {"json", "csv", "parquet", "text"}:
        f.leave("ds_type", "the ending of a file tells its kind here")
    f.put("data.config_name", "name", text)
    f.put("data.revision", "revision", text)
    split(f, "split")
    row_format = _format(f)
    f.set("data.format", row_format)
    column = {"text": "field", "messages": "field_messages"}.get(row_format or "")
    named = f.take(column, text) if column else None
    f.set("data.columns", {row_format: named} if named and named != row_format else None)
    f.finish()


def _format(f: Fields) -> str | None:
    """Ours for the data set's `type`; None where there is none."""
    kind = f.take("type", lambda value: value if isinstance(value, str) else "a template of one's own") or ""
    if kind in _FORMATS:
        return _FORMATS[kind]
    near = _WORDED_OTHERWISE.get(kind) or _FORMATS.get(kind.partition(":")[0])
    f.leave("type", "its prompt is worded otherwise here" if near else f"choose a format: {', '.join(FORMATS)}")
    return near
