"""Prompts in the words of a format: token for token as training rows were put."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.config import ModelConfig
from lorafront.trainables.formats import FORMATS, RowFormat, text
from lorafront.trainables.models import load_tokenizer
from lorafront.trainables.prompts import Wording
from lorafront.trainables.task import Encoding, task_named

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two and two?"}]
ROWS: dict[str, dict[str, Any]] = {
    "prompt_completion": {"prompt": "Two and two?", "completion": "4"},
    "question_answer": {"question": "Two and two?", "answer": "4"},
    "alpaca": {"instruction": "Add.", "input": "2, 2", "output": "4"},
    "messages": {"messages": [*TURNS, {"role": "assistant", "content": "4"}]},
}


@pytest.fixture
def tokenizer(tiny_model: ModelConfig) -> PreTrainedTokenizerBase:
    found = load_tokenizer(tiny_model)
    found.chat_template = CHATML
    return found


def wording(form: str, tokenizer: PreTrainedTokenizerBase, task: str = "causal_lm", **more: Any) -> Wording:
    return Wording(FORMATS[form], task_named(task), tokenizer, 256, **more)


def without_answer(row: dict[str, Any]) -> dict[str, Any]:
    last = list(row)[-1]
    return {"messages": row["messages"][:-1]} if last == "messages" else {k: v for k, v in row.items() if k != last}


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("task", ["causal_lm", "seq_2_seq_lm"])
def test_a_row_is_asked_as_it_was_trained_on(form: str, task: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Its tokens up to the answer, whether the answer is there or not; an evaluation row, encoded, asks the same."""
    own, row = wording(form, tokenizer, task), ROWS[form]
    pair = FORMATS[form].split(row, tokenizer)
    encoding = Encoding(256, framed=FORMATS[form].framed)
    ((ids, start),) = task_named(task).encode([pair], tokenizer, encoding)
    answered, asked = own.prompts([row, without_answer(row)], "rows.jsonl")
    assert list(answered.ids) == list(asked.ids) == ids[:start]
    assert own.tokens(ids, start).ids == asked.ids
    assert asked.answer is None
    assert answered.answer == own.tokens(ids, start).answer
    assert answered.answer is not None
    assert answered.answer.startswith("4")


@pytest.mark.parametrize("form", ROWS)
def test_a_plain_text_stands_where_the_question_does(form: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """In the template of the format; people see their own words."""
    (prompt,) = wording(form, tokenizer).prompts([{"prompt": "Two and two?"}], "--prompt")
    assert prompt.shown == "Two and two?"
    assert prompt.answer is None
    words = {
        "prompt_completion": "Two and two?",
        "question_answer": "Question: Two and two?\nAnswer: ",
        "alpaca": FORMATS["alpaca"].split({"instruction": "Two and two?", "output": ""}, tokenizer)[0],
        "messages": "<|im_start|>user\nTwo and two?<|im_end|>\n<|im_start|>assistant\n",
    }
    assert tokenizer.decode(prompt.ids) == words[form]


def test_plain_text_is_continued(tokenizer: PreTrainedTokenizerBase) -> None:
    """Without an end token behind it; of a block that was trained on as a whole the second half is the answer."""
    own = wording("text", tokenizer)
    ids = tokenizer("It was a dark night.", add_special_tokens=False)["input_ids"]
    for row in ({"text": "It was a dark night."}, {"prompt": "It was a dark night."}):
        (prompt,) = own.prompts([row], "p.jsonl")
        assert (list(prompt.ids), prompt.answer) == (ids, None)
    block = own.tokens(ids, 0)
    assert len(block.ids) == len(ids) // 2
    assert block.shown + str(block.answer) == "It was a dark night."


def test_a_label_is_no_part_of_the_question(tokenizer: PreTrainedTokenizerBase) -> None:
    """And stands beside it where a row has one."""
    own = wording("text_label", tokenizer, "seq_cls", labels=("bad", "good"))
    one, other, third = own.prompts([{"text": "fine", "label": "good"}, {"text": "fine"}, {"prompt": "fine"}], "p")
    assert one.ids == other.ids == third.ids == own.tokens(one.ids, 1).ids
    assert [one.answer, other.answer, third.answer, own.tokens(one.ids, 1).answer] == ["good", None, None, "good"]


def test_the_datas_own_names_of_columns_are_known(tokenizer: PreTrainedTokenizerBase) -> None:
    """As in the rows that it trained on."""
    own = wording("question_answer", tokenizer, columns=(("question", "q"), ("answer", "a")))
    first, second = own.prompts([{"q": "Two?", "a": "2"}, {"question": "Two?"}], "p.jsonl")
    assert first.ids == second.ids
    assert (first.answer, second.answer) == ("2", None)


def test_a_format_of_the_users_own_says_where_a_text_goes_or_takes_rows(tokenizer: PreTrainedTokenizerBase) -> None:
    """Without `ask` a plain text is refused with the columns that it needs."""
    form = RowFormat({"doc": text, "code": text}, lambda row, _: (f"# {row['doc']}\n", row["code"]))
    own = Wording(form, task_named("causal_lm"), tokenizer, 64)
    (row,) = own.prompts([{"doc": "adds", "code": "a + b"}], "p.jsonl")
    with pytest.raises(InvalidInput, match=r"--prompt: .*RowFormat\.ask.*JSON lines with its columns: doc, code"):
        own.prompts([{"prompt": "adds"}], "--prompt")
    with pytest.raises(InvalidInput, match=r"row 1 of p: column 'code' must be text \(got None\)"):
        own.prompts([{"doc": "adds"}], "p")
    asking = RowFormat(form.columns, form.split, ask=lambda asked: {"doc": asked, "code": "."})
    own = Wording(asking, task_named("causal_lm"), tokenizer, 64)
    assert own.prompts([{"prompt": "adds"}], "--prompt")[0].ids == row.ids
    assert own.prompts([{"doc": "adds"}], "p")[0].ids == row.ids


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": []}, r"row 1 of p: column 'messages' must be a list of two or more messages"),
        ({"messages": ["hi"]}, r"row 1 of p: column 'messages' must"),
        ({"messages": [{"role": "user"}]}, r"must hold messages with the texts role and content"),
        ({"question": "x"}, r"column 'messages' must be a list of two or more messages \(got None\)"),
    ],
)
def test_what_is_no_chat_is_refused(row: dict[str, Any], words: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """With its row and column."""
    with pytest.raises(InvalidInput, match=words):
        wording("messages", tokenizer).prompts([row], "p")
