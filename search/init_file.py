"""The commented search file that `lorafront init` writes; its defaults are the schema's own."""

from __future__ import annotations

import json

from lorafront.search.objective_entry import DEFAULT_OBJECTIVES
from lorafront.spaces import presets
from lorafront.spaces.objectives import OBJECTIVES
from lorafront.trainables.formats import FORMATS

TEMPLATE = """\
# A lorafront search. Check it with `lorafront check FILE`, run it with `lorafront run FILE`.
name: {name}                # names the folder, the study and the MLflow experiment

model: {model}              # folder, or name on the Hugging Face hub
task: {task}               # causal_lm | seq_cls | seq_2_seq_lm

data:
  path: {data}              # file (.txt, .jsonl, .csv, .tsv, .parquet), folder, or hub name
  format: {format}          # {formats}
  # columns: {{text: sentence}}       # where the data calls a column otherwise
  # header: [text, label]           # names of the columns of a CSV or TSV file without a header line
  # eval_path: valid.jsonl  # without it: the data's own validation split, else a seeded part of `path`
  # also_evaluate: {{general: {{path: wiki.txt, format: text}}}}   # its loss is the objective eval_general_loss
  max_length: {max_length}  # tokens per row
  train_rows: {train_rows}
  eval_rows: {eval_rows}

# Each parameter is one value, a list of choices, or a range {{low, high, log, step}}.
space:
  rank: {rank}
  alpha: {{ratio: {ratio}}}  # times the rank; {{absolute: [16, 32]}} sets alpha itself
  modules: {modules}
  quantization: {quantization}   # also nf4_double, fp4, fp16, fp32
  dropout: {{low: 0.0, high: 0.3}}
  bias: {bias}
  learning_rate: {{low: 1e-5, high: 1e-3, log: true}}
  # also: batch_size, gradient_accumulation, weight_decay, warmup, scheduler

objectives: [{quality}, peak_vram_gb]   # two to four of: {objectives};
                                          # eval_NAME_loss; your own {{function: module:name, direction: maximize}}
constraints: {{}}                          # such as {{peak_vram_gb: "<= 12"}}

training:
  epochs: 1                     # or steps, or rows
  rungs: 4                      # points at which a trial reports, each at twice the rows of the one before
  batch_size: 8
  gradient_accumulation: 1
  optimizer: adamw              # or paged_adamw_8bit
  scheduler: linear             # or cosine, constant
  warmup: 0.03                  # share of the steps
  max_grad_norm: 1.0
  gradient_checkpointing: false

sampler: mfgp                   # or tpe, gp, nsga2, random, grid
early_stopping: model           # trials that are behind end at a rung; or rungs, off

# What is tried first: configurations that guides recommend (a quarter of the budget at most), then your own, which
# always run; what a point leaves out is filled in. {{recommended: false, points: [...]}} leaves the guides out.
# start_points: [{{rank: 16, alpha: {{ratio: 2}}, modules: attention, quantization: nf4}}]
# warm_start: [an-earlier-search]       # its results teach the sampler; same model, data, length and objectives

budget: {{trials: 32}}           # also hours: 8, gpu_hours: 20; whichever comes first
resources: {{gpus_per_trial: auto}}   # by predicted memory; or such as 0.25. Without a GPU also memory_per_worker: 4GB
engine: auto                    # trials train many at a time over one base where they can; or packed, process
# tracking: {{uri: "http://127.0.0.1:5000", required: false}}   # default: SQLite beside the searches
seed: 0
"""


def commented(name: str, model: str, data: str, task: str, row_format: str) -> str:
    """The file's text."""
    space = presets.DEFAULT_SPACE
    return TEMPLATE.format(
        task=task, formats=" | ".join(FORMATS), objectives=", ".join(OBJECTIVES),
        quality=DEFAULT_OBJECTIVES.get(task, ["perplexity"])[0],
        name=json.dumps(name), model=json.dumps(model), data=json.dumps(data), format=row_format, max_length=512,
        train_rows=2000, eval_rows=200, rank=_flow(space["rank"]), ratio=_flow(space["alpha"]["ratio"]),
        modules=_flow(space["modules"]), quantization=_flow(space["quantization"]), bias=_flow(space["bias"]),
    )  # fmt: skip


def _flow(values: list[object]) -> str:
    return "[" + ", ".join(str(value) for value in values) + "]"
