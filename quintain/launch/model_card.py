"""The model card of a run: `README.md` beside the weights, and both on a hub where that is asked for.

What always holds: a card has no tokens and no arguments of environments, which may be keys; what only a resumed run
needs is not uploaded.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import yaml

from quintain.config import ExperimentConfig
from quintain.config.load import plain_config
from quintain.failure import QuintainError, one_line
from quintain.files import write_whole
from quintain.launch.report import read_metrics
from quintain.launch.run_folder import RunFolder

UNPUBLISHED: Final = ("state.pt", "trainer.json", "optimizers/*", "value_head.safetensors", "critic/*", "reference/*")
"""Of a checkpoint: what the model itself does not need."""
PACKAGES: Final = ("quintain", "torch", "transformers", "accelerate", "peft", "datasets")
TASKS: Final[Mapping[str, tuple[str, str]]] = {
    "lm": ("text-generation", "AutoModelForCausalLM"),
    "score": ("text-classification", "AutoModelForSequenceClassification"),
    "steps": ("token-classification", "AutoModelForTokenClassification"),
}
"""By what a model says of a token: its task on a hub, and the class of transformers that loads it."""


def write_card(config: ExperimentConfig, run: RunFolder, summary: Mapping[str, Any]) -> Path | None:
    """Put the card and the curve of a run that has ended beside the weights it leaves; their folder, None for none."""
    folder = run.trained
    if folder is None:
        return None
    rows = [row for row in read_metrics(run.metrics) if row["kind"] == "eval"]
    if run.curve.exists():
        shutil.copy(run.curve, folder)
    write_whole(folder / "README.md", model_card(config, summary, rows, curve=run.curve.exists()))
    return folder


def model_card(
    config: ExperimentConfig, summary: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]], *, curve: bool
) -> str:
    """The card: what a hub reads first (YAML), then data, figures, experiment and versions for people."""
    trainer, model = config.trainer, config.model
    task, loaded_by = TASKS[trainer.head]
    base = None if Path(model.path).exists() else model.path
    sets = [data.path for data in config.dataset or () if data.path and not Path(data.path).exists()]
    told = {"library_name": "transformers", "pipeline_tag": task, "tags": ["quintain", trainer.algorithm]}
    told |= {name: value for name, value in (("base_model", base), ("datasets", sets)) if value}
    how = (type(trainer).__doc__ or "").splitlines()[0]
    parts = [
        f"---\n{yaml.safe_dump(told, sort_keys=False)}---",
        f"# {config.name}",
        f"`{model.path}` trained with quintain by `{trainer.algorithm}`: {how}",
        f"```python\nfrom transformers import {loaded_by}\n\nmodel = {loaded_by}.from_pretrained(FOLDER_OR_NAME)\n```",
        "## Data",
        "\n".join(_data(config)),
        "## Figures",
        f"{summary['steps']} steps in {summary['train_wall_s']:,.0f} s of training, seed {config.seed}.",
        *([_table(evaluations)] if evaluations else ()),
        *(["![The curve of the run](curve.png)"] if curve else ()),
        "## Experiment",
        "What is not here is as by default.",
        f"```yaml\n{yaml.safe_dump(_experiment(config), sort_keys=False, allow_unicode=True)}```",
        "## Versions",
        "\n".join(_versions()),
    ]
    return "\n\n".join(parts) + "\n"


def _data(config: ExperimentConfig) -> Iterator[str]:
    for data in config.dataset or ():
        asked = ", ".join(f"{name} {wanted}" for name, wanted in data.where.items())
        parts = [f"`{data.label}`", data.split if data.run is None else asked or "all trajectories"]
        yield "- " + ", ".join([*parts, *([f"weight {data.weight:g}"] if data.weight else ())])
    for played in config.plays if config.offline is None else ():
        yield f"- environment `{played.label}`, tasks of `{played.split}`, weight {played.weight:g}"


def _table(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """A row for each evaluation, a column for each figure."""
    names = [name for name in evaluations[-1] if name.startswith(("heldout", "eval_"))]
    lines = [["step", *names], ["---"] * (len(names) + 1)]
    lines += [[str(row["step"]), *(_figure(row.get(name)) for name in names)] for row in evaluations]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "–"


def _experiment(config: ExperimentConfig) -> dict[str, Any]:
    """The experiment as far as it is not the default, without the arguments of environments."""
    data = plain_config(config, exclude_defaults=True)
    data["trainer"] = {"algorithm": config.trainer.algorithm} | data.get("trainer", {})
    for played in (data.get("environment", {}), *data.get("environments", ())):
        played.pop("args", None)
    return data


def _versions() -> Iterator[str]:
    yield f"- Python {platform.python_version()}"
    for package in PACKAGES:
        try:
            yield f"- {package} {version(package)}"
        except PackageNotFoundError:
            continue


def hub_repository(config: ExperimentConfig) -> str | None:
    """The repository that the model is pushed to, made where it is not there; None where it is pushed nowhere.

    QuintainError where the hub does not let us.
    """
    trainer = config.trainer
    if not trainer.push_to_hub:
        return None
    from huggingface_hub import HfApi

    wanted = trainer.hub_model_id or config.name
    try:
        return HfApi().create_repo(wanted, private=trainer.hub_private_repo, exist_ok=True).repo_id
    except Exception as error:  # the boundary: what a hub answers has many forms
        raise QuintainError(
            f"trainer.push_to_hub: cannot make {wanted!r} on the hub: {one_line(str(error), 200)}: log in with"
            " 'hf auth login' or HF_TOKEN, or drop push_to_hub"
        ) from None


def push(folder: Path, repository: str) -> str:
    """Upload the model in `folder`; where it is then. QuintainError where the hub does not take it."""
    from huggingface_hub import HfApi

    try:
        done = HfApi().upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"{folder.name} of a run of quintain",
            ignore_patterns=list(UNPUBLISHED),
        )
    except Exception as error:  # the boundary, as above
        raise QuintainError(
            f"trainer.push_to_hub: the model is trained and in {folder}, but {repository} on the hub did not take it:"
            f" {one_line(str(error), 200)}"
        ) from None
    return done.commit_url
