"""`lorafront plan`: what is asked, checked, and the plan that answers it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorafront.search.paths import RootPaths
from lorafront.search.placement import Devices
from lorafront.search.plan import Plan, parse_gpus, plan
from lorafront.search.plan_hours import Hours, estimate
from lorafront.search.plan_subject import of_model, of_search
from lorafront.search.preflight import check
from lorafront.search.search_file import read_search_file
from lorafront.spaces.errors import InvalidInput, Problem

BATCH = 8  # as in a search file that does not say
ANY = Devices("any GPU", 2**62, 2**10)  # what fits is the plan's to say, so no machine is too small for its checks


@dataclass(frozen=True)
class Question:
    """What to plan: a search file, or a model with batches of one size.

    Attributes:
        file: search file; none is a plan of a model.
        model: folder, shipped architecture or hub name; none is a plan of a search.
        gpus: sizes, joined with commas.
        batch: rows of a batch; none is 8. Of a model only.
        length: tokens of a row; none is 512 at most. Of a model only.
        checkpointing: of gradients. Of a model only.
        tflops: 10**12 operations per second that a GPU sustains. Of a search only.
    """

    file: Path | None
    model: str | None
    gpus: str
    batch: int | None = None
    length: int | None = None
    checkpointing: bool = False
    tflops: float = 100.0

    def checked(self) -> tuple[Devices, ...]:
        """The GPUs.

        Raises:
            InvalidInput: options that contradict each other, or a GPU that is no size.
        """
        if (self.file is None) == (self.model is None):
            raise InvalidInput("give a search file or --model" + (", not both" if self.file else ""))
        own = {"--batch": self.batch, "--length": self.length, "--checkpointing": self.checkpointing or None}
        if self.file is not None and (given := [name for name, value in own.items() if value is not None]):
            raise InvalidInput([Problem((name,), f"is for --model; {self.file} says its own") for name in given])
        return parse_gpus(self.gpus)


@dataclass(frozen=True)
class Answer:
    """A plan, and for a search what its budget comes to.

    Attributes:
        plan: the memory.
        hours: that the trials train; None for a model alone.
        broken: configurations that break a limit which is known before they run.
    """

    plan: Plan
    hours: Hours | None = None
    broken: int = 0


def answer(question: Question, gpus: tuple[Devices, ...], root: RootPaths) -> Answer:
    """Check what is asked for, and plan it.

    Args:
        question: what to plan; checked.
        gpus: from small to large.
        root: of the searches; what is traced is kept there.

    Raises:
        InvalidInput: all problems of the file, or of the model.
        NotTraced: the memory of this model cannot be predicted.
    """
    traced = root.traced.absolute()
    root.make()
    if question.file is None:
        subject = of_model(
            question.model or "", batch=question.batch or BATCH, length=question.length,
            checkpointing=question.checkpointing, traced=traced,
        )  # fmt: skip
        return Answer(plan(subject, gpus))
    traced.mkdir(exist_ok=True)  # what the checks trace, the plan need not
    prepared = check(read_search_file(question.file), root, question.file.absolute().parent, devices=[ANY], kind="cuda")
    subject = of_search(prepared, traced)
    broken = sum(bool(prepared.breaks(lora)) for lora in subject.configurations)
    return Answer(plan(subject, gpus), estimate(prepared, root, question.tflops), broken)
