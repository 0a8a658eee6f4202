"""Train the LoRA adapter of this folder anew, with transformers and PEFT alone.

    python train.py [--epochs 3] [--rows FOLDER] [--out trained]

Reads adapter_config.json, base.json, training_arguments.json and, where they are there, bitsandbytes_config.json and
model_arguments.json from its own folder; the rows as JSON lines. Without --epochs it trains as long as the trial did.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments

HERE = Path(__file__).parent
IGNORE = -100  # the label that a loss skips
Row = dict[str, Any]


def read(name: str) -> Any:
    """JSON of a file beside this one; None where it is not there."""
    file = HERE / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def parts(row: Row, base: Row, tokenizer: Any) -> tuple[str, str]:
    """Prompt and completion; the prompt is not trained on."""
    if base["form"] == "text":
        return "", row["text"]
    if base["form"] == "pairs":
        return row["prompt"], row["completion"]
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    for generation in (True, False):
        prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=generation)
        if whole.startswith(prompt):
            return prompt, whole[len(prompt) :]
    raise SystemExit("the chat template rewrites earlier turns, so prompt and completion cannot be told apart")


def encode(row: Row, base: Row, tokenizer: Any, labels: dict[str, int]) -> Row | None:
    """Token ids and labels; None where nothing is left to predict."""
    longest = base["max_length"]
    framed = base["framed"] or base["form"] == "turns"
    if base["task"] == "seq_cls":
        ids = tokenizer(row["text"], truncation=True, max_length=longest, add_special_tokens=not framed)["input_ids"]
        return {"input_ids": ids, "labels": labels[str(row["label"])]}
    prompt, completion = parts(row, base, tokenizer)
    end = [] if framed or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if base["task"] == "seq_2_seq_lm":
        cut = {"truncation": True, "max_length": longest, "add_special_tokens": not framed}
        target = tokenizer(text_target=completion, **cut)["input_ids"]
        target += end if target[-1:] != end and len(target) < longest else []
        return {"input_ids": tokenizer(prompt, **cut)["input_ids"], "labels": target}
    if base["form"] == "text":  # blocks, with the begin and end tokens of their documents
        ids = tokenizer(completion, add_special_tokens=False)["input_ids"][:longest]
        return {"input_ids": ids, "labels": list(ids)}
    own = tokenizer("")["input_ids"][:1]
    begin = own if not framed and own and own[0] == tokenizer.bos_token_id else []
    first = [*begin, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    second = [*tokenizer(completion, add_special_tokens=False)["input_ids"], *end]
    ids, targets = [*first, *second][:longest], [*[IGNORE] * len(first), *second][:longest]
    return {"input_ids": ids, "labels": targets} if len(ids) > max(len(first), 1) else None


def rows_of(file: Path, base: Row, tokenizer: Any, labels: dict[str, int]) -> list[Row]:
    """Encoded rows of a file."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    return [row for line in lines if (row := encode(line, base, tokenizer, labels)) is not None]


def collate(rows: list[Row], pad_id: int) -> dict[str, torch.Tensor]:
    """A batch, filled up on the right."""

    def filled(name: str, value: int) -> torch.Tensor:
        longest = max(len(row[name]) for row in rows)
        return torch.tensor([[*row[name], *[value] * (longest - len(row[name]))] for row in rows])

    mask = [{"mask": [1] * len(row["input_ids"])} for row in rows]
    width = max(len(row["mask"]) for row in mask)
    batch = {
        "input_ids": filled("input_ids", pad_id),
        "attention_mask": torch.tensor([[*row["mask"], *[0] * (width - len(row["mask"]))] for row in mask]),
    }
    whole = isinstance(rows[0]["labels"], int)
    return {**batch, "labels": torch.tensor([row["labels"] for row in rows]) if whole else filled("labels", IGNORE)}


def load(base: Row, arguments: TrainingArguments) -> Any:
    """The frozen base with a fresh adapter on it."""
    bits, own = read("bitsandbytes_config.json"), read("model_arguments.json") or {}
    if "id2label" in own:
        own["id2label"] = {int(number): label for number, label in own["id2label"].items()}
    model = getattr(transformers, base["auto_class"]).from_pretrained(
        str(HERE / base["model"]) if base["model"].startswith(".") else base["model"],
        revision=base["revision"],
        dtype=getattr(torch, base["dtype"]),
        quantization_config=BitsAndBytesConfig(**bits) if bits else None,
        attn_implementation=base["attention"],
        ignore_mismatched_sizes=bool(own),
        **own,
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # bitsandbytes 0.50: else adapters get no gradient on such CPUs
    model.config.pad_token_id = base["pad_id"]
    model.requires_grad_(requires_grad=False)
    if arguments.gradient_checkpointing:
        model.enable_input_require_grads()
    adapter = LoraConfig.from_pretrained(str(HERE))
    adapter.inference_mode, adapter.base_model_name_or_path = False, None
    return get_peft_model(model, adapter)


@torch.no_grad()
def measure(model: Any, rows: list[Row], base: Row, size: int) -> dict[str, float]:
    """Loss and quality over all rows: sums over targets, divided once."""
    model.eval()
    nll = targets = right = 0.0
    for start in range(0, len(rows), size):
        batch = {
            name: tensor.to(model.device)
            for name, tensor in collate(rows[start : start + size], base["pad_id"]).items()
        }
        logits, labels = model(**batch).logits.float(), batch["labels"]
        if base["task"] == "causal_lm":
            logits, labels = logits[:, :-1], labels[:, 1:]
        logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        nll += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum"))
        targets += int((labels != IGNORE).sum())
        right += int((logits.argmax(-1) == labels).sum())
    found = {"eval_loss": nll / targets}
    return (
        {**found, "accuracy": right / targets}
        if base["task"] == "seq_cls"
        else {**found, "perplexity": math.exp(nll / targets)}
    )


def main() -> None:
    """Train, measure, save."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=float, help="passes over the rows [as long as the trial]")
    parser.add_argument("--rows", type=Path, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--out", type=Path, default=HERE / "trained", help="folder for the adapter")
    options = parser.parse_args()
    base, said = read("base.json"), read("training_arguments.json")
    if options.epochs:
        share = said["warmup_steps"] / said["max_steps"]
        said = {**said, "num_train_epochs": options.epochs, "max_steps": -1, "warmup_steps": share}
    arguments = TrainingArguments(
        output_dir=str(options.out), report_to=[], save_strategy="no", logging_steps=10,
        gradient_checkpointing_kwargs={"use_reentrant": False}, remove_unused_columns=False, **said,
    )  # fmt: skip
    transformers.set_seed(arguments.seed)
    model = load(base, arguments)
    tokenizer = AutoTokenizer.from_pretrained(model.get_base_model().config.name_or_path, revision=base["revision"])
    labels = (read("model_arguments.json") or {}).get("label2id", {})
    rows = options.rows or HERE / base["rows"]
    train = rows_of(rows / "train.jsonl", base, tokenizer, labels)
    trainer = Trainer(
        model=model, args=arguments, train_dataset=train, data_collator=lambda some: collate(some, base["pad_id"])
    )
    trainer.train()
    validation = rows_of(rows / "validation.jsonl", base, tokenizer, labels)
    measured = measure(model, validation, base, arguments.per_device_eval_batch_size)
    model.save_pretrained(str(options.out), save_embedding_layers=False)
    (options.out / "metrics.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
