"""The search file: the file of the issue parses, and everything that is wrong is said at once, with its place."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lorafront.search.search_file import MAX_TRIALS, SearchFile, parse_search, read_search_file
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.objectives import Limit
from lorafront.spaces.parameters import Range

ISSUE = """\
name: phi2-alpaca
model: microsoft/phi-2
task: causal_lm
data:
  path: tatsu-lab/alpaca
  format: alpaca
  max_length: 512
  train_rows: 5000
  eval_rows: 500
space:
  rank: [4, 8, 16, 32, 64]
  alpha: {ratio: [1, 2]}
  modules: [query+value, attention, attention+mlp]
  quantization: [nf4, int8, bf16]
  dropout: {low: 0.0, high: 0.3}
  learning_rate: {low: 1e-5, high: 1e-3, log: true}
objectives: [perplexity, peak_vram_gb]
constraints: {peak_vram_gb: "<= 12"}
training: {epochs: 2, rungs: 4, batch_size: 8, gradient_checkpointing: false, optimizer: adamw}
budget: {trials: 64, hours: 8}
resources: {gpus_per_trial: 0.25, cpus_per_trial: 1}
seed: 0
"""
LEAST = {"name": "name: n", "model": "model: m", "data": "data: {path: d}"}
HUB_TOKEN = "hf_" + "x" * 24


def written(folder, text):
    """A file of the least that a search needs, with `text` in place of the section of that name."""
    file = folder / "search.yaml"
    own = text.partition(":")[0]
    file.write_text("\n".join([*(line for name, line in LEAST.items() if name != own), text]), encoding="utf-8")
    return file


def refusals(file):
    with pytest.raises(InvalidInput) as caught:
        read_search_file(file)
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def parsed(**sections):
    return parse_search({"name": "n", "model": "m", "data": {"path": "d"}, **sections})


def test_the_file_of_the_issue_means_what_it_says(tmp_path):
    """The full example file parses, with every value where it belongs and defaults elsewhere."""
    (tmp_path / "search.yaml").write_text(ISSUE)
    search = read_search_file(tmp_path / "search.yaml")
    assert (search.name, search.model.name, search.task, search.seed) == (
        "phi2-alpaca", "microsoft/phi-2", "causal_lm", 0
    )  # fmt: skip
    assert (search.data.format, search.data.max_length, search.data.train_rows, search.data.eval_rows) == (
        "alpaca", 512, 5000, 500
    )  # fmt: skip
    assert search.space.rank == [4, 8, 16, 32, 64]
    assert search.space.modules == ["query+value", "attention", "attention+mlp"]
    rate = search.space.learning_rate
    assert isinstance(rate, Range)
    assert (rate.low, rate.high, rate.log) == (1e-5, 1e-3, True)
    assert search.space.size() == (5 * 2 * 3 * 3 * 3, ["dropout", "learning_rate"])  # bias by default
    assert [objective.name for objective in search.objective_list] == ["perplexity", "peak_vram_gb"]
    assert search.limits == (Limit("peak_vram_gb", "<=", 12.0),)
    assert (search.training.epochs, search.training.rungs, search.training.batch_size) == (2.0, 4, 8)
    assert (search.budget.trials, search.budget.hours) == (64, 8.0)
    assert (search.resources.gpus_per_trial, search.resources.cpus_per_trial) == (0.25, 1)
    assert not search.tracking.required


def test_a_name_a_model_and_data_are_enough():
    """Everything else has a default, one epoch and the default space among them."""
    search = parsed()
    assert (search.objectives, search.limits, search.budget.trials) == (["perplexity", "peak_vram_gb"], (), 32)
    assert (search.training.epochs, search.training.steps, search.training.rows) == (1, None, None)
    assert search.space.size()[0] == 450


@pytest.mark.parametrize(
    "sections", [{}, {"training": {"steps": 8}}, {"space": {"alpha": 32, "rank": {"low": 4, "high": 8}}}]
)
def test_a_search_survives_the_study(sections):
    """The JSON that the study keeps of a search is read back as an equal one."""
    search = parsed(**sections)
    again = SearchFile.model_validate_json(search.model_dump_json())
    assert again.model_dump() == search.model_dump()


def test_a_search_is_frozen():
    """Nothing changes a search after it was read."""
    with pytest.raises(ValidationError, match="frozen"):
        parsed().seed = 1


MODULES = "must be a group such as attention or query+value, or names of linear modules"
WHOLE, CHOICE, UNKNOWN, SHARE = "must be an integer (got ", "must be one of ", "unknown key.", "sixteenths of one"
REFUSED = [
    (4, "space: {rank: 010}", "space.rank", "must not start with 0 (got 010); is it 10?"),
    (5, "space: {rank: 4, rank: 8}", "space.rank", "duplicate key 'rank' (lines 4 and 4)"),
    (6, "true: 1", "true", "keys must be text"),
    (6, "on: yes", "on", UNKNOWN),
    (7, "space: &a [*a]", "space[0]", "an alias must not contain itself"),
    (8, "space: !!python/object/apply:os.system [ls]", "space", "YAML tags are not allowed"),
    (9, "seed: 2020-01-01", "seed", "a date is not expected here"),
    (9, "space: {dropout: .nan}", "space.dropout", "must be finite (got nan)"),
    (9, "space: {learning_rate: .inf}", "space.learning_rate", "must be finite (got inf)"),
    (11, "space: {rnak: 8}", "space.rnak", "unknown key. Did you mean 'rank'?"),
    (11, "bugdet: {trials: 8}", "bugdet", "unknown key. Did you mean 'budget'?"),
    (11, "training: {optimiser: adamw}", "training.optimiser", "unknown key. Did you mean 'optimizer'?"),
    (11, "data: {path: d, formt: alpaca}", "data.formt", "unknown key. Did you mean 'format'?"),
    (11, "space: {rank: {low: 1, high: 4, logg: true}}", "space.rank.logg", "unknown key. Did you mean 'log'?"),
    (11, "space: {alpha: {low: 1.0, high: 4.0, stpe: 1.0}}", "space.alpha.stpe", "unknown key. Did you mean 'step'?"),
    (12, "space: {rank: 0}", "space.rank", "must be >= 1 (got 0)"),
    (12, "space: {rank: [8, -1]}", "space.rank[1]", "must be >= 1 (got -1)"),
    (13, "space: {rank: 2.5}", "space.rank", f"{WHOLE}2.5)"),
    (13, "space: {rank: true}", "space.rank", f"{WHOLE}True)"),
    (13, "space: {rank: '8'}", "space.rank", f"{WHOLE}'8')"),
    (13, "space: {rank: null}", "space.rank", f"{WHOLE}None)"),
    (13, "space: {rank: [8, 16.0]}", "space.rank[1]", f"{WHOLE}16.0)"),
    (15, "space: {alpha: .nan}", "space.alpha", "must be finite (got nan)"),
    (15, "space: {alpha: {ratio: .inf}}", "space.alpha.ratio", "must be finite (got inf)"),
    (15, "space: {alpha: {absolute: [16, .inf]}}", "space.alpha.absolute[1]", "must be finite (got inf)"),
    (16, "space: {alpha: 0}", "space.alpha", "must be > 0 (got 0)"),
    (16, "space: {alpha: [8, -1]}", "space.alpha[1]", "must be > 0 (got -1)"),
    (16, "space: {alpha: {ratio: [1, -2]}}", "space.alpha.ratio[1]", "must be > 0 (got -2)"),
    (16, "space: {alpha: abc}", "space.alpha", "must be a mapping (got 'abc')"),
    (17, "space: {dropout: 1.5}", "space.dropout", "must be < 1 (got 1.5)"),
    (18, "space: {dropout: -0.1}", "space.dropout", "must be >= 0 (got -0.1)"),
    (19, "space: {dropout: [0.0, 1.0]}", "space.dropout[1]", "must be < 1 (got 1.0)"),
    (20, "space: {modules: []}", "space.modules", "needs at least 1 entry (got [])"),
    (20, "space: {modules: ''}", "space.modules", f"{MODULES} (got '')"),
    (25, "training: {modules_to_save: [lm_haed]}", "training.modules_to_save", UNKNOWN),
    (26, "space: {bias: lora-only}", "space.bias", "must be one of none, lora_only, all (got 'lora-only'). Did"),
    (26, "task: CAUSAL_LM", "task", "or your own as module:name (got 'CAUSAL_LM'). Did you mean 'causal_lm'?"),
    (27, "space: {rank: {low: 8, high: 4}}", "space.rank", "low (8) must be below high (4)"),
    (
        27,
        "space: {learning_rate: {low: 0.0, high: 0.1, log: true}}",
        "space.learning_rate.low",
        "must be > 0 (got 0.0)",
    ),
    (27, "space: {rank: {low: 1, high: 4, step: 0}}", "space.rank.step", "must be >= 1 (got 0)"),
    (27, "space: {rank: []}", "space.rank", "needs at least 1 entry (got [])"),
    (27, "space: {rank: [8, 8]}", "space.rank", "each choice once; repeated: 8"),
    (27, "space: {modules: [q+v, [q, v]]}", "space.modules", "each choice once; repeated: q+v"),
    (27, "space: {learning_rate: [1e-4, .nan]}", "space.learning_rate[1]", "must be finite (got nan)"),
    (27, "space: {quantization: [[nf4]]}", "space.quantization[0]", f"{CHOICE}nf4, "),
    (28, "space: {rank: [8, '8']}", "space.rank[1]", f"{WHOLE}'8')"),
    (28, "space: {rank: [8, {low: 1}]}", "space.rank[1]", WHOLE),
    (28, "space: {modules: [attention, 1]}", "space.modules[1]", f"{MODULES} (got 1)"),
    (28, "space: {modules: [[q, 2]]}", "space.modules[0]", f"{MODULES} (got ['q', 2])"),
    (30, "space: {quantization: fp3}", "space.quantization", "nf4, nf4_double, fp4, int8, bf16, fp16, fp32 (got"),
    (31, "space: {load_in_3bit: true}", "space.load_in_3bit", UNKNOWN),
    (46, "data: {path: d, max_length: 0}", "data.max_length", "must be >= 2 (got 0)"),
    (50, "allow_pickle: true", "allow_pickle", UNKNOWN),
    (52, "name: ../x", "name", "must be 1 to 64 letters"),
    (52, "name: /abs", "name", "(got '/abs')"),
    (52, "name: a/b", "name", "(got 'a/b')"),
    (52, "name: .", "name", "(got '.')"),
    (52, "name: ..", "name", "(got '..')"),
    (52, "name: ''", "name", "(got '')"),
    (52, "name: 5", "name", "must be text (got 5)"),
    (53, "name: café", "name", "(got 'café')"),
    (54, f"name: {'x' * 65}", "name", "must be 1 to 64 letters"),
    (54, 'name: "a\\0"', "name", "must be 1 to 64 letters"),
    (54, 'name: "a\\n"', "name", "must be 1 to 64 letters"),
    (61, "resources: {gpus_per_trial: 0}", "resources.gpus_per_trial", f"{SHARE} such as 0.25, 0.125"),
    (61, "resources: {gpus_per_trial: -1}", "resources.gpus_per_trial", SHARE),
    (61, "resources: {gpus_per_trial: 1.5}", "resources.gpus_per_trial", SHARE),
    (61, "resources: {gpus_per_trial: 0.18}", "resources.gpus_per_trial", SHARE),
    (61, "resources: {gpus_per_trial: all}", "resources.gpus_per_trial", "must be a number (got 'all')"),
    (62, "resources: {max_concurrent: 0}", "resources.max_concurrent", "must be >= 1 (got 0)"),
    (62, "resources: {slots: 0}", "resources.slots", "must be auto, or a whole number of trials from 1 on (got 0)"),
    (62, "resources: {slots: many}", "resources.slots", "must be auto, or a whole number of trials from 1 on"),
    (62, "engine: pack", "engine", "must be one of auto, packed, process (got 'pack'). Did you mean 'packed'?"),
    (62, "budget: {trials: 0}", "budget.trials", "must be >= 1 (got 0)"),
    (62, "budget: {trials: -1}", "budget.trials", "must be >= 1 (got -1)"),
    (62, "budget: {trials: 1000000000}", "budget.trials", f"must be <= {MAX_TRIALS} (got 1000000000)"),
    (62, "budget: {hours: 0}", "budget.hours", "must be > 0 (got 0)"),
    (
        63,
        "objectives: [perplexity, vram]",
        "objectives[1]",
        "unknown objective 'vram'; there is perplexity, accuracy, f1, peak_vram_gb",
    ),
    (63, "objectives: [perplexity, adapter_gb]", "objectives[1]", "Did you mean 'adapter_mb'?"),
    (63, "objectives: [perplexity]", "objectives", "needs at least 2 entries (got ['perplexity'])"),
    (63, "objectives: [perplexity, perplexity]", "objectives", "each objective once; repeated: perplexity"),
    (63, "objectives: [perplexity, 3]", "objectives[1]", "must be text (got 3)"),
    (63, "objectives: perplexity", "objectives", "must be a list (got 'perplexity')"),
    (63, "constraints: {peak_vram: '<= 12'}", "constraints.peak_vram", "unknown objective 'peak_vram'; there is"),
    (
        63,
        "constraints: {peak_vram_gb: 12}",
        "constraints.peak_vram_gb",
        'a comparison with a number such as "<= 12" (got 12)',
    ),
    (63, "constraints: {peak_vram_gb: '< 12'}", "constraints.peak_vram_gb", "(got '< 12')"),
    (65, f"tracking: {{uri: '{HUB_TOKEN}'}}", "tracking.uri", "looks like a secret; give it in the environment"),
    (65, "tracking: {uri: 'https://me:pass@host/x'}", "tracking.uri", "looks like a secret"),
    (65, f"data: {{path: d, revision: sk-{'a' * 20}}}", "data.revision", "looks like a secret"),
    (0, "space: 3", "space", "must be a mapping (got 3)"),
    (0, "model: ''", "model", "must not be empty"),
    (0, "model: {name: ''}", "model.name", "must not be empty"),
    (0, "training: {epochs: 1, steps: 2}", "training", "give one of epochs, steps, rows (got epochs, steps)"),
    (0, "training: {rungs: [8, 4]}", "training", "rungs must rise (got [8, 4])"),
    (0, "training: {gradient_checkpointing: yes}", "training.gradient_checkpointing", "must be true or false"),
    (0, "seed: -1", "seed", "must be >= 0 (got -1)"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "text", "key", "message"), REFUSED, ids=[f"{row}-{text}" for row, text, *_ in REFUSED])
def test_what_is_wrong_is_said_with_place_key_and_value(tmp_path, row, text, key, message):
    """Each bad input is one problem: file, line, column, key, and the rule with the value found."""
    file = written(tmp_path, text)
    [line] = refusals(file)
    assert re.match(rf"{re.escape(str(file))}:[34]:\d+  {re.escape(key)}: ", line), row
    assert message in line.partition(f"  {key}: ")[2]


UNCHECKED = "NumberParameter[T] loses T in Range[T]: bounds are not validated"
TAGS = "names of pydantic's tags are dropped from the path of a key of that name"
RUNGS = "the union in TrainingConfig.rungs has no tags, so pydantic's own names stand in the path, twice"
UNSEEN = [
    (UNCHECKED, "space: {rank: {low: 0, high: 4}}", "space.rank.low: must be >= 1 (got 0)"),
    (UNCHECKED, "space: {rank: {low: 1.5, high: 4}}", "space.rank.low: must be an integer (got 1.5)"),
    (UNCHECKED, "space: {rank: {low: 1, high: '4'}}", "space.rank.high: must be an integer (got '4')"),
    (UNCHECKED, "space: {rank: {low: null, high: 4}}", "space.rank.low: must be an integer (got None)"),
    (UNCHECKED, "space: {dropout: {low: 0.0, high: 1.0}}", "space.dropout.high: must be < 1 (got 1.0)"),
    (UNCHECKED, "space: {dropout: {low: .nan, high: 0.3}}", "space.dropout.low: must be finite (got nan)"),
    (UNCHECKED, "space: {learning_rate: {low: 0.1, high: .inf}}", "space.learning_rate.high: must be finite (got inf)"),
    (UNCHECKED, "space: {alpha: {low: x, high: 2}}", "space.alpha.low: must be a number (got 'x')"),
    (TAGS, "choices: 1", "choices: unknown key."),
    (TAGS, "space: {fixed: 3}", "space.fixed: unknown key."),
    (TAGS, "space: {rank: {range: 1, low: 1, high: 2}}", "space.rank.range: unknown key."),
    (RUNGS, "training: {rungs: 0}", "training.rungs: must be >= 1 (got 0)"),
    (RUNGS, "training: {rungs: [1, x]}", "training.rungs[1]: must be an integer (got 'x')"),
    ("an integer beyond floats is an OverflowError", f"space: {{alpha: 1{'0' * 400}}}", "space.alpha: must be "),
    ("alpha takes one form, but the other is called unknown", "space: {alpha: {ratio: 1, absolute: 2}}", "not both"),
    ("bounds are printed with six digits", "seed: 4294967296", "seed: must be <= 2147483647 (got 4294967296)"),
]


@pytest.mark.parametrize(
    ("text", "message"),
    [pytest.param(*case, id=case[0][:60]) for why, *case in UNSEEN],
)
def test_what_is_wrong_is_said_with_place_key_and_value_too(tmp_path, text, message):
    """Each of these bad inputs is one problem with its key and the value found, as those above."""
    [line] = refusals(written(tmp_path, text))
    assert message in line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("space: [1", ":4:10  malformed YAML: expected ',' or ']'"),
        ("space:\n\trank: 8", ":5:1  malformed YAML: tabs are not allowed"),
    ],
)
def test_malformed_files_are_shown(tmp_path, text, line):
    """Rows 1 and 2: a syntax error has its line and column, and a caret below."""
    file = written(tmp_path, text)
    [found] = refusals(file)
    assert found.startswith(f"{file}{line}")
    assert found.endswith("^")


def test_all_mistakes_are_said_at_once(tmp_path):
    """Every mistake of a file is reported in one go, in the file's order, at its line and column."""
    file = tmp_path / "search.yaml"
    file.write_text(
        "model: {nmae: m}\n"
        "data: {path: d, max_length: 0}\n"
        "space:\n"
        "  rank: [8, 0]\n"
        "  dropout: 1.5\n"
        "  qantization: nf4\n"
        "training: {batch_size: 8.0}\n"
        "budget:\n"
        "  trials: 0\n"
        "seed: a\n"
        f"token: {HUB_TOKEN}\n"
    )
    assert [line.removeprefix(str(file)) for line in refusals(file)] == [
        "  name: missing; it has no default",
        ":1:1  model.name: missing; it has no default",
        ":1:9  model.nmae: unknown key. Did you mean 'name'?",
        ":2:17  data.max_length: must be >= 2 (got 0)",
        ":4:13  space.rank[1]: must be >= 1 (got 0)",
        ":5:3  space.dropout: must be < 1 (got 1.5)",
        ":6:3  space.qantization: unknown key. Did you mean 'quantization'?",
        ":7:12  training.batch_size: must be an integer (got 8.0)",
        ":9:3  budget.trials: must be >= 1 (got 0)",
        ":10:1  seed: must be an integer (got 'a')",
        ":11:1  token: looks like a secret; give it in the environment (HF_TOKEN, MLFLOW_TRACKING_PASSWORD) instead",
        ":11:1  token: unknown key.",
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        pytest.param(text, 2)
        for text, reason in [
            ("constraints: {vram: '<= 2', perplexity: 3}", "the validator stops at the first constraint"),
            ("objectives: [foo, bar]", "the validator stops at the first name"),
            ("space: {rank: 010, dropout: 1.5}", "what YAML refuses ends the reading before the schema is asked"),
        ]
    ]
    + [("space: {load_in_4bit: true, load_in_8bit: true}", 2), ("space: {alpha: {ratoi: 1}}", 2)],
)
def test_one_mistake_does_not_hide_another(tmp_path, text, number):
    """Two mistakes side by side are two problems."""
    assert len(refusals(written(tmp_path, text))) == number


def test_secrets_are_not_repeated(tmp_path):
    """A value that looks like a secret is refused without being shown."""
    assert HUB_TOKEN not in " ".join(refusals(written(tmp_path, f"data: {{path: '{HUB_TOKEN}'}}")))


def test_secrets_are_not_repeated_by_other_rules(tmp_path):
    """A secret in the place of a number is shown by no other refusal either."""
    assert HUB_TOKEN not in " ".join(refusals(written(tmp_path, f"seed: {HUB_TOKEN}")))


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("space: {learning_rate: 1e-4}", "space.learning_rate", 1e-4),
        ("space: {rank: 16}", "space.rank", 16),
        ("space: {modules: all-linear}", "space.modules", "all-linear"),
        ("space: {modules: [[q_proj, v_proj]]}", "space.modules", ["q_proj+v_proj"]),
        ("space: {quantization: [nf4]}", "space.quantization", ["nf4"]),
        ("constraints: {peak_vram_gb: <= 12}", "limits", (Limit("peak_vram_gb", "<=", 12.0),)),
        ("model: {name: m, revision: abc}", "model.revision", "abc"),
        ("training: {rungs: [8, 16]}", "training.rungs", [8, 16]),
        ("training: {epochs: null}", "training.epochs", 1),
        ("resources: {gpus_per_trial: 0.0625}", "resources.gpus_per_trial", 0.0625),
        ("resources: {gpus_per_trial: 2}", "resources.gpus_per_trial", 2.0),
        ("resources: {slots: 16}", "resources.slots", 16),
        ("resources: {cpus_per_trial: 1}", "resources.slots", "auto"),
        ("engine: packed", "engine", "packed"),
        ("seed: 1", "engine", "auto"),
        ("tracking: {uri: 'http://127.0.0.1:5000/a@b'}", "tracking.uri", "http://127.0.0.1:5000/a@b"),
        ("objectives: [perplexity, train_seconds]", "objectives", ["perplexity", "train_seconds"]),
    ],
)
def test_short_and_long_forms_are_read(tmp_path, text, path, value):
    """Each form of a value that a file may take is read as what it means (row 3: `1e-4` is a number)."""
    found = read_search_file(written(tmp_path, text))
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


@given(st.floats(-1, 3, allow_nan=False))
def test_gpus_are_whole_or_sixteenths(share):
    """A share of GPUs passes exactly when it is a whole number from one on, or sixteenths of one."""
    for asked in (share, round(share * 16) / 16):
        allowed = asked > 0 and (asked * 16).is_integer() and (asked < 1 or asked.is_integer())
        try:
            assert parsed(resources={"gpus_per_trial": asked}).resources.gpus_per_trial == asked
        except InvalidInput:
            assert not allowed
        else:
            assert allowed


@pytest.mark.parametrize("share", ["auto", 1, 2])
def test_times_are_measured_on_whole_devices(share):
    """With training time as an objective a trial needs a device of its own, and a share of one is refused."""
    objectives = ["perplexity", "train_seconds"]
    assert parsed(objectives=objectives, resources={"gpus_per_trial": share}).objectives == objectives
    with pytest.raises(InvalidInput, match=r"set resources\.gpus_per_trial to 1 \(got 0\.25\)"):
        parsed(objectives=objectives, resources={"gpus_per_trial": 0.25})


SECTIONS = (
    "model",
    "task",
    "code",
    "data",
    "space",
    "objectives",
    "constraints",
    "training",
    "budget",
    "resources",
    "tracking",
    "seed",
)
KEYS = ("name", "path", "rank", "alpha", "ratio", "epochs", "trials", "perplexity", "uri", "function", "columns", "x")
TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 99)
    | st.floats(width=16)
    | st.sampled_from(["nf4", "<= 12", "", "x", "x:y", "perplexity"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(SECTIONS), TREES, min_size=1))
def test_any_mapping_is_a_search_or_is_refused(sections):
    """Whatever stands in the sections, the outcome is a search or problems, each with a path in the file."""
    data = {"name": "n", "model": "m", "data": {"path": "d"}, **sections}
    try:
        assert parse_search(data).name == "n"
    except InvalidInput as error:
        assert error.problems  # noqa: PT017  # or it is a search
        assert all(not problem.path or problem.path[0] in SECTIONS for problem in error.problems)  # noqa: PT017
