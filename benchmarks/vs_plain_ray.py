"""Trials per hour of lorafront against what a user writes today from the documentation of Ray Tune, Optuna and PEFT.

Two arms are scripts (`plain`, and `reused` with actors that keep their base), two are `lorafront run`: `process` trains
each trial by stock PEFT in a reused worker, `packed` many in one pass. Each runs the same number of equal trials in a
process of its own, one after the other; what is timed is the whole life of that process. The first configurations are
the same in all arms but the last (same sampler, seed and order of draws; with more at once the sampler knows less),
later ones come from the same space. Numbers of a shared machine vary by tens of percent: compare within one run.

    python benchmarks/vs_plain_ray.py                       # about 15 minutes on two cores
    python benchmarks/vs_plain_ray.py --arms process,packed
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "vs_plain_ray.json"
ARMS = ("plain", "reused", "process", "packed")
OURS = ARMS[2:]  # named as `engine` is in a search file
# With 50-step trials on two cores, whole search: (of which, of whose trials per hour): at least so many times.
GOALS = {("process", "plain"): 4.0, ("packed", "plain"): 8.0, ("packed", "process"): 2.0}
PACKAGES = ("ray", "optuna", "torch", "transformers", "peft", "datasets", "bitsandbytes", "mlflow", "lorafront")

RANKS = [4, 8, 16, 32]
MODULES = {"query+value": ["q_proj", "v_proj"], "attention": ["q_proj", "k_proj", "v_proj", "o_proj"]}
QUANTIZATIONS = ["nf4", "int8", "bf16"]
LEARNING_RATES = (1e-3, 2e-2)
SAMPLE_SECONDS = 1.0
TRACKING = "tracking-"  # of an arm that writes the runs of another one again
ALPHA_RATIO = 2
WARMUP = 0.03  # lorafront's default

CONFIGURATION = ("rank", "modules", "quantization", "learning_rate")
SECTIONS = {"model": "setup", "training": "train", "evaluation": "eval"}  # of a trial to lorafront's measurements
# What is printed, and by which name it is kept. Those that begin with a blank are part of the one above.
ROWS = {
    "  driver start": "driver start",
    "  trial start": "trial start",
    "    actor": "waiting",
    "    imports": "imports",
    "    data": "data",
    "    base and adapter": "model",
    "  training": "training",
    "  evaluation": "evaluation",
    "  other": "other",
}
START = ("waiting", "imports", "data", "model")
SUMMED = ("driver start", "trial start", "training", "evaluation")

# One thread per trial, no spinning waiters on shared cores, and nothing that asks the network: the same for all arms.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


@dataclass(frozen=True)
class Settings:
    """What all arms have in common.

    Attributes:
        trials: trials per arm.
        steps: optimizer steps per trial.
        batch: rows per step, and per evaluation pass.
        length: tokens per row.
        eval_rows: rows of the evaluation split.
        rungs: of lorafront; the scripts evaluate once, at the end.
        slots: trials at once, but for the packed arm: workers.
        packed: of the packed arm, trials at once over all workers.
        seed: of samplers and trainings.
        model: folder of the base model.
        train: text to train on.
        evaluation: text to evaluate on.
    """

    trials: int
    steps: int
    batch: int
    length: int
    eval_rows: int
    rungs: int
    slots: int
    packed: int
    seed: int
    model: str
    train: str
    evaluation: str


# ---------------------------------------------------------------- what arms (a) and (b) have in common


class Times(dict[str, float]):
    """Seconds by section of one trial, and moments of `time.time`."""

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Add the seconds of the block."""
        start = time.perf_counter()
        yield
        self[name] = self.get(name, 0.0) + time.perf_counter() - start


def load_rows(settings: Settings) -> Any:
    """Token rows as the language modelling guide makes them: tokenize, concatenate, cut into blocks.

    https://huggingface.co/docs/transformers/tasks/language_modeling
    """
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    length = settings.length

    def blocks(texts: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = [token for text in texts["text"] for token in tokenizer(text)["input_ids"]]
        rows = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
        return {"input_ids": rows, "labels": rows}

    files = {"train": settings.train, "test": settings.evaluation}
    texts = load_dataset("text", data_files=files, sample_by="document")
    return texts.map(blocks, batched=True, remove_columns=["text"])


def load_base(settings: Settings, quantization: str) -> Any:
    """The base as the PEFT guide to quantization loads it, without `prepare_model_for_kbit_training`.

    That call would switch gradient checkpointing on, which costs time, and change the dtype of norms and head;
    lorafront does neither. https://huggingface.co/docs/peft/developer_guides/quantization
    On processors where lorafront's products are faster than torch's, plain Ray Tune gets them too.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from lorafront.trainables.cpu_products import widen_slow_products

    widen_slow_products()
    config = {
        "nf4": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": torch.bfloat16,
        },
        "int8": {"load_in_8bit": True},
    }.get(quantization)
    model = AutoModelForCausalLM.from_pretrained(
        settings.model,
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(**config) if config else None,
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes 0.50 repacks 4-bit weights at the first evaluation on such CPUs; in a model that is used
            # again (arm b) adapters get no gradient from then on, without an error.
            module.support_avx512bf16_for_cpu = False
    return model


def attach(model: Any, config: dict[str, Any], settings: Settings) -> Any:
    """PEFT's model of one configuration. https://huggingface.co/docs/peft/quicktour."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(settings.seed)
    lora = LoraConfig(
        r=config["rank"],
        lora_alpha=ALPHA_RATIO * config["rank"],
        lora_dropout=0.0,
        target_modules=MODULES[config["modules"]],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)


def make_trainer(peft_model: Any, rows: Any, config: dict[str, Any], settings: Settings, folder: str) -> Any:
    """`transformers.Trainer`, with which PEFT's quicktour trains; everything that costs time is off.

    https://huggingface.co/docs/peft/quicktour
    """
    from transformers import Trainer, TrainingArguments, default_data_collator

    arguments = TrainingArguments(
        output_dir=folder,
        learning_rate=config["learning_rate"],
        max_steps=settings.steps,
        warmup_steps=WARMUP,  # below 1 it is a share of the steps
        per_device_train_batch_size=settings.batch,
        per_device_eval_batch_size=settings.batch,
        bf16=True,
        use_cpu=True,
        seed=settings.seed,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return Trainer(
        model=peft_model,
        args=arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        data_collator=default_data_collator,
    )


def fit(peft_model: Any, rows: Any, config: dict[str, Any], settings: Settings, times: Times) -> dict[str, Any]:
    """Train, evaluate, and the result that is reported.

    The times go as text, because MLflowLoggerCallback would make a commit for each number.
    """
    with tempfile.TemporaryDirectory() as folder:
        with times.section("model"):
            trainer = make_trainer(peft_model, rows, config, settings, folder)
        with times.section("training"):
            trainer.train()
        with times.section("evaluation"):
            loss = trainer.evaluate()["eval_loss"]
    trainable, _ = peft_model.get_nb_trainable_parameters()
    return {"perplexity": math.exp(loss), "trainable_params": trainable, "times": json.dumps(times)}


def begin(times: Times) -> None:
    """Heavy imports, timed, and the process facts of a trial."""
    times["entered"] = time.time()
    with times.section("imports"):
        import datasets  # noqa: F401
        import peft  # noqa: F401
        import torch
        import transformers

        _ = transformers.Trainer, transformers.AutoModelForCausalLM  # transformers imports them when they are asked for
        torch.set_num_threads(1)


# ---------------------------------------------------------------- (a) plain


def plain_trial(config: dict[str, Any], settings: Settings) -> None:
    """A function trainable, for which Ray Tune starts a fresh process each time.

    https://docs.ray.io/en/latest/tune/api/trainable.html
    """
    from ray import tune

    times = Times()
    begin(times)
    with times.section("data"):
        rows = load_rows(settings)
    with times.section("model"):
        peft_model = attach(load_base(settings, config["quantization"]), config, settings)
    tune.report(fit(peft_model, rows, config, settings, times))


# ---------------------------------------------------------------- (b) reused


def reused_trainable() -> type:
    """A class trainable that keeps base models and token rows; made here, so that the parent does not import Ray."""
    from ray import tune

    class ReusedTrial(tune.Trainable):  # type: ignore[misc]  # Ray is untyped
        """One step is one trial. https://docs.ray.io/en/latest/tune/api/trainable.html#reusing-actors."""

        def setup(self, config: dict[str, Any], settings: Settings) -> None:
            self.settings = settings
            self.bases: dict[str, Any] = {}
            self.rows: Any = None
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.times = Times()
            begin(self.times)
            self.config = new_config
            return True

        def step(self) -> dict[str, Any]:
            quantization = self.config["quantization"]
            with self.times.section("data"):
                self.rows = self.rows if self.rows is not None else load_rows(self.settings)
            with self.times.section("model"):
                if quantization not in self.bases:
                    self.bases[quantization] = load_base(self.settings, quantization)
                peft_model = attach(self.bases[quantization], self.config, self.settings)
            result = fit(peft_model, self.rows, self.config, self.settings, self.times)
            self.bases[quantization] = peft_model.unload()
            return {**result, "done": True}

    return ReusedTrial


# ---------------------------------------------------------------- Ray Tune for (a) and (b)


def tune_arm(trainable: Any, settings: Settings, folder: Path, *, reuse: bool) -> dict[str, Any]:
    """Run one arm under Ray Tune, OptunaSearch (two objectives) and MLflowLoggerCallback."""
    import ray
    from ray import tune

    asked: dict[str, float] = {}
    tracking: list[float] = []
    ray.init(num_cpus=settings.slots, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    # A class is asked for a checkpoint at its end unless told otherwise; a function may not be told.
    checkpoints = tune.CheckpointConfig(checkpoint_at_end=False if reuse else None)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, settings=settings), {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=make_searcher(settings, asked),
            num_samples=settings.trials,
            reuse_actors=reuse,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            verbose=0,
            callbacks=[make_tracker(folder, tracking)],
            checkpoint_config=checkpoints,
        ),
    )
    results = tuner.fit()
    if results.errors:
        raise RuntimeError(str(results.errors[0]))
    trials = [record(result.metrics, asked) for result in results]
    ray.shutdown()
    return {"trials": trials, "tracking": sum(tracking)}


def make_searcher(settings: Settings, asked: dict[str, float]) -> Any:
    """OptunaSearch over two objectives, as in its documentation; notes when each trial was asked for.

    https://docs.ray.io/en/latest/tune/api/suggestion.html#optuna-ray-tune-search-optuna-optunasearch
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from ray.tune.search.optuna import OptunaSearch

    class Search(OptunaSearch):  # type: ignore[misc]  # Ray is untyped
        def suggest(self, trial_id: str) -> Any:
            asked[trial_id] = time.time()
            return super().suggest(trial_id)

        def __deepcopy__(self, _memo: Any) -> Any:  # a copy would note its times in a dict that nobody reads
            return self

    # In the order in which lorafront draws, so that the first draws of the same seed are the same.
    space = {
        "rank": CategoricalDistribution(RANKS),
        "modules": CategoricalDistribution(list(MODULES)),
        "quantization": CategoricalDistribution(QUANTIZATIONS),
        "learning_rate": FloatDistribution(*LEARNING_RATES, log=True),
    }
    return Search(space, metric=["perplexity", "trainable_params"], mode=["min", "min"], seed=settings.seed)


def make_tracker(folder: Path, spent: list[float]) -> Any:
    """Ray's MLflowLoggerCallback into SQLite, timed. https://docs.ray.io/en/latest/tune/examples/tune-mlflow.html."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                spent.append(time.perf_counter() - start)

        return wrapper

    tracker = MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiment_name="benchmark")
    for name in ("setup", "log_trial_start", "log_trial_result", "log_trial_end"):
        setattr(tracker, name, timed(getattr(tracker, name)))
    return tracker


def record(metrics: dict[str, Any], asked: dict[str, float]) -> dict[str, Any]:
    """One trial of (a) or (b): its configuration, perplexity, and seconds by section."""
    times = json.loads(metrics["times"])
    return {
        "configuration": metrics["config"],
        "perplexity": metrics["perplexity"],
        "asked": asked[metrics["trial_id"]],
        "waiting": times["entered"] - asked[metrics["trial_id"]],
        **{name: times[name] for name in ("imports", "data", "model", "training", "evaluation")},
    }


# ---------------------------------------------------------------- (c) lorafront


def search_mapping(settings: Settings, engine: str) -> dict[str, Any]:
    """The search file of the same search, for an engine."""
    low, high = LEARNING_RATES
    return {
        "name": "benchmark",
        "model": settings.model,
        "data": {
            "path": settings.train,
            "eval_path": settings.evaluation,
            "format": "text",
            "max_length": settings.length,
            "eval_rows": settings.eval_rows,
        },
        "space": {
            "rank": RANKS,
            "alpha": {"ratio": ALPHA_RATIO},
            "modules": list(MODULES),
            "quantization": QUANTIZATIONS,
            "dropout": 0.0,
            "bias": "none",
            "learning_rate": {"low": low, "high": high, "log": True},
        },
        "training": {"steps": settings.steps, "rungs": settings.rungs, "batch_size": settings.batch, "warmup": WARMUP},
        "budget": {"trials": settings.trials},
        "resources": {"cpus_per_trial": 1, "max_concurrent": settings.slots, "slots": settings.packed},
        "engine": engine,
        "early_stopping": "off",
        "sampler": "tpe",  # as in the other arms, which have no start points either
        "start_points": {"recommended": False},
        "seed": settings.seed,
    }


def lorafront_arm(engine: str, settings: Settings, folder: Path) -> dict[str, Any]:
    """`lorafront run` with all that it does by default; what a trial measured of itself is read from the study.

    A trial of a pack measures its share of what the pack took.
    """
    from lorafront.search import RootPaths, read_study
    from lorafront.search.cli import main

    file, root = folder / "benchmark.yaml", folder / "runs"
    file.write_text(json.dumps(search_mapping(settings, engine)), encoding="utf-8")
    sys.argv = ["lorafront", "run", str(file), "--root", str(root)]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    study = read_study(RootPaths(root).search("benchmark").study_db)
    trials = []
    for trial in study.complete:
        if trial.ended is None:
            continue
        measured = {name: trial.measurements[f"{key}_seconds"] for name, key in SECTIONS.items()}
        whole = (trial.ended - trial.started).total_seconds()
        trials.append(
            {
                "configuration": {name: getattr(trial.lora, name) for name in CONFIGURATION},
                "perplexity": trial.measurements["perplexity"],
                "asked": trial.started.timestamp(),
                "engine": trial.measurements.get("engine"),
                "waiting": whole - sum(measured.values()),
                **measured,
            }
        )
    return {"trials": trials}


def tracking_arm(engine: str, folder: Path) -> dict[str, Any]:
    """Seconds of writing all runs of an engine's arm into a fresh MLflow store, by the code that follows a search."""
    from lorafront.search import RootPaths
    from lorafront.search.mlflow_tracker import Tracking, sync

    tracking = Tracking(f"sqlite:///{folder / 'mlflow.db'}", "benchmark", (folder / "artifacts").as_uri())
    start = time.perf_counter()
    trials = sync(tracking, RootPaths(folder.parent / engine / "runs").search("benchmark"))
    return {"tracking": time.perf_counter() - start, "trials": trials}


def run_arm(name: str, settings: Settings, folder: Path) -> dict[str, Any]:
    """The numbers of one arm, in its own process."""
    if name == "plain":
        return tune_arm(plain_trial, settings, folder, reuse=False)
    if name == "reused":
        return tune_arm(reused_trainable(), settings, folder, reuse=True)
    if name.startswith(TRACKING):
        return tracking_arm(name.removeprefix(TRACKING), folder)
    return lorafront_arm(name, settings, folder)


# ---------------------------------------------------------------- the parent: data, processes, table


def write_texts(folder: Path, model: str, eval_tokens: int) -> tuple[Path, Path]:
    """The Python language reference as two files; the evaluation file has exactly so many tokens.

    So every arm, however it splits, evaluates the same rows.
    """
    from pydoc_data.topics import topics

    from transformers import AutoTokenizer

    text = "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"
    offsets = AutoTokenizer.from_pretrained(model)(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    cut = offsets[eval_tokens][0]
    train, evaluation = folder / "train.txt", folder / "evaluation.txt"
    train.write_text(text[cut:], encoding="utf-8")
    evaluation.write_text(text[:cut], encoding="utf-8")
    return train, evaluation


def spawn(name: str, settings: Settings, folder: Path) -> dict[str, Any]:
    """Run one arm in a process of its own and time its whole life."""
    place = folder / name
    place.mkdir()
    environment = {**os.environ, **ENVIRONMENT, "HF_DATASETS_CACHE": str(place / "datasets")}
    for inherited in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        environment.pop(inherited, None)
    print(f"{name} ...", file=sys.stderr, flush=True)
    started = time.time()
    command = [sys.executable, __file__, "--arm", name, "--settings", json.dumps(asdict(settings)), "--out", str(place)]
    with (place / "log").open("w", encoding="utf-8") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603  # ourselves
        cpu = watch(child)
    wall = time.time() - started
    if child.returncode:
        raise SystemExit(f"arm {name} failed:\n{(place / 'log').read_text(encoding='utf-8')[-4000:]}")
    found: dict[str, Any] = json.loads((place / "arm.json").read_text(encoding="utf-8"))
    return {**found, "started": started, "wall": wall, "cpu": cpu}


def watch(child: subprocess.Popen[bytes]) -> float:
    """CPU seconds of a process and all its descendants until it ends, as last seen of each.

    On a machine that others use as well they vary less than wall clock. The last second of a process is missed.
    """
    import psutil

    seen: dict[tuple[int, float], float] = {}
    root = psutil.Process(child.pid)
    while child.poll() is None:
        with contextlib.suppress(psutil.Error):
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    seen[process.pid, process.create_time()] = times.user + times.system
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(SAMPLE_SECONDS)
    return sum(seen.values())


def parts_of(trial: dict[str, Any]) -> dict[str, float]:
    """Seconds of one trial by what they were spent on."""
    named = {name: trial[name] for name in (*START, "training", "evaluation") if name in trial}
    return {"trial start": sum(named.get(name, 0.0) for name in START), **named}


def summarize(arm: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Slot seconds per trial, by what they were spent on; `other` is the remainder and not measured.

    A slot is one of the places for concurrent trials; slots times wall clock is what an arm had.
    """
    trials = arm["trials"]
    each = [parts_of(trial) for trial in trials]
    slot_seconds = settings.slots * arm["wall"] / len(trials)
    start = min(trial["asked"] for trial in trials) - arm["started"]
    parts = {"driver start": settings.slots * start / len(trials)}
    parts |= {name: sum(part[name] for part in each) / len(trials) for name in each[0]}
    parts["other"] = slot_seconds - sum(parts.get(name, 0.0) for name in SUMMED)
    return {
        "trials_per_hour": 3600 * len(trials) / arm["wall"],
        "slot_seconds": slot_seconds,
        "cpu_seconds": arm["cpu"] / len(trials),
        "parts": parts,
        "tracking": arm["tracking"] / len(trials),
    }


def equal_configurations(arms: dict[str, Any]) -> dict[str, Any]:
    """Perplexities of configurations that every arm ran, relative to those of the first arm."""
    by_key = [
        {json.dumps(trial["configuration"], sort_keys=True): trial["perplexity"] for trial in arm["trials"]}
        for arm in arms.values()
    ]
    common = [key for key in by_key[0] if all(key in other for other in by_key)]
    spread = [max(by[key] for by in by_key) / min(by[key] for by in by_key) for key in common]
    return {"count": len(common), "median_ratio": statistics.median(spread) if spread else None, "ratios": spread}


def table(summaries: dict[str, Any], arms: dict[str, Any]) -> str:
    """What a person reads, at most 80 columns."""

    def row(label: str, values: list[Any], form: str = "{:10.2f}") -> str:
        return f"{label:38}" + "".join(f"{'-':>12}" if v is None else f"{form.format(v):>12}" for v in values)

    names = list(summaries)
    lines = [f"{'':38}" + "".join(f"{name:>12}" for name in names)]
    lines.append(row("trials per hour", [summaries[name]["trials_per_hour"] for name in names], "{:.0f}"))
    lines.append(row("wall clock, s", [arms[name]["wall"] for name in names], "{:.1f}"))
    lines.append(row("CPU seconds per trial", [summaries[name]["cpu_seconds"] for name in names]))
    lines.append(row("slot seconds per trial", [summaries[name]["slot_seconds"] for name in names]))
    for label, key in ROWS.items():
        lines.append(row(label, [summaries[name]["parts"].get(key) for name in names]))
    lines.append(row("MLflow, in the driver meanwhile", [summaries[name]["tracking"] for name in names]))
    lines.append("other: the remainder (idle slots, Ray, shutdown). process: actor is what its trial")
    lines.append("did not measure itself, imports included; base and adapter holds the memory probe;")
    lines.append("MLflow as timed afterwards, writing the same runs into a fresh store. packed: a trial")
    lines.append("trains at its share of a pack, so where it waits others train, and other is below zero")
    return "\n".join(lines)


def ratios(summaries: dict[str, Any]) -> dict[str, float]:
    """How many times the trials per hour of each other arm an engine of lorafront has; `packed / plain` and so on."""
    rates = {name: summary["trials_per_hour"] for name, summary in summaries.items()}
    pairs = [(ours, other) for ours in OURS for other in ARMS[: ARMS.index(ours)]]
    return {f"{ours} / {other}": rates[ours] / rates[other] for ours, other in pairs if {ours, other} <= set(rates)}


def machine() -> dict[str, Any]:
    """Where the numbers come from."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "worker_niceness": os.environ.get("RAY_worker_niceness", "15, the default"),  # noqa: SIM112  # so Ray spells it
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def compare(options: argparse.Namespace) -> None:
    """Run the arms in the order asked for, print the table, write the JSON."""
    before = machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        model = str((HERE.parent / options.model).resolve())
        train, evaluation = write_texts(folder, model, options.eval_rows * options.length)
        shared = {
            field.name: getattr(options, field.name) for field in fields(Settings) if hasattr(options, field.name)
        }
        settings = Settings(**{**shared, "model": model, "train": str(train), "evaluation": str(evaluation)})
        arms = {name: spawn(name, settings, folder) for name in options.arms.split(",")}
        for name in set(arms) & set(OURS):
            arms[name]["tracking"] = spawn(f"{TRACKING}{name}", settings, folder)["tracking"]
    summaries = {name: summarize(arm, settings) for name, arm in arms.items()}
    compared, equal = ratios(summaries), equal_configurations(arms)
    print(table(summaries, arms))
    for name, ratio in compared.items():
        ours, _, other = name.partition(" / ")
        goal = GOALS.get((ours, other))
        print(f"{name}: {ratio:.2f}" + (f" (goal: at least {goal:g})" if goal else ""))
    for name in set(arms) & set(OURS):
        others = [trial["engine"] for trial in arms[name]["trials"] if trial["engine"] != name]
        if others:
            print(f"{len(others)} trials of {name} were not trained by that engine")
    if equal["count"]:
        print(f"{equal['count']} configurations ran in all arms; median ratio of highest to lowest perplexity")
        print(f"{equal['median_ratio']:.3f} (row order and initial adapters differ)")
    asked = {key: value for key, value in vars(options).items() if key not in {"arm", "settings", "out"}}
    found = {"arguments": asked, "machine": before, "ratios": compared, "equal_configurations": equal}
    RESULTS.parent.mkdir(exist_ok=True)
    found |= {"summaries": summaries, "arms": arms}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """The parent, or with `--arm` one arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64, help="tokens per row")
    parser.add_argument("--eval-rows", type=int, default=32)
    parser.add_argument("--rungs", type=int, default=1, help="of lorafront; the other arms have one")
    parser.add_argument("--slots", type=int, default=2, help="trials at once; workers of the packed arm")
    parser.add_argument("--packed", type=int, default=32, help="trials at once of the packed arm, over all workers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="examples/tiny-llama", help="from the repository root")
    parser.add_argument("--arms", default=",".join(ARMS), help="which, in which order")
    for internal in ("--arm", "--settings", "--out"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm is None:
        compare(options)
        return
    folder = Path(options.out)
    found = run_arm(options.arm, Settings(**json.loads(options.settings)), folder)
    (folder / "arm.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
