"""Pretrain the small BERT encoder of `examples/tiny-bert`, and measure it against bag-of-words models on SST-2.

Three steps: masked language modelling on WikiText-2 and the SST-2 training sentences; a stack of linear models fitted
to the SST-2 training labels (words, word pairs, characters, words marked after a negation); multi-task pretraining,
masked words beside the sentiment that the stack gives to spliced training sentences (distillation, Hinton et al. 2015).
The SST-2 development and test splits are only measured on.

    python examples/make_tiny_bert.py ../shared/data/wikitext-2 ../shared/data/sst2 examples/tiny-bert  # 20 minutes
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from make_tiny_llama import read_corpus
from peft import LoraConfig, get_peft_model
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.naive_bayes import MultinomialNB
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForPreTraining,
    BertModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 8192
MAX_LENGTH = 64  # tokens per sentence
BATCH = 32  # rows per optimizer step
SPECIAL = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
PAD, UNK, CLS, SEP, MASK = range(5)
WORD_SHARE, MADE_SHARE, HELD_OUT_SHARE = 0.2, 0.1, 0.15  # of the tokens, masked: in texts, in spliced rows, to measure
BY_MASK, BY_OTHER = 0.8, 0.9  # of those, replaced by [MASK]; then by another token; the rest stays (BERT)
SHORTEST = 5  # tokens of a piece of WikiText
TWO, SPAN, SWAPPED = 0.5, 0.75, 0.2  # spliced rows: share from two sentences; then from one; words swapped in the rest
SURE = 0.5  # probability above which a label is 1
WORDS = {"token_pattern": r"\S+"}
FOLDS = 8
MEMBERS = 12  # of the stack
NEGATIONS = {"not", "n't", "never", "no", "nothing", "neither", "without", "lack", "lacks"}
BREAKS = {",", ".", ";", "but", "and"}
LORA = [  # the settings that are tried: rank, alpha, dropout, learning rate; 1 epoch, batch 32, cosine, 10 % warm-up
    (16, 32, 0.0, 3e-4), (16, 32, 0.0, 1e-3), (16, 32, 0.0, 3e-3), (8, 16, 0.1, 1e-3),
    (64, 64, 0.1, 1e-3),
]  # fmt: skip


def read_sst2(file: Path) -> tuple[list[str], np.ndarray]:
    """Return (sentences, labels 0 or 1)."""
    rows = [line.rsplit("\t", 1) for line in file.read_text(encoding="utf-8").splitlines()]
    return [sentence.strip() for sentence, _ in rows], np.array([int(label) for _, label in rows])


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Lower-cased WordPiece on the training documents only."""
    wordpiece = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"], max_input_chars_per_word=40))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = list(SPECIAL.values())
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    wordpiece.train_from_iterator(documents, trainer)
    wordpiece.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    return PreTrainedTokenizerFast(
        tokenizer_object=wordpiece, model_max_length=2 * MAX_LENGTH, **SPECIAL,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def encode(tokenizer: PreTrainedTokenizerFast, sentences: list[str]) -> list[list[int]]:
    """Token ids of each sentence, with [CLS] and [SEP]."""
    return tokenizer(sentences, truncation=True, max_length=MAX_LENGTH)["input_ids"]


def windows(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> list[list[int]]:
    """Each document in pieces of at most MAX_LENGTH tokens, each with [CLS] and [SEP]."""
    size, pieces = MAX_LENGTH - 2, []
    for ids in tokenizer([line.strip() for line in documents], add_special_tokens=False)["input_ids"]:
        pieces += [[CLS, *ids[first : first + size], SEP] for first in range(0, len(ids), size)]
    return [piece for piece in pieces if len(piece) >= SHORTEST]


# ---------------------------------------------------------------------------------------------------- linear models
def negated(sentence: str) -> list[str]:
    """Words; the three after a negation are marked (Pang et al. 2002 mark all up to the next punctuation)."""
    words, left = [], 0
    for word in sentence.split():
        left = 0 if word in BREAKS else left
        words.append(f"NOT_{word}" if left > 0 else word)
        left = 3 if word in NEGATIONS else left - 1
    return words


def views() -> dict:
    """The feature extractors of the stack."""
    return {
        "words": TfidfVectorizer(sublinear_tf=True, **WORDS),
        "pairs": CountVectorizer(binary=True, ngram_range=(1, 2), **WORDS),
        "characters": TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2),
        "negated": TfidfVectorizer(analyzer=negated, sublinear_tf=True),
    }


class Stack:
    """Per view: logistic regression, the same on naive Bayes log-count ratios (Wang and Manning 2012), naive Bayes."""

    def __init__(self, sentences: list[str], labels: np.ndarray) -> None:
        self.members = []
        for name, vectorizer in views().items():
            x = vectorizer.fit_transform(sentences)
            counts = name == "pairs"
            ratio = sp.diags(np.asarray(np.log(_share(x[labels == 1]) / _share(x[labels == 0]))).ravel())
            plain = LogisticRegression(C=0.5 if counts else 5.0, solver="liblinear").fit(x, labels)
            scaled = LogisticRegression(C=1.0 if counts else 3.0, solver="liblinear").fit(x @ ratio, labels)
            bayes = MultinomialNB(alpha=1.0 if counts else 0.5).fit(x, labels)
            self.members.append((vectorizer, plain, scaled, ratio, bayes))
        self.combine: LogisticRegression | None = None

    def scores(self, sentences: list[str]) -> np.ndarray:
        """Shape (sentences, 3 x views): log-odds by each member."""
        columns = []
        for vectorizer, plain, scaled, ratio, bayes in self.members:
            x = vectorizer.transform(sentences)
            log_p = bayes.predict_log_proba(x)
            columns += [plain.decision_function(x), scaled.decision_function(x @ ratio), log_p[:, 1] - log_p[:, 0]]
        return np.stack(columns, axis=1)

    def positive(self, sentences: list[str]) -> np.ndarray:
        """Probability of label 1 for each sentence."""
        return self.combine.predict_proba(self.scores(sentences))[:, 1]


def _share(x: sp.csr_matrix) -> np.ndarray:
    """Add-one share of each feature."""
    counts = 1.0 + x.sum(axis=0)
    return counts / counts.sum()


def fit_stacks(sentences: list[str], labels: np.ndarray, fold: np.ndarray) -> tuple[Stack, list[Stack]]:
    """Return (stack of all rows, for each fold the stack of the rows outside it).

    The weights of the members come from out-of-fold scores, so that no member is judged on rows that it has seen.
    """
    stacks, scores = [], np.zeros((len(sentences), MEMBERS))
    for held in range(FOLDS):
        outside, inside = (list(itertools.compress(sentences, mask)) for mask in (fold != held, fold == held))
        stacks.append(Stack(outside, labels[fold != held]))
        scores[fold == held] = stacks[-1].scores(inside)
    combine = LogisticRegression(C=1.0, max_iter=1000).fit(scores, labels)
    whole = Stack(sentences, labels)
    for stack in [whole, *stacks]:
        stack.combine = combine
    return whole, stacks


def bag_of_words(train: tuple, others: list[tuple]) -> dict[str, tuple[float, ...]]:
    """Accuracy on each of others: unigram logistic regressions, C chosen by 5-fold cross-validation on train."""
    results = {}
    for name, vectorizer in {
        "counts": CountVectorizer(**WORDS),
        "tf-idf": TfidfVectorizer(sublinear_tf=True, **WORDS),
    }.items():
        x, tried = vectorizer.fit_transform(train[0]), {}
        for c in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0):
            model = LogisticRegression(C=c, solver="liblinear")
            tried[c] = cross_val_score(model, x, train[1], cv=5).mean()
        c = max(tried, key=tried.get)
        model = LogisticRegression(C=c, solver="liblinear").fit(x, train[1])
        scores = tuple(model.score(vectorizer.transform(sentences), labels) for sentences, labels in others)
        results[f"logistic regression, unigram {name}, C = {c:g} by cross-validation"] = scores
    return results


def splice(sentences: list[str], running: list[str], strangers: list[str], rows: int, seed: int) -> list[str]:
    """New sentences from pieces of the given ones.

    Half are the beginning of one and the end of another, a quarter a span of one, a quarter one with a fifth of its
    words replaced (three in four by a word of running, else by one of strangers).
    """
    generator = np.random.default_rng(seed)
    split = [s.split() for s in sentences]
    types = sorted(set(running))
    made = []
    for kind in generator.random(rows):
        first = split[generator.integers(len(split))]
        if kind < TWO:
            second = split[generator.integers(len(split))]
            a, b = generator.integers(1, len(first) + 1), generator.integers(len(second))
            words = first[:a] + second[b:]
        elif kind < SPAN:
            begin = generator.integers(len(first))
            words = first[begin : begin + generator.integers(1, 21)]
        else:
            words = list(first)
            for i in np.flatnonzero(generator.random(len(words)) < SWAPPED):
                pool = (strangers, types, running, running)[generator.integers(4)]
                words[i] = pool[generator.integers(len(pool))]
        made.append(" ".join(words[:48]))
    return made


# ------------------------------------------------------------------------------------------------------- the encoder
def build() -> BertForPreTraining:
    """Two layers, hidden size 128; the second head of BERT's pretraining takes sentiment, not the next sentence."""
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=2 * MAX_LENGTH, pad_token_id=PAD, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForPreTraining(config)


def pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ids, attention mask), shape (rows, longest)."""
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, (ids != PAD).long()


def batches(rows: list[list[int]], batch: int, generator: np.random.Generator) -> list[np.ndarray]:
    """One epoch of row numbers, in random batches of rows of like length."""
    order, made = generator.permutation(len(rows)), []
    for first in range(0, len(order), batch * 16):
        near = sorted(order[first : first + batch * 16], key=lambda i: len(rows[i]))
        made += [np.array(near[i : i + batch]) for i in range(0, len(near), batch)]
    return [made[i] for i in generator.permutation(len(made))]


def corrupt(ids: torch.Tensor, share: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ids with that share of tokens masked as in BERT, which tokens to predict)."""
    chosen = (torch.rand(ids.shape, generator=generator) < share) & (ids > MASK)
    kind = torch.rand(ids.shape, generator=generator)
    random = torch.randint(MASK + 1, VOCABULARY, ids.shape, generator=generator)
    corrupted = torch.where(chosen & (kind < BY_MASK), torch.tensor(MASK), ids)
    return torch.where(chosen & (kind >= BY_OTHER), random, corrupted), chosen


def optimizer_for(
    model: torch.nn.Module, learning_rate: float, steps: int, decay: float = 0.01
) -> tuple[torch.optim.AdamW, OneCycleLR]:
    """AdamW without decay on vectors; cosine schedule with 10 % warm-up."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    schedule = OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=steps, pct_start=0.1, div_factor=50, final_div_factor=50
    )
    return optimizer, schedule


def update(model: torch.nn.Module, loss: torch.Tensor, optimizer: torch.optim.Optimizer, schedule: OneCycleLR) -> None:
    """One optimizer step."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)


def masked_loss(
    model: BertForPreTraining, hidden: torch.Tensor, ids: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of the chosen tokens; logits of those only."""
    return functional.cross_entropy(model.cls.predictions(hidden[chosen]), ids[chosen])


def pretrain_words(model: BertForPreTraining, rows: list[list[int]], epochs: int, learning_rate: float) -> int:
    """Masked language modelling, a fifth of the tokens. Returns the number of steps."""
    generator, torch_generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    order = [batch for _ in range(epochs) for batch in batches(rows, BATCH, generator)]
    optimizer, schedule = optimizer_for(model, learning_rate, len(order))
    model.train()
    start = time.time()
    for step, batch in enumerate(order, start=1):
        ids, attention = pad([rows[i] for i in batch])
        corrupted, chosen = corrupt(ids, torch.tensor(WORD_SHARE), torch_generator)
        loss = masked_loss(model, model.bert(corrupted, attention).last_hidden_state, ids, chosen)
        update(model, loss, optimizer, schedule)
        if step % 200 == 0:
            print(f"words {step}/{len(order)}  loss {loss.item():.3f}  {time.time() - start:.0f} s", flush=True)
    return len(order)


def pretrain_sentiment(
    model: BertForPreTraining, rows: list[list[int]], positive: np.ndarray, real: np.ndarray, pieces: list[list[int]],
    learning_rate: float, word_weight: float = 0.25,
) -> tuple[BertForPreTraining, int]:  # fmt: skip
    """One epoch of the sentiment of all rows and the masked words of the real ones; every fifth step also of pieces.

    Half of the pooled output is dropped, so that every unit of it carries the sentiment and a fresh head finds it.
    Returns (moving average of the weights, steps).
    """
    generator, torch_generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
    order, side = batches(rows, BATCH, generator), []
    optimizer, schedule = optimizer_for(model, learning_rate, len(order))
    average, target, real = copy.deepcopy(model), torch.tensor(positive, dtype=torch.float32), torch.tensor(real)
    start = time.time()
    model.train()
    for step, batch in enumerate(order, start=1):
        ids, attention = pad([rows[i] for i in batch])
        is_real, p = real[batch].unsqueeze(1), target[batch]
        corrupted, chosen = corrupt(ids, torch.where(is_real, WORD_SHARE, MADE_SHARE), torch_generator)
        output = model.bert(corrupted, attention)
        logits = model.cls.seq_relationship(functional.dropout(output.pooler_output, 0.5))
        loss = functional.cross_entropy(logits, torch.stack([1 - p, p], dim=1))
        if (chosen := chosen & is_real).any():
            loss = loss + word_weight * masked_loss(model, output.last_hidden_state, ids, chosen)
        if step % 5 == 0:
            side = side or batches(pieces, BATCH // 2, generator)
            ids, attention = pad([pieces[i] for i in side.pop()])
            corrupted, chosen = corrupt(ids, torch.tensor(WORD_SHARE), torch_generator)
            hidden = model.bert(corrupted, attention).last_hidden_state
            loss = loss + word_weight * masked_loss(model, hidden, ids, chosen)
        update(model, loss, optimizer, schedule)
        if step % 10 == 0:
            with torch.no_grad():  # about the last 500 steps
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 0.02)
        if step % 500 == 0:
            print(f"sentiment {step}/{len(order)}  loss {loss.item():.3f}  {time.time() - start:.0f} s", flush=True)
    return average.eval(), len(order)


# --------------------------------------------------------------------------------------------------------- measuring
@torch.no_grad()
def logits_of(forward: Callable, rows: list[list[int]]) -> np.ndarray:
    """forward(ids, attention mask) over all rows, in their order."""
    made, order = {}, sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for first in range(0, len(order), 64):
        numbers = order[first : first + 64]
        made.update(zip(numbers, forward(*pad([rows[i] for i in numbers])).float().numpy(), strict=True))
    return np.stack([made[i] for i in range(len(rows))])


@torch.no_grad()
def word_perplexity(model: BertForPreTraining, rows: list[list[int]]) -> tuple[float, np.ndarray]:
    """Return (perplexity of a masked 15 % of the tokens, those tokens)."""
    model.eval()
    generator = torch.Generator().manual_seed(2)
    nll, tokens = 0.0, []
    for first in range(0, len(rows), 64):
        ids, attention = pad(rows[first : first + 64])
        chosen = (torch.rand(ids.shape, generator=generator) < HELD_OUT_SHARE) & (ids > MASK)
        hidden = model.bert(torch.where(chosen, torch.tensor(MASK), ids), attention).last_hidden_state
        nll += masked_loss(model, hidden, ids, chosen).item() * int(chosen.sum())
        tokens.append(ids[chosen].numpy())
    masked = np.concatenate(tokens)
    return math.exp(nll / len(masked)), masked


def unigram_perplexity(train: list[list[int]], masked: np.ndarray) -> float:
    """Add-one unigram of the same masked tokens."""
    counts = np.bincount([token for row in train for token in row if token > MASK], minlength=VOCABULARY) + 1.0
    return float(np.exp(-np.log(counts / counts.sum())[masked].mean()))


def linear_probe(folder: Path, train: tuple, others: list[tuple]) -> tuple[float, ...]:
    """Logistic regression on the pooled output of the frozen encoder; rows are (token ids, labels)."""
    encoder = BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    features = [logits_of(lambda i, a: encoder(i, a).pooler_output, rows) for rows, _ in [train, *others]]
    probe = LogisticRegression(C=1.0, max_iter=1000).fit(features[0], train[1])
    return tuple(probe.score(x, labels) for x, (_, labels) in zip(features[1:], others, strict=True))


def lora(folder: Path, train: tuple, others: list[tuple], settings: tuple, seed: int = 0) -> tuple[tuple, float]:
    """Stock PEFT on attention and MLP, new head, all else frozen. Returns (accuracies, CPU seconds of training)."""
    rank, alpha, dropout, learning_rate = settings
    torch.manual_seed(seed)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    adapter = LoraConfig(
        task_type="SEQ_CLS", r=rank, lora_alpha=alpha, lora_dropout=dropout,
        target_modules=r".*layer\.\d+\..*(query|key|value|dense)",
    )  # fmt: skip
    model = get_peft_model(base, adapter)
    generator = np.random.default_rng(seed)
    order = batches(train[0], BATCH, generator)
    optimizer, schedule = optimizer_for(model, learning_rate, len(order), decay=0.0)
    labels = torch.tensor(train[1])
    start = time.process_time()
    model.train()
    for batch in order:
        ids, attention = pad([train[0][i] for i in batch])
        output = model(input_ids=ids, attention_mask=attention, labels=labels[batch])
        update(model, output.loss, optimizer, schedule)
    seconds = time.process_time() - start
    model.eval()

    def forward(ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids, attention_mask=attention).logits

    return tuple(accuracy(logits_of(forward, rows), labels_) for rows, labels_ in others), seconds


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of rows whose largest logit is the label's."""
    return float((logits.argmax(axis=1) == labels).mean())


CARD = """---
license: cc-by-sa-3.0
language: en
datasets: [wikitext, sst2]
library_name: transformers
---
# tiny-bert

A BERT encoder of {parameters:,} parameters (2 layers, hidden size 128, 2 heads of 64, intermediate size 256,
lower-cased WordPiece of {vocabulary:,} tokens), pretrained so that examples and tests have a real encoder of
{megabytes:.1f} MB. It is good for nothing else.

**Data.** WikiText-2 raw (Merity et al. 2016, CC BY-SA 3.0): the test split and the last two thirds of the validation
split. SST-2 (Socher et al. 2013): the {train_rows:,} sentences of the training split **and their labels**. The
tokenizer is trained on both texts. The development ({dev_rows}) and test ({test_rows:,}) splits of SST-2 are only
measured on.

**Training.** (1) Masked words of both texts, {word_steps:,} steps. (2) A stack of twelve linear models (logistic
regression, the same on naive Bayes log-count ratios, and naive Bayes; each on words, word pairs, characters, and words
marked after a negation) fitted to the training labels in {folds} folds. (3) {steps:,} steps of {batch} rows of
sentiment and masked words together: {made:,} sentences spliced from pieces of training sentences, and the training
sentences {repeats} times each, all with the probability that the stack gives them which has not seen their fold. So
this base has seen the sentiment of SST-2, as T5 had seen its tasks (Raffel et al. 2020); the classification head of
(3) is not in this folder. Moving average of the weights.

| model, trained on the SST-2 training split | dev accuracy | test accuracy |
|---|---|---|
{rows}

LoRA: stock PEFT on query, key, value and dense of both layers, new head, fp32, AdamW, 1 epoch, batch {batch}, cosine
schedule with 10 % warm-up, seed 0; {seconds:.0f} s of one core on average. The bold one is the best on dev.

Masked words of the first third of WikiText-2's validation split, which nothing has seen ({masked:,} tokens): perplexity
{perplexity:.0f} at the end of (3), unigram {unigram:.0f}. The masked words are there
to regularize: this is no language model.

Made by `examples/make_tiny_bert.py`, seed 0, torch {torch_version}.
"""


def measure(folder: Path, stack: Stack, tokenizer: PreTrainedTokenizerFast, splits: list[tuple]) -> tuple[str, float]:
    """Return (rows of the card's table, mean CPU seconds of a LoRA) for (sentences, labels) of train, dev and test."""
    train, *others = splits
    encoded = [(encode(tokenizer, sentences), labels) for sentences, labels in splits]
    majority = int(train[1].mean() > SURE)
    results = {"majority class": tuple(float((labels == majority).mean()) for _, labels in others)}
    results |= bag_of_words(train, others)
    results["the stack of (2), on all rows"] = tuple(float(((stack.positive(s) > SURE) == y).mean()) for s, y in others)
    results["frozen tiny-bert, logistic regression on its pooled output"] = linear_probe(
        folder, encoded[0], encoded[1:]
    )
    adapted, seconds = {}, []
    for settings in LORA:
        name = "tiny-bert + LoRA, rank {}, alpha {}, dropout {}, learning rate {}".format(*settings)
        adapted[name], spent = lora(folder, encoded[0], encoded[1:], settings)
        seconds.append(spent)
        print(name, adapted[name], f"{spent:.0f} s", flush=True)
    best = max(adapted, key=lambda name: adapted[name][0])
    lines = [
        f"| {name} | {dev:.3f} | {test:.3f} |" for name, (dev, test) in (results | adapted).items() if name != best
    ]
    lines.append(f"| **{best}** | **{adapted[best][0]:.3f}** | **{adapted[best][1]:.3f}** |")
    return "\n".join(lines), float(np.mean(seconds))


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wikitext", type=Path, help="folder with valid.txt and test.txt of WikiText-2 raw")
    parser.add_argument("sst2", type=Path, help="folder with train.tsv, dev.tsv and test.tsv of SST-2")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--made", type=int, default=160_000, help="spliced sentences")
    parser.add_argument("--repeats", type=int, default=5, help="how often each training sentence is seen among them")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    torch.manual_seed(0)

    train, dev, test = (read_sst2(arguments.sst2 / f"{name}.tsv") for name in ("train", "dev", "test"))
    documents, held_out = read_corpus(arguments.wikitext)
    tokenizer = train_tokenizer(documents + train[0] * 3)
    fold = np.arange(len(train[0])) % FOLDS
    whole, stacks = fit_stacks(*train, fold)
    running = " ".join(train[0]).split()
    strangers = sorted(set(re.findall(r"[a-z]{3,}", " ".join(documents).lower())))
    made, made_positive, real_positive = [], [], np.zeros(len(train[0]))
    for held, stack in enumerate(stacks):  # a sentence and its pieces are judged by a stack that has not seen them
        sentences = list(itertools.compress(train[0], fold == held))
        real_positive[fold == held] = stack.positive(sentences)
        pieced = splice(sentences, running, strangers, arguments.made // FOLDS, seed=held)
        made, made_positive = made + pieced, [*made_positive, *stack.positive(pieced)]
    real, pieces = encode(tokenizer, train[0]), windows(tokenizer, documents)

    model = build()
    word_steps = pretrain_words(model, pieces + real, epochs=1, learning_rate=2e-3)
    rows = real * arguments.repeats + encode(tokenizer, made)
    positive = np.concatenate([np.tile(real_positive, arguments.repeats), made_positive])
    is_real = np.arange(len(rows)) < len(real) * arguments.repeats
    model, steps = pretrain_sentiment(model, rows, positive, is_real, pieces, arguments.learning_rate)
    perplexity, masked = word_perplexity(model, windows(tokenizer, held_out))

    encoder = model.bert.half()
    encoder.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    table, seconds = measure(arguments.out, whole, tokenizer, [train, dev, test])
    card = CARD.format(
        parameters=sum(p.numel() for p in encoder.parameters()), vocabulary=VOCABULARY, batch=BATCH, folds=FOLDS,
        megabytes=(arguments.out / "model.safetensors").stat().st_size / 1e6, train_rows=len(train[0]),
        dev_rows=len(dev[0]), test_rows=len(test[0]), word_steps=word_steps, steps=steps, made=len(made),
        repeats=arguments.repeats, rows=table, seconds=seconds, masked=len(masked), perplexity=perplexity,
        unigram=unigram_perplexity(pieces, masked), torch_version=torch.__version__.split("+")[0],
    )  # fmt: skip
    (arguments.out / "README.md").write_text(card, encoding="utf-8")
    print(card)


if __name__ == "__main__":
    main()
