"""What the candidates of a recommendation say to the same prompts, side by side with the bare base.

Each base is loaded once, and each candidate speaks with the adapter that its trial left. Prompts are put into the words
that the rows of the search had, so that every candidate is asked what it was trained for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorafront.search.answers import BASE, BETTER, CHEAPER, TAKE, Candidate, Generations
from lorafront.search.export import ADAPTER_FILES, checkpoint_of, tokens_of
from lorafront.search.read_only import refuse_imported
from lorafront.spaces.errors import InvalidInput, StateUnreadable
from lorafront.trainables.checkpoint import read_manifest
from lorafront.trainables.config import TrialConfig
from lorafront.trainables.formats import format_named
from lorafront.trainables.frozen_base import BaseCache
from lorafront.trainables.generate import Said, Speaker
from lorafront.trainables.model_facts import model_facts
from lorafront.trainables.models import cannot_run, device, load_config, load_tokenizer
from lorafront.trainables.prompts import CLASSIFIES, CONTINUES, Prompt, Wording
from lorafront.trainables.read_rows import TABLE_SUFFIXES, read_file
from lorafront.trainables.task import task_named

if TYPE_CHECKING:
    from lorafront.search.paths import SearchPaths
    from lorafront.search.recommendation import Recommendation
    from lorafront.search.search_file import SearchFile
    from lorafront.search.study_table import StudyTable, TrialRecord
    from lorafront.trainables.task import Task

EVALUATION = "eval"  # instead of a file: rows that the search evaluated on
EVALUATION_ROWS = 2
TOKENS = 60  # new ones at most
Progress = Callable[[int, int], None]  # answers so far, answers in all


@dataclass(frozen=True)
class Asked:
    """What is asked.

    Attributes:
        source: a file of prompts, or `EVALUATION`; empty is none.
        texts: prompts beside those.
        tokens: new ones at most.
    """

    source: str = ""
    texts: Sequence[str] = ()
    tokens: int = TOKENS


def generations(
    found: Recommendation, table: StudyTable, paths: SearchPaths, asked: Asked, progress: Progress = lambda _i, _n: None
) -> Generations:
    """Let the bare base and the candidates of a recommendation answer the same prompts.

    Args:
        found: names the candidates.
        table: the study of the search.
        paths: of the search.
        asked: the prompts.
        progress: called after each answer.

    Raises:
        InvalidInput: a prompt cannot be read or asked, the search was imported, or this machine cannot run a base.
        StateUnreadable: an adapter is gone.
        CheckpointInvalid: an adapter was cut or changed.
    """
    refuse_imported(table.search, "generate with")
    candidates = candidates_of(found)
    adapters = {c.trial.number: _adapter(paths, c.trial) for c in candidates if c.trial is not None}
    labels, pad_id = _loading(next(iter(adapters.values())).parent)
    task = task_named(table.search.task, table.search.code_folder)
    tokenizer = load_tokenizer(table.search.model)
    data = table.search.data
    wording = Wording(
        format_named(data.format, table.search.code_folder), task, tokenizer, data.max_length, labels,
        tuple(data.columns.items()),
    )  # fmt: skip
    prompts = prompts_of(asked, wording, lambda: _evaluated(table, paths, wording))
    _check_lengths(prompts, asked.tokens, table.search, task)
    for quantization in {c.quantization for c in candidates}:
        if reason := cannot_run(quantization, device()):
            raise InvalidInput(f"this machine cannot run {quantization}: {reason}")
    bases, total = BaseCache(), len(candidates) * len(prompts)
    said: dict[int, list[Said | None]] = {index: [] for index in range(len(candidates))}

    def on_base(quantization: str) -> None:
        """Its candidates; nobody holds on to it afterwards, so the next base has the room."""
        base = bases.get(table.search.model, task, quantization, labels)
        speaker = Speaker(base, tokenizer, pad_id, labels)
        for index, candidate in enumerate(candidates):
            if candidate.quantization == quantization:
                for answer in _answers(speaker, candidate, adapters, table.search, prompts, asked.tokens):
                    said[index].append(answer)
                    progress(sum(map(len, said.values())), total)

    for quantization in dict.fromkeys(candidate.quantization for candidate in candidates):
        on_base(quantization)
    answers = tuple(zip(*said.values(), strict=True))
    return Generations(candidates, tuple(prompts), answers)


def candidates_of(found: Recommendation) -> tuple[Candidate, ...]:
    """The base of the recommended trial without an adapter, that trial, and its neighbours on the front."""
    named = ((TAKE, found.trial), (BETTER, found.better), (CHEAPER, found.cheaper))
    trials = [Candidate(role, trial, trial.lora.quantization) for role, trial in named if trial is not None]
    return (Candidate(BASE, None, found.trial.lora.quantization), *trials)


def prompts_of(asked: Asked, wording: Wording, evaluated: Callable[[], list[Prompt]]) -> list[Prompt]:
    """All that is asked, the file's before single ones.

    Args:
        asked: file and texts.
        wording: of the search.
        evaluated: reads evaluation rows of the search, where those are asked for.

    Raises:
        InvalidInput: there is no such file, nothing in it, or something that is no prompt.
    """
    if any(not text.strip() for text in asked.texts):
        raise InvalidInput("--prompt takes a text (got an empty one)")
    found = (
        evaluated() if asked.source == EVALUATION else _from_file(Path(asked.source), wording) if asked.source else []
    )
    return [*found, *wording.prompts([{"prompt": text} for text in asked.texts], "--prompt")]


def _from_file(file: Path, wording: Wording) -> list[Prompt]:
    """A prompt per line of a text; of a table one per row: the column `prompt`, or rows of the search's own format."""
    if not file.is_file():
        raise InvalidInput(f"--prompts {file} is no file; give one, or {EVALUATION} for rows of the search")
    if file.suffix.lower() in TABLE_SUFFIXES:
        rows = read_file(file)
    else:
        text = "".join(str(row["text"]) for row in read_file(file))
        rows = [{"prompt": line.strip()} for line in text.split("\n") if line.strip()]
    if not rows:
        raise InvalidInput(f"--prompts {file} holds no prompt; write one into each line")
    return wording.prompts(rows, str(file))


def _evaluated(table: StudyTable, paths: SearchPaths, wording: Wording) -> list[Prompt]:
    """The first evaluation rows, with their own answers."""
    rows = tokens_of(table, paths).evaluation
    chosen = [rows.row(index) for index in range(min(EVALUATION_ROWS, len(rows)))]
    return [wording.tokens(ids.tolist(), int(target)) for ids, target in chosen]


def _adapter(paths: SearchPaths, trial: TrialRecord) -> Path:
    """The PEFT folder that a trial left.

    Raises:
        StateUnreadable: it is gone.
        CheckpointInvalid: it was cut or changed.
    """
    checkpoint = checkpoint_of(paths, trial)
    adapter = checkpoint / "adapter"
    if not all((adapter / name).is_file() for name in ADAPTER_FILES):
        raise StateUnreadable(f"trial {trial.number} has no adapter any more: {adapter} is not there, or not whole")
    read_manifest(checkpoint)
    return adapter


def _loading(checkpoint: Path) -> tuple[tuple[str, ...], int]:
    """(labels of a classifier, token that fills up rows), as the trials had them."""
    said = json.loads((checkpoint / "base.json").read_text(encoding="utf-8"))
    named = said["arguments"].get("id2label", {})
    return tuple(named[str(number)] for number in range(len(named))), int(said["pad_token_id"])


def _answers(
    speaker: Speaker, candidate: Candidate, adapters: dict[int, Path], search: SearchFile, prompts: Sequence[Prompt],
    tokens: int,
) -> Iterator[Said | None]:  # fmt: skip
    if candidate.trial is None:
        # A head that is not in the base's own weights says nothing before it is trained.
        yield from (None if speaker.base.new_modules else speaker.say(prompt, tokens) for prompt in prompts)
        return
    adapter = adapters[candidate.trial.number]
    with speaker.adapted(_config(candidate.trial, adapter, search), adapter):
        yield from (speaker.say(prompt, tokens) for prompt in prompts)


def _config(trial: TrialRecord, adapter: Path, search: SearchFile) -> TrialConfig:
    """What puts an adapter of that shape on a base; nothing is trained by it."""
    own = json.loads((adapter / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
    rows = trial.last.rows if trial.last else 1
    return TrialConfig(
        task=search.task,
        model=search.model,
        training=search.training.model_copy(update={"gradient_checkpointing": False}),
        lora=trial.lora,
        targets=tuple(own["target_modules"]),
        rungs=(rows,),
        seed=0,
        tokens=adapter,
    )


def _check_lengths(prompts: Sequence[Prompt], tokens: int, search: SearchFile, task: Task) -> None:
    """Refuse what the base has no positions for."""
    positions = model_facts(load_config(search.model), task).positions or math.inf
    more = 0 if task.peft_type == CLASSIFIES else tokens
    for number, prompt in enumerate(prompts, start=1):
        size = len(prompt.ids)
        wanted = size + more if task.peft_type == CONTINUES else max(size, more)
        if wanted > positions:
            raise InvalidInput(
                f"prompt {number} has {size} tokens, and with {more} new ones the base has too few positions "
                f"({positions}); give a shorter one, or fewer --tokens"
            )
