"""Write `docs/reference/` from the code: `python docs/generate/reference_pages.py`.

The pages are committed, so that they can be read on GitHub; a test holds them equal to what this makes of the code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from reference_commands import commands_page
from reference_markdown import page, table
from reference_python import python_page
from reference_search_file import search_file_page

from lorafront.search import paths
from lorafront.spaces import errors
from lorafront.spaces.errors import EXIT_CODES, LorafrontError
from lorafront.spaces.objectives import OBJECTIVES
from lorafront.trainables.outcome import Outcome
from lorafront.trainables.session import Measurements

REFERENCE = Path(__file__).parent.parent / "reference"


def exit_codes_page() -> str:
    """What each exit code means, and the errors that lead to it."""
    kinds: dict[int, list[str]] = {}
    for kind in (one for one in LorafrontError.__subclasses__() if one.__module__ == errors.__name__):
        kinds.setdefault(kind.exit_code, []).append(f"`{kind.__name__}`: {first_line(kind)}")
    rows = [[f"`{code}`", meaning, "; ".join(kinds.get(code, []))] for code, meaning in EXIT_CODES.items()]
    intro = (
        "Every command exits with one of these. Messages go to standard error, one problem in a line. "
        "In Python the same conditions are the exceptions of `lorafront.spaces.errors`."
    )
    doctor = (
        "`lorafront doctor` exits with 0 where nothing is wrong, 5 where the commands that it names mend all, and 6 "
        "where something is damaged for good."
    )
    return page("Exit codes", intro, table(["code", "meaning", "exceptions"], rows), doctor)


def objectives_page() -> str:
    """What a search can optimise and limit, what else a trial measures, how it can end."""
    rows = [
        [
            f"`{o.name}`", o.unit or "-", "more" if o.direction == "maximize" else "less",
            "quality" if o.quality else "cost", o.meaning + ("; measured alone on a device" if o.alone else ""),
        ]
        for o in OBJECTIVES.values()
    ]  # fmt: skip
    others = [name for name in Measurements.__annotations__ if name not in OBJECTIVES]
    return page(
        "Objectives and metrics",
        "Names for `objectives` (two to four) and `constraints` of a search file. The loss on a second evaluation set "
        "of `data.also_evaluate` is the objective `eval_NAME_loss`, in nats per target, less is better. "
        "[A function of your own](../how-to/own-code.md#an-objective) is one more.",
        table(["name", "unit", "better is", "of", "meaning"], rows),
        "## What else a trial reports",
        ", ".join(f"`{name}`" for name in others) + ".",
        second_paragraph(Measurements),
        "## How a trial ends",
        "As `status` and `pareto` store it, and the sentence that they print.",
        table(["stored", "sentence"], [[f"`{one.stored}`", one.value] for one in Outcome]),
    )


def files_page() -> str:
    """Every file name of a search."""
    lines = inspect.cleandoc(paths.__doc__ or "").splitlines()
    return page(
        "Files",
        "What stands under the root of the searches: `runs`, or what `--root` or `LORAFRONT_ROOT` says.",
        "\n".join(["```text", *lines[2:], "```"]),
        "Only the study is needed to know everything that a search has found; MLflow's store is written anew from it "
        "by `lorafront mlflow-sync NAME`, and `tokens/` and `traced/` are made again where they are missing.",
    )


def first_line(thing: object) -> str:
    """Of a docstring, without its full stop."""
    return (inspect.getdoc(thing) or "").splitlines()[0].rstrip(".")


def second_paragraph(thing: object) -> str:
    """Of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[1].split())


PAGES: dict[str, Callable[[], str]] = {
    "search-file.md": search_file_page,
    "commands.md": commands_page,
    "exit-codes.md": exit_codes_page,
    "objectives.md": objectives_page,
    "python.md": python_page,
    "files.md": files_page,
}


def main() -> None:
    """Write every page."""
    REFERENCE.mkdir(exist_ok=True)
    for name, made in PAGES.items():
        (REFERENCE / name).write_text(made(), encoding="utf-8")
        print(REFERENCE / name)


if __name__ == "__main__":
    main()
