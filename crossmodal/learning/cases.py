"""Every model of the results: a task, a form, a seed."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from crossmodal.models.fusion import FUSIONS
from crossmodal.train.config import TrainConfig, make_config
from crossmodal.train.presets import PRESETS

SUM = "sum of log-probabilities"


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
_TOWERS = {"fusion": "two_tower", "width": 64, "modalities": ["image", "audio"]}

# By task: the data set, and by form what differs from the preset of the data set.
TASKS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "clean": ("avmnist", {**_SINGLE, SUM: {}, **_FORMS}),
    "speaker": ("avmnist-speaker", {**_SINGLE, SUM: {}, "queries": _FORMS["queries"], "concat": _FORMS["concat"]}),
    "hard": (
        "avmnist-hard",
        {
            **_SINGLE,
            SUM: {},
            "queries without experts": {"fusion": "queries", "experts": "none"},
            **_FORMS,
            "queries with quality": {"fusion": "queries", "quality": True, "spoiled": 0.1},
        },
    ),
    "find": ("avfind", {"concat": _FORMS["concat"], "cross": _FORMS["cross"]}),
    "retrieval": (
        "avmnist",
        {
            "InfoNCE": _TOWERS,
            "sigmoid": {**_TOWERS, "contrastive": "sigmoid"},
            "InfoNCE + discriminator": {**_TOWERS, "adversary": "discriminator"},
            "InfoNCE + critic": {**_TOWERS, "adversary": "critic"},
        },
    ),
    "sentences": (
        "digit-strings",
        {
            "CTC, speech alone": {"modalities": ["audio"]},
            "CTC, speech and image": {},
            "decoder, speech and image": {"fusion": "captioner", "layers": 2},
        },
    ),
}


def all_cases(seeds: int, tasks: Sequence[str] = (), forms: Sequence[str] = ()) -> Iterator[Case]:
    """All of them, seed by seed, so that a table is whole as early as it can be.

    Args:
        seeds: how many.
        tasks, forms: only these; empty for all.
    """
    for seed in range(seeds):
        for task, (_, known) in TASKS.items():
            for form in known:
                if (not tasks or task in tasks) and (not forms or form in forms):
                    yield Case(task, form, seed)


def config_of(case: Case, root: str) -> TrainConfig:
    """The settings that a case is trained with."""
    data, forms = TASKS[case.task]
    return make_config({**PRESETS[data], "data": data, "root": root, "seed": case.seed, **forms[case.form]})
