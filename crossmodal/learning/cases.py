"""Every model of the results: a task, a form, a seed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crossmodal.models.fusion import FUSIONS
from crossmodal.train.config import TrainConfig, make_config
from crossmodal.train.presets import PRESETS

SUM = "sum of log-probabilities"
QUALITY = "queries with quality"  # a modality that is noise loses attention
_SPEECH = "CTC, speech alone"


class Case(NamedTuple):
    """One model to train, or to put together of others.

    Attributes:
        task: name of a group of cases that are compared with each other.
        form: what the model is.
        seed: of the run.
    """

    task: str
    form: str
    seed: int

    @property
    def name(self) -> str:
        """Of the folder of its run."""
        return f"{self.task}-{self.form}-{self.seed}".replace(" ", "_").replace("+", "and")


_FORMS: dict[str, dict[str, Any]] = {name: {"fusion": name} for name in FUSIONS}
_SINGLE = {
    "image": {"modalities": ["image"], "experts": "none"},
    "audio": {"modalities": ["audio"], "experts": "none"},
}
_TOWERS: dict[str, Any] = {"fusion": "two_tower"}
_CODES: dict[str, Any] = {**_TOWERS, "codes": 4}
_AHEAD: dict[str, Any] = {"adversary_steps": 5, "adversary_strength": 1.0}

# Tasks whose other models begin with single models, and what differs from the preset then; where they begin as the sum
# of the log-probabilities of these, it is from what was tried in docs/experiments.md.
_CONTINUED: dict[str, dict[str, Any]] = {
    "clean": {"epochs": 1, "samples": 12_800},
    "speaker": {
        "epochs": 1,
        "samples": 12_800,
        "learning_rate": 3e-4,
        "encoders": {
            "image": {"name": "resnet", "widths": [16, 32, 64]},
            "audio": {"name": "crnn", "augment": {}, "voices": {"tract": 0.3, "tempo": 0.3}},
        },
    },
    "hard": {
        "epochs": 2,
        "samples": 27_520,
        "ema": 0.998,
        "forget": False,
        "encoders": {
            "image": {"name": "vit", "patch": 7},
            "audio": {"name": "crnn", "channels": 96, "hidden": 96},
        },
    },
    "retrieval": {"epochs": 4, "samples": 12_800, "frozen": True},
}
_WITHOUT_EXPERTS: dict[str, Any] = {"experts": "none", "ema": 0.999, "forget": True}
_LATE = ("gated", "source", "bottleneck", "low_rank")

# By task: the data set, and by form what differs from the preset of the data set.
TASKS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "find": ("avfind", {"cross": _FORMS["cross"], "concat": _FORMS["concat"]}),
    "hard": (
        "avmnist-hard",
        {
            **_SINGLE,
            SUM: {},
            "queries": _FORMS["queries"],
            # Begun with nothing but encoders, it has a whole answer to learn.
            "queries without experts": {"fusion": "queries", **_WITHOUT_EXPERTS},
            # Beside experts that are right, attention has nothing to learn: alone it has to find what is noise.
            QUALITY: {"fusion": "queries", "quality": True, "spoiled": 0.1, **_WITHOUT_EXPERTS},
            **_FORMS,
        },
    ),
    "clean": (
        "avmnist",
        {
            # All images, and each recording some forty times.
            "image": {**_SINGLE["image"], "epochs": 4, "samples": None},
            "audio": {**_SINGLE["audio"], "epochs": 4},
            SUM: {},
            **_FORMS,
        },
    ),
    "retrieval": (
        "avmnist",
        {
            "InfoNCE, encoders learn": {**_TOWERS, "frozen": False},
            "InfoNCE": _TOWERS,
            "sigmoid": {**_TOWERS, "contrastive": "sigmoid"},
            "InfoNCE, codes": _CODES,
            # Twice as long as the others: after four epochs some seeds still come nearer to looking alike.
            "InfoNCE + discriminator": {**_CODES, **_AHEAD, "adversary": "discriminator", "epochs": 8},
            "InfoNCE + critic": {**_TOWERS, "adversary": "critic", "adversary_steps": 5, "adversary_strength": 0.3},
        },
    ),
    "sentences": (
        "digit-strings",
        {
            _SPEECH: {"modalities": ["audio"]},
            # Begun with it, as those with the image are: what they gain is not that they learn twice.
            "CTC, speech alone, twice": {"modalities": ["audio"]},
            "CTC, speech and image": {},
            "decoder, speech and image": {"fusion": "captioner", "layers": 2, "learning_rate": 2e-3},
        },
    ),
    "speaker": (
        "avmnist-speaker",
        {
            "image": _SINGLE["image"],
            # Four people have said all there is within two epochs.
            "audio": {**_SINGLE["audio"], "epochs": 2, "samples": 25_600},
            SUM: {},
            "queries": _FORMS["queries"],
            "concat": _FORMS["concat"],
        },
    ),
}


def all_cases(seeds: int, tasks: Sequence[str] = (), forms: Sequence[str] = ()) -> Iterator[Case]:
    """All of them, seed by seed, and of each seed what the claims rest on first.

    Args:
        seeds: how many.
        tasks, forms: only these; empty for all.

    Raises:
        ValueError: for a form that none of the tasks has.
    """
    every = {form for task, (_, known) in TASKS.items() if not tasks or task in tasks for form in known}
    if unknown := sorted(set(forms) - every):
        raise ValueError(f"form must be among {', '.join(sorted(every))}, got {', '.join(unknown)}")
    for seed in range(seeds):
        for late in (False, True):
            for task, (_, known) in TASKS.items():
                for form in known:
                    chosen = (not tasks or task in tasks) and (not forms or form in forms)
                    if chosen and late == (form in _LATE):
                        yield Case(task, form, seed)


def singles_of(case: Case) -> dict[str, Case]:
    """By modality, the single models of the same data and seed that a case begins with; empty for one that begins
    anew."""
    if case.task == "sentences" and case.form != _SPEECH:
        return {"audio": case._replace(form=_SPEECH)}
    if case.task not in _CONTINUED or case.form in _SINGLE:
        return {}
    task = "clean" if case.task == "retrieval" else case.task
    return {modality: Case(task, modality, case.seed) for modality in _SINGLE}


def config_of(case: Case, root: str, runs: Path) -> TrainConfig:
    """The settings that a case is trained with.

    Args:
        case: which.
        root: the folder of the recorded data.
        runs: where the runs of single models are.
    """
    data, forms = TASKS[case.task]
    start = {modality: str(runs / single.name) for modality, single in singles_of(case).items()}
    rest = _CONTINUED.get(case.task, {}) if start else {}
    values = {**PRESETS[data], **rest, "start": start, "data": data, "root": root, "seed": case.seed}
    return make_config({**values, **forms[case.form]})
