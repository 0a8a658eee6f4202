"""What is wrong with data, labels, tokenizers and objectives is said before a trial starts, with key, value and fix.

The numbers are rows of the table of bad inputs in the design notes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from architectures import build
from support import TINY_LLAMA
from transformers import AutoTokenizer

from lorafront.search.paths import RootPaths
from lorafront.search.preflight import check
from lorafront.search.prepared import Prepared
from lorafront.search.search_file import parse_search
from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.frozen_base import BaseCache
from lorafront.trainables.peft_session import open_session

GOOD = {"question": "What is it?", "answer": "A test."}
QA = {"format": "question_answer", "max_length": 64}
OWN = """
def score(model, tokenizer):
    return 1.0

def alone(model):
    return 1.0

NUMBER = 7
"""


@pytest.fixture
def checked(tmp_path: Path):
    """Check a search over 40 good rows; keywords change its sections."""
    (tmp_path / "good.jsonl").write_text("\n".join(json.dumps(GOOD) for _ in range(40)))
    (tmp_path / "own_metrics.py").write_text(OWN)

    def run(**sections: Any) -> Prepared:
        data = {"path": "good.jsonl", **QA, **sections.pop("data", {})}
        base = {"name": "x", "model": str(TINY_LLAMA), "training": {"rows": 16, "batch_size": 4}}
        search = parse_search({**base, **sections, "data": data})
        return check(search, RootPaths(tmp_path / "runs"), tmp_path)

    return run


def rows(*texts: str | dict[str, Any]) -> bytes:
    return "\n".join(text if isinstance(text, str) else json.dumps(text) for text in texts).encode()


def test_peak_memory_is_known_before_a_trial_runs(checked) -> None:
    """On a CPU the prediction is what the session then measures, to the byte, and a limit is checked against it."""
    space = {"rank": [4, 64], "modules": "attention", "quantization": ["nf4", "bf16"], "bias": "none", "dropout": 0.0}
    loose = checked(space=space, constraints={"peak_vram_gb": "<= 9"})
    loose.store()
    peaks = []
    for rank, quantization in ((4, "nf4"), (64, "bf16")):
        chosen = loose.configuration(loose.starts.points[0].params).model_copy(
            update={"rank": rank, "quantization": quantization}
        )
        session = open_session(loose.trial(chosen), BaseCache())
        peaks.append(session.memory.metrics()["peak_vram_gb"])
        assert loose.known_before(chosen)["peak_vram_gb"] == peaks[-1]
        session.close()
    assert checked(space=space, constraints={"peak_vram_gb": f"<= {peaks[0]!r}"}).breaks(chosen)
    with pytest.raises(InvalidInput, match="no configuration of the space keeps the limits"):
        checked(space=space, constraints={"peak_vram_gb": "<= 0.001"})


LABELLED = {"format": "text_label"}
SEQ_CLS = {"task": "seq_cls", "objectives": ["accuracy", "peak_vram_gb"]}
BAD_DATA: list[tuple[str, str, bytes | None, dict[str, Any], str, str]] = [
    ("34 missing", "no.jsonl", None, {}, "data.path", "no.jsonl does not exist (current folder: "),
    ("35 empty", "a.jsonl", b"", {}, "data.path", "has 0 rows"),
    ("36 one row", "a.jsonl", rows(GOOD), {}, "data", "training rows"),
    ("37 column", "a.jsonl", rows({"questions": "a", "answer": "b"}), {}, "data.path", "Did you mean 'questions'?"),
    ("38 not UTF-8", "a.jsonl", b'{"question": "\xe9"}', {}, "data.path", "byte 0xe9 at offset 14"),
    ("39 malformed", "a.jsonl", rows(GOOD, '{"question": '), {}, "data.path", "line 2, column 14: malformed JSON"),
    ("40 number", "a.jsonl", rows(GOOD, {**GOOD, "answer": 5}), {}, "data.path", "row 2 of"),
    ("40 null", "a.jsonl", rows(GOOD, {**GOOD, "answer": None}), {}, "data.path", "must be text (got None)"),
    ("41 NUL", "a.txt", b"abc\0def", {"format": "text"}, "data.path", "NUL byte at offset 3"),
    ("42 no target", "a.jsonl", rows(*[{**GOOD, "question": "why " * 99}] * 9), {}, "data", "0 training rows"),
    ("46 zero", "good.jsonl", None, {"max_length": 0}, "data.max_length", "must be >= 2 (got 0)"),
    ("46 negative", "good.jsonl", None, {"max_length": -1}, "data.max_length", "must be >= 2 (got -1)"),
    ("45 positions", "good.jsonl", None, {"max_length": 600}, "data.max_length", "600 is more than the 512 positions"),
    ("format", "good.jsonl", None, {"format": "alpacca"}, "data.format", "Did you mean 'alpaca'?"),
    ("second set", "good.jsonl", None, {"also_evaluate": {"general": "no.txt"}}, "data.also_evaluate.general.path",
     "no.txt does not exist"),
    ("second name", "good.jsonl", None, {"also_evaluate": {"A b": "good.jsonl"}}, "data.also_evaluate.A b", "pattern"),
    ("second column", "good.jsonl", None, {"also_evaluate": {"general": {"path": "good.jsonl", "format": "alpaca"}}},
     "data.also_evaluate.general.path", "needs columns 'instruction', 'output'"),
    ("second key", "good.jsonl", None, {"also_evaluate": {"general": {"path": "good.jsonl", "fromat": "text"}}},
     "data.also_evaluate.general.fromat", "unknown key. Did you mean 'format'?"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "options", "place", "words"), [case[1:] for case in BAD_DATA], ids=[c[0] for c in BAD_DATA]
)
def test_bad_data_is_refused(
    checked, tmp_path: Path, name: str, content: bytes | None, options: dict[str, Any], place: str, words: str
) -> None:
    """Each with the key that names it, what was found, and what would do."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        checked(data={"path": name, **options})
    found = [str(problem) for problem in caught.value.problems]
    assert any(text.startswith(f"{place}: ") and words in text for text in found), found


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1] * 40, "all 40 rows have the same label '1'; there is nothing to learn"),
        (list(range(40)), "40 different labels in 40 rows: is that the column of the labels?"),
        ([0, 1] * 19 + [1, 0.5], "row 40 of"),
        ([0, 1] * 19 + [1, None], "must be a label: text or a whole number (got None)"),
    ],
    ids=["one", "as many as rows", "a fraction", "null"],
)
def test_bad_labels_are_refused(checked, tmp_path: Path, labels: list[Any], words: str) -> None:
    """Labels that nothing can be learnt from."""
    (tmp_path / "a.jsonl").write_bytes(rows(*({"text": f"text {i}", "label": v} for i, v in enumerate(labels))))
    with pytest.raises(InvalidInput) as caught:
        checked(**SEQ_CLS, data={"path": "a.jsonl", **LABELLED})
    assert [str(problem).startswith("data.path: ") and words in str(problem) for problem in caught.value.problems] == [
        True
    ]


@pytest.fixture
def copied(tmp_path: Path):
    """A Llama of 2,048 tokens whose tokenizer a test changes."""

    def run(change: Any) -> str:
        folder = tmp_path / "model"
        build("llama", folder)
        tokenizer = AutoTokenizer.from_pretrained(TINY_LLAMA)
        change(tokenizer)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return run


def test_a_tokenizer_pads_with_its_end_token_and_says_so(checked, copied) -> None:
    """Row 43: no padding token is no error where there is an end token."""
    prepared = checked(model=copied(lambda tokenizer: setattr(tokenizer, "pad_token", None)))
    assert prepared.tokens.pad_id == AutoTokenizer.from_pretrained(TINY_LLAMA).eos_token_id
    assert any("no padding token; its end token pads" in note for note in prepared.notes)


def test_a_tokenizer_without_pad_and_end_is_refused(checked, copied) -> None:
    """Row 43: with neither there is nothing to fill a batch with."""

    def change(tokenizer: Any) -> None:
        tokenizer.pad_token = tokenizer.eos_token = None

    with pytest.raises(InvalidInput, match=r"model: the tokenizer of .* has neither a padding nor an end token"):
        checked(model=copied(change))


def test_a_tokenizer_of_another_model_is_refused(checked, copied) -> None:
    """Row 44: more tokens than the embedding has rows would be an index error in the middle of a trial."""
    model = copied(lambda tokenizer: tokenizer.add_tokens([f"<extra {i}>" for i in range(7)]))
    with pytest.raises(InvalidInput, match="model: the tokenizer has 2055 tokens, the model's embedding 2048"):
        checked(model=model)


BAD_OBJECTIVES: list[tuple[dict[str, Any], str, str]] = [
    ({"objectives": ["perplexity"]}, "objectives", "at least 2"),
    ({"objectives": ["perplexity", "acuracy"]}, "objectives[1]", "Did you mean 'accuracy'?"),
    ({"objectives": ["perplexity", "perplexity"]}, "objectives", "each objective once; repeated: perplexity"),
    ({"objectives": ["accuracy", "peak_vram_gb"]}, "objectives[0]", "does not measure accuracy, but perplexity"),
    ({"objectives": ["perplexity", "eval_general_loss"]}, "objectives[1]", "unknown objective 'eval_general_loss'"),
    ({"objectives": ["perplexity", "own_metrics:scor"]}, "objectives[1]", "has no 'scor'. Did you mean 'score'?"),
    ({"objectives": ["perplexity", "no_such:score"]}, "objectives[1]", "no_such cannot be imported"),
    ({"objectives": ["perplexity", "own_metrics:alone"]}, "objectives[1]", "must be a function of (model, tokenizer)"),
    ({"objectives": ["perplexity", "own_metrics:NUMBER"]}, "objectives[1]", "must be a function of (model, tokenizer)"),
    ({"objectives": ["perplexity", {"function": "score"}]}, "objectives[1].function",
     "must be module:function (got 'score')"),
    ({"objectives": ["perplexity", {"function": "a:b", "direction": "up"}]}, "objectives[1].direction",
     "must be one of"),
    ({"objectives": ["perplexity", {"function": "a:b", "directoin": "minimize"}]}, "objectives[1].directoin",
     "Did you mean 'direction'?"),
    ({"objectives": ["perplexity", {"function": "own_metrics:score", "name": "peak_vram_gb"}]}, "objectives[1].name",
     "'peak_vram_gb' is the name of something that is measured or set already"),
    ({"objectives": ["perplexity", {"function": "own_metrics:score", "name": "base_perplexity"}]}, "objectives[1].name",
     "is measured or set already"),
    ({"objectives": ["perplexity", {"function": "own_metrics:score", "name": "rank"}]}, "objectives[1].name",
     "is measured or set already"),
    ({"objectives": ["perplexity", "peak_vram_gb"], "constraints": {"score": "<= 1"}}, "constraints.score",
     "unknown objective 'score'"),
    ({"objectives": ["perplexity", "tokens_per_second"], "resources": {"gpus_per_trial": 0.5}}, "",
     "tokens_per_second is only honest on a device of its own"),
]  # fmt: skip


@pytest.mark.parametrize(("sections", "place", "words"), BAD_OBJECTIVES)
def test_bad_objectives_are_refused(checked, sections: dict[str, Any], place: str, words: str) -> None:
    """Unknown, twice, not measured by the task, or a function that cannot be called."""
    with pytest.raises(InvalidInput) as caught:
        checked(**sections)
    found = [str(problem) for problem in caught.value.problems]
    assert any(text.startswith(f"{place}: " if place else "") and words in text for text in found), found


def test_one_mistake_is_one_message(checked) -> None:
    """Names that a wrong section would have defined are not called unknown."""
    with pytest.raises(InvalidInput) as caught:
        checked(
            data={"format": "txet", "also_evaluate": {"general": "good.jsonl"}},
            objectives=["perplexity", "eval_general_loss"],
            constraints={"eval_general_loss": "<= -0.5"},
        )
    assert [problem.path for problem in caught.value.problems] == [("data", "format")]


def test_objectives_of_every_kind_pass(checked) -> None:
    """A quality, a cost, the loss on a second set and a function, with a limit on the function."""
    prepared = checked(
        data={"also_evaluate": {"general": "good.jsonl"}},
        objectives=["perplexity", "adapter_mb", "eval_general_loss", "own_metrics:score"],
        constraints={"score": ">= 0.5", "eval_general_loss": "<= 9"},
    )
    found = [(objective.name, objective.direction) for objective in prepared.search.objective_list]
    assert found[2:] == [("eval_general_loss", "minimize"), ("score", "minimize")]
    assert len(prepared.tokens.also["general"]) == 40
    assert prepared.trial(next(iter([_any(prepared)]))).functions == {"score": "own_metrics:score"}


def _any(prepared: Prepared) -> Any:
    from support import lora

    return lora(modules=next(iter(prepared.resolved)))


def test_equal_choices_are_one(checked, tmp_path: Path) -> None:
    """Module sets of the same modules, and biases that train the same, are folded and said so; the size counts once."""
    model = tmp_path / "qwen"
    build("qwen2", model)  # biases in query, key and value only
    AutoTokenizer.from_pretrained(TINY_LLAMA).save_pretrained(model)
    space = {
        "rank": [4, 8],
        "modules": ["query+value", "output", "mlp+attention", "all-linear"],
        "bias": ["none", "lora_only", "all"],
        "quantization": "bf16",
        "dropout": 0.0,
        "alpha": 8,
    }
    prepared = checked(model=str(model), space=space)
    assert prepared.search.space.modules == ["query+value", "output", "attention+mlp"]
    assert any("modules attention+mlp and all-linear are the same on this model" in note for note in prepared.notes)
    # query+value: three; output has no bias of its own: none, all; attention+mlp has them all: none, lora_only.
    assert prepared.size() == (2 * (3 + 2 + 2), ["learning_rate"])
    from support import lora

    assert prepared.canonical(lora(modules="output", bias="lora_only")).bias == "none"
    assert prepared.canonical(lora(modules="attention+mlp", bias="all")).bias == "lora_only"
    assert prepared.canonical(lora(modules="query+value", bias="all")).bias == "all"
