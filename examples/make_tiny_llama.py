"""Pretrain the small Llama of `examples/tiny-llama`, and measure it against n-gram models.

Reads WikiText-2 (raw) and writes a folder that `AutoModelForCausalLM` and `AutoTokenizer` load: fp16 safetensors, a
byte-level BPE tokenizer and a model card with every number that this script measured. Trained on the test split and the
last two thirds of the validation split; measured on the first third of the validation split, which nothing else sees.

    python examples/make_tiny_llama.py ../shared/data/wikitext-2 examples/tiny-llama     # about 25 minutes on one core
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 2048
BLOCK = 256  # tokens per training row
BATCH = 16  # rows per optimizer step
END, PAD = "<|endoftext|>", "<|pad|>"


def read_corpus(folder: Path) -> tuple[list[str], list[str]]:
    """Return (training documents, held-out documents); one document per line that is not empty."""
    valid = [line for line in (folder / "valid.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
    test = [line for line in (folder / "test.txt").read_text(encoding="utf-8").splitlines() if line.strip()]
    third = len(valid) // 3
    return test + valid[third:], valid[:third]


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the training documents only."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=2 * BLOCK
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> np.ndarray:
    """All documents as one int64 stream, each followed by the end token."""
    encoded = tokenizer([line.strip() + "\n" for line in documents])["input_ids"]
    end = tokenizer.eos_token_id
    return np.array([token for ids in encoded for token in [*ids, end]], dtype=np.int64)


def unigram_perplexity(train: np.ndarray, held_out: np.ndarray) -> float:
    """Add-one unigram."""
    counts = np.bincount(train, minlength=VOCABULARY) + 1.0
    return float(np.exp(-np.log(counts / counts.sum())[held_out[1:]].mean()))


def bigram_perplexity(train: np.ndarray, held_out: np.ndarray, discount: float = 0.75) -> float:
    """Interpolated Kneser-Ney bigram (Chen and Goodman 1999, equation 2.6), absolute discount 0.75."""
    pairs = np.zeros((VOCABULARY, VOCABULARY), dtype=np.float64)
    np.add.at(pairs, (train[:-1], train[1:]), 1.0)
    continuation = (pairs > 0).sum(axis=0) + 1e-2  # a token never continued keeps a little mass
    continuation /= continuation.sum()
    totals = pairs.sum(axis=1)
    left, right = held_out[:-1], held_out[1:]
    kept = np.maximum(pairs[left, right] - discount, 0.0)
    spread = discount * (pairs > 0).sum(axis=1)[left]
    seen = totals[left] > 0
    p = np.where(seen, (kept + spread * continuation[right]) / np.maximum(totals[left], 1.0), continuation[right])
    return float(np.exp(-np.log(p).mean()))


@torch.no_grad()
def model_perplexity(model: LlamaForCausalLM, stream: np.ndarray) -> float:
    """exp(total NLL / tokens) over consecutive blocks of 256 tokens, each without context from the one before."""
    model.eval()
    nll, tokens = 0.0, 0
    for start in range(0, len(stream) - 1, BLOCK):
        ids = torch.from_numpy(stream[start : start + BLOCK]).unsqueeze(0)
        if ids.shape[1] == 1:
            break
        logits = model(ids).logits[0, :-1].float()
        nll += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens += ids.shape[1] - 1
    return math.exp(nll / tokens)


def pretrain(model: LlamaForCausalLM, stream: np.ndarray, epochs: int, learning_rate: float) -> int:
    """AdamW, cosine schedule with 5 % warm-up, random block offsets per epoch. Returns the number of tokens seen."""
    generator = np.random.default_rng(0)
    rows = (len(stream) - BLOCK) // BLOCK
    steps = epochs * (rows // BATCH)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=steps, pct_start=0.05, div_factor=100, final_div_factor=100
    )
    seen, step, start = 0, 0, time.time()
    for epoch in range(epochs):
        model.train()
        order = generator.permutation(rows)
        offset = int(generator.integers(BLOCK))
        for first in range(0, rows - BATCH + 1, BATCH):
            rows_here = [stream[offset + r * BLOCK : offset + (r + 1) * BLOCK] for r in order[first : first + BATCH]]
            ids = torch.from_numpy(np.stack(rows_here))
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            seen, step = seen + ids.numel(), step + 1
        print(f"epoch {epoch + 1}/{epochs}  loss {loss.item():.3f}  {time.time() - start:.0f} s", flush=True)
    return seen


CARD = """---
license: cc-by-sa-3.0
language: en
datasets: [wikitext]
library_name: transformers
---
# tiny-llama

A Llama of {parameters:,} parameters (4 layers, hidden size 128, 2 heads of 64, byte-level BPE of {vocabulary:,} tokens,
tied embeddings), pretrained so that examples and tests have a real language model of {megabytes:.1f} MB. It is good for
nothing else.

**Data.** WikiText-2 raw (Merity et al. 2016, CC BY-SA 3.0): the test split and the last two thirds of the validation
split, {train_tokens:,} tokens, {epochs} epochs, {seen:,} tokens seen. Measured on the first third of the validation
split ({held_out_tokens:,} tokens), which neither the tokenizer nor the training has seen.

| model of the same tokens | held-out perplexity |
|---|---|
| unigram, add one | {unigram:.1f} |
| bigram, interpolated Kneser-Ney | {bigram:.1f} |
| tiny-llama (fp16 weights, as in this folder) | **{perplexity:.1f}** |

Made by `examples/make_tiny_llama.py`, seed 0, torch {torch_version}.
"""


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with valid.txt and test.txt of WikiText-2 raw")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    arguments = parser.parse_args()
    torch.manual_seed(0)

    train_documents, held_out_documents = read_corpus(arguments.data)
    tokenizer = train_tokenizer(train_documents)
    train, held_out = encode(tokenizer, train_documents), encode(tokenizer, held_out_documents)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=2 * BLOCK, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    seen = pretrain(model, train, arguments.epochs, arguments.learning_rate)

    model = model.half()
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    saved = LlamaForCausalLM.from_pretrained(arguments.out, dtype=torch.float32)  # fp16 values, computed in fp32
    card = CARD.format(
        parameters=sum(p.numel() for p in saved.parameters()), vocabulary=VOCABULARY, epochs=arguments.epochs,
        megabytes=(arguments.out / "model.safetensors").stat().st_size / 1e6, train_tokens=len(train), seen=seen,
        held_out_tokens=len(held_out), unigram=unigram_perplexity(train, held_out),
        bigram=bigram_perplexity(train, held_out), perplexity=model_perplexity(saved, held_out),
        torch_version=torch.__version__.split("+")[0],
    )  # fmt: skip
    (arguments.out / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
