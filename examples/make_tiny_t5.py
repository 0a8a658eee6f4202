"""Pretrain the small T5 of `examples/tiny-t5`, and measure it against a unigram model.

Reads WikiText-2 (raw) and writes a folder that `AutoModelForSeq2SeqLM` and `AutoTokenizer` load: fp16 safetensors, the
byte-level BPE of tiny-llama with sentinel tokens, and a model card with every number that this script measured. Trained
and measured on the same parts of the text as tiny-llama; by span corruption and prefix language modelling in turn.

    python examples/make_tiny_t5.py ../shared/data/wikitext-2 examples/tiny-t5     # about 15 minutes on one core
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from make_tiny_llama import END, PAD, encode, read_corpus
from make_tiny_llama import VOCABULARY as WORDS
from make_tiny_llama import train_tokenizer as train_bpe
from tokenizers import processors
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

SENTINELS = 64
BLOCK = 192  # tokens per row before corruption
BATCH = 16  # rows per optimizer step
NOISE = 0.25  # share of the tokens that the decoder must give back
SPAN = 3.0  # their mean number per sentinel
SPANS = round(BLOCK * NOISE / SPAN)
PIECES = 4  # of an epoch, between two lines of progress


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE as of tiny-llama, <extra_id_0> and on behind its tokens, the end token after each text."""
    tokenizer = train_bpe(documents)
    bpe = tokenizer.backend_tokenizer
    bpe.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, tokenizer.eos_token_id)]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, model_max_length=512,
        extra_special_tokens=[f"<extra_id_{i}>" for i in range(SENTINELS)],
    )  # fmt: skip


def lengths(total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """Split total at random into that many parts, none empty (as T5's random_spans_noise_mask does)."""
    cuts = np.sort(generator.choice(np.arange(1, total), parts - 1, replace=False))
    return np.diff(np.concatenate([[0], cuts, [total]]))


def corrupt(row: np.ndarray, end: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return (what the encoder reads, what the decoder must say): spans out, one sentinel each (Raffel et al. 2020)."""
    noise = round(BLOCK * NOISE)
    kept, lost = lengths(BLOCK - noise, SPANS, generator), lengths(noise, SPANS, generator)
    source, target, place = [], [], 0
    for number, (keep, lose) in enumerate(zip(kept, lost, strict=True)):
        sentinel = [WORDS + number]
        source += [row[place : place + keep], sentinel]
        target += [sentinel, row[place + keep : place + keep + lose]]
        place += keep + lose
    return np.concatenate([*source, [end]]), np.concatenate([*target, [end]])


def corrupted(rows: np.ndarray, end: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (source, target) of all rows; all are of the same length."""
    pairs = [corrupt(row, end, generator) for row in rows]
    return torch.from_numpy(np.stack([s for s, _ in pairs])), torch.from_numpy(np.stack([t for _, t in pairs]))


def continued(rows: np.ndarray, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (beginnings, the rest of each row): the prefix language modelling of Raffel et al. 2020."""
    place = int(generator.integers(BLOCK // 8, BLOCK // 2))
    return torch.from_numpy(rows[:, :place].copy()), torch.from_numpy(rows[:, place:].copy())


def pretrain(
    model: T5ForConditionalGeneration, stream: np.ndarray, epochs: int, learning_rate: float, end: int
) -> tuple[int, int]:
    """Span corruption and prefix language modelling in turn. Returns (steps, target tokens seen).

    AdamW, cosine schedule with 5 % warm-up, new spans and offsets per epoch.
    """
    generator = np.random.default_rng(0)
    rows = len(stream) // BLOCK - 1
    per_epoch = rows // BATCH
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=epochs * per_epoch, pct_start=0.05, div_factor=100,
        final_div_factor=100,
    )  # fmt: skip
    seen, start, losses = 0, time.time(), []
    model.train()
    for epoch in range(epochs):
        order, offset = generator.permutation(rows), int(generator.integers(BLOCK))
        for step in range(per_epoch):
            numbers = order[step * BATCH : (step + 1) * BATCH]
            blocks = np.stack([stream[offset + r * BLOCK : offset + (r + 1) * BLOCK] for r in numbers])
            source, target = corrupted(blocks, end, generator) if step % 2 else continued(blocks, generator)
            loss = model(input_ids=source, labels=target).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            seen += target.numel()
            losses.append(loss.item())
            if (step + 1) % (per_epoch // PIECES) == 0:
                mean = np.mean(losses[-per_epoch // PIECES :])
                print(f"epoch {epoch + 1}/{epochs}  loss {mean:.3f}  {time.time() - start:.0f} s", flush=True)
    return epochs * per_epoch, seen


@torch.no_grad()
def perplexity(model: T5ForConditionalGeneration, rows: np.ndarray, end: int) -> tuple[float, float, np.ndarray]:
    """Return (perplexity of all target tokens, of those that are words, all target tokens); spans of seed 1."""
    model.eval()
    generator = np.random.default_rng(1)
    losses, targets = [], []
    for first in range(0, len(rows), BATCH):
        source, target = corrupted(rows[first : first + BATCH], end, generator)
        logits = model(input_ids=source, labels=target).logits.float()
        losses.append(functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").numpy())
        targets.append(target.flatten().numpy())
    loss, token = np.concatenate(losses), np.concatenate(targets)
    return math.exp(loss.mean()), math.exp(loss[is_word(token, end)].mean()), token


@torch.no_grad()
def prefix_perplexity(model: T5ForConditionalGeneration, rows: np.ndarray) -> float:
    """Perplexity of the last two thirds of each row after the first third."""
    model.eval()
    nll, ids = 0.0, torch.from_numpy(rows)
    for part in ids.split(BATCH):
        nll += model(input_ids=part[:, : BLOCK // 3], labels=part[:, BLOCK // 3 :].contiguous()).loss.item() * len(part)
    return math.exp(nll / len(ids))


def is_word(tokens: np.ndarray, end: int) -> np.ndarray:
    """Neither a sentinel nor the end."""
    return (tokens < WORDS) & (tokens != end)


def unigram_perplexity(train: np.ndarray, tokens: np.ndarray) -> float:
    """Add-one unigram."""
    counts = np.bincount(train, minlength=WORDS + SENTINELS) + 1.0
    return float(np.exp(-np.log(counts / counts.sum())[tokens].mean()))


CARD = """---
license: cc-by-sa-3.0
language: en
datasets: [wikitext]
library_name: transformers
---
# tiny-t5

A T5 (version 1.1: gated GELU) of {parameters:,} parameters: {layers} layers on each side, d_model 128, 2 heads of 64,
d_ff 256, byte-level BPE of {words:,} tokens (that of tiny-llama) and {sentinels} sentinels, tied embeddings. Pretrained
so that examples and tests have a real encoder-decoder of {megabytes:.1f} MB. It is good for nothing else.

**Data.** WikiText-2 raw (Merity et al. 2016, CC BY-SA 3.0): the test split and the last two thirds of the validation
split, {train_tokens:,} tokens. Measured on the first third of the validation split ({held_out_tokens:,} tokens), which
neither the tokenizer nor the training has seen.

**Training.** {epochs} epochs of rows of {block} tokens, {batch} rows a step, {steps:,} steps, {seen:,} target tokens,
no dropout. In turn, both as in Raffel et al. 2020: span corruption ({noise:.0%} of the tokens, spans of {span:.0f} on
average), and prefix language modelling (an eighth to a half of the row is the source, the rest the target), so that
the decoder learns to write more than a few words.

| held-out targets | tokens | unigram of training targets, add one | tiny-t5 (fp16 weights) |
|---|---|---|---|
| span corruption, with sentinels and end | {tokens:,} | {unigram:.1f} | **{perplexity:.1f}** |
| span corruption, words only | {word_tokens:,} | {unigram_words:.1f} | **{perplexity_words:.1f}** |
| last two thirds of a row after the first | {prefix_tokens:,} | {unigram_prefix:.1f} | **{perplexity_prefix:.1f}** |

The numbers are perplexities. Sentinels and the end are easy.

Made by `examples/make_tiny_t5.py`, seed 0, torch {torch_version}.
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

    documents, held_out_documents = read_corpus(arguments.data)
    tokenizer = train_tokenizer(documents)
    words = train_bpe(documents)  # the same without sentinels or end token: encode adds that
    train, held_out = encode(words, documents), encode(words, held_out_documents)
    end = tokenizer.eos_token_id
    config = T5Config(
        vocab_size=WORDS + SENTINELS, d_model=128, d_kv=64, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", dropout_rate=0.0, tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=end, decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    steps, seen = pretrain(model, train, arguments.epochs, arguments.learning_rate, end)

    model = model.half()
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    saved = T5ForConditionalGeneration.from_pretrained(arguments.out, dtype=torch.float32)  # fp16 values, fp32 sums
    rows = held_out[: len(held_out) // BLOCK * BLOCK].reshape(-1, BLOCK)
    everything, only_words, tokens = perplexity(saved, rows, end)
    generator = np.random.default_rng(2)
    train_rows = train[: len(train) // BLOCK * BLOCK].reshape(-1, BLOCK)
    train_targets = corrupted(train_rows, end, generator)[1].flatten().numpy()
    word, train_word = is_word(tokens, end), is_word(train_targets, end)
    card = CARD.format(
        parameters=sum(p.numel() for p in saved.parameters()), layers=config.num_layers, words=WORDS, noise=NOISE,
        sentinels=SENTINELS, megabytes=(arguments.out / "model.safetensors").stat().st_size / 1e6, block=BLOCK,
        train_tokens=len(train), held_out_tokens=len(held_out), epochs=arguments.epochs, batch=BATCH, steps=steps,
        seen=seen, span=SPAN, tokens=len(tokens), word_tokens=int(word.sum()), perplexity=everything,
        perplexity_words=only_words, unigram=unigram_perplexity(train_targets, tokens),
        perplexity_prefix=prefix_perplexity(saved, rows), prefix_tokens=rows[:, BLOCK // 3 :].size,
        unigram_prefix=unigram_perplexity(train, rows[:, BLOCK // 3 :].flatten()),
        unigram_words=unigram_perplexity(train_targets[train_word], tokens[word]),
        torch_version=torch.__version__.split("+")[0],
    )  # fmt: skip
    (arguments.out / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
