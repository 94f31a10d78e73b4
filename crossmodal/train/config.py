"""Everything that a training run depends on."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossmodal._extras import require

_MOST_THREADS = 1024  # of what no machine has OpenMP cannot make, and ends the process
_NAMES = ("modalities", "auxiliary")  # settings that are lists of modalities
_MAPPINGS = ("encoders", "options", "positions", "start")
_COUNTS = ["epochs", "batch_size", "accumulate", "width", "num_heads", "num_queries", "layers", "checkpoint_every"]
_COUNTS += ["threads", "code_groups"]
_NOT_NEGATIVE = ["seed", "weight_decay", "patience", "workers", "likeness", "expert_weight", "auxiliary_weight"]
_NOT_NEGATIVE += ["hardness", "adversary_strength", "adversary_steps", "codes"]
_CHOICES = {
    "precision": ("no", "bf16", "fp16"),
    "parallel": ("ddp", "fsdp"),
    "device": ("auto", "cpu"),
    "experts": ("none", "auxiliary", "product"),
    "contrastive": ("info_nce", "sigmoid"),
    "adversary": ("none", "discriminator", "critic"),
}


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run; the same settings give the same weights, bit for bit, on the same machine.

    Attributes:
        data: ``digits``, ``avmnist``, ``avmnist-speaker``, ``avmnist-hard``, ``avfind``, ``avfind-text``,
            ``digit-strings``, or the path of a manifest.
        root: the folder that data sets and the paths of a manifest are relative to.
        modalities: which of the data set's to use; None takes all.
        fusion: a form of fusion (:data:`crossmodal.models.FUSIONS`), or ``two_tower`` for retrieval.
        epochs: passes over the training samples.
        samples: training samples per epoch; None takes all.
        seed: of the weights, of what is random in the data, and of dropout.
        batch_size: samples per process and backward pass.
        accumulate: backward passes per step.
        learning_rate: at the end of warming up; from there it falls to 0 with a cosine.
        warm_up: share of all steps, in [0, 1).
        weight_decay: of AdamW, for matrices; not for biases, norms and learned tokens.
        max_gradient: the norm to which gradients are clipped.
        ema: decay per step of a moving average of the weights, which is then what is validated and kept; 0 keeps the
            weights themselves.
        forget: the first weights quickly in that average, as is right for random ones; where a model begins as a good
            one, false keeps the average near it.
        patience: epochs without a lower validation loss after which training stops; 0 never stops early.
        sets: learn from every set of modalities in each step (:func:`crossmodal.models.modality_sets`).
        modality_dropout: share of each modality's inputs hidden at random in training; one always stays.
        spoiled: share of each modality's inputs replaced by noise in training, one modality of a sample at most.
        width, num_heads, num_queries, layers, likeness, quality, experts, dropout: see
            :class:`crossmodal.models.FusionClassifier`; other models have those of them that stand in their arguments.
        positions: of models that spell: by modality, a factor; see :class:`crossmodal.models.Positions`.
        auxiliary: modalities whose auxiliary questions are asked in training, where the data have some
            (:class:`crossmodal.data.sample.Question`); None asks all.
        expert_weight, auxiliary_weight: of the experts' and of the auxiliary questions' losses.
        contrastive: loss of two towers, ``"info_nce"`` or ``"sigmoid"``.
        hardness: how much more near negatives count in it; see :func:`crossmodal.models.contrastive.info_nce`.
        adversary: of two towers: ``"none"``, ``"discriminator"`` or ``"critic"``.
        adversary_strength: of the gradient that the towers get from it.
        adversary_steps: of its own that it takes before each of the towers', with a learning rate of
            ``adversary_rate``; 0: it learns with them (:class:`crossmodal.train.opponent.Opponent`).
        codes, code_groups: of a codebook that two towers share; 0 codes: none
            (:class:`crossmodal.models.SharedCodebook`).
        smoothing: of labels (Szegedy et al., arXiv 1512.00567).
        start: by modality, the folder of a run whose encoder and projection into the common space are begun with, and
            its answer where there is an expert for it, or where both spell
            (:func:`crossmodal.train.model.begin_with`).
        frozen: the weights of encoders that are begun with stay as they are (Zhai et al., arXiv 2111.07991); what
            augments their input goes on.
        encoders: by modality, ``{"name": ..., "channels": ..., option: ...}``; see
            :func:`crossmodal.encoders.build_encoder`.
        precision: ``"no"``, ``"bf16"`` or ``"fp16"``: autocast, weights stay float32.
        parallel: ``"ddp"`` or ``"fsdp"``, for several processes.
        workers: processes that make batches; 0 makes them where they are used.
        checkpoint_every: steps between checkpoints; one is written after every epoch too.
        threads: of torch, on CPU.
        device: ``"auto"`` or ``"cpu"``.
        strict: a broken file of a manifest stops the run; otherwise it is named, skipped and counted.
        options: of a manifest: see :class:`crossmodal.data.manifest.ManifestOptions`.
    """

    data: str
    root: str | None = None
    modalities: tuple[str, ...] | None = None
    fusion: str = "queries"
    epochs: int = 5
    samples: int | None = None
    seed: int = 0
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 2e-3
    warm_up: float = 0.1
    weight_decay: float = 0.01
    max_gradient: float = 1.0
    ema: float = 0.0
    forget: bool = True
    patience: int = 0
    sets: bool = True
    modality_dropout: float = 0.0
    spoiled: float = 0.0
    width: int = 48
    num_heads: int = 4
    num_queries: int = 4
    layers: int = 1
    likeness: float = 1.0
    quality: bool = False
    experts: str = "none"
    dropout: float = 0.0
    positions: dict[str, float] = field(default_factory=dict)
    auxiliary: tuple[str, ...] | None = None
    expert_weight: float = 1.0
    auxiliary_weight: float = 1.0
    smoothing: float = 0.0
    contrastive: str = "info_nce"
    hardness: float = 0.0
    adversary: str = "none"
    adversary_strength: float = 0.1
    adversary_steps: int = 0
    adversary_rate: float = 5e-3
    codes: int = 0
    code_groups: int = 8
    start: dict[str, str] = field(default_factory=dict)
    frozen: bool = False
    encoders: dict[str, dict[str, Any]] = field(default_factory=dict)
    precision: str = "no"
    parallel: str = "ddp"
    workers: int = 0
    checkpoint_every: int = 500
    threads: int = 1
    device: str = "auto"
    strict: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _COUNTS:
            _check(name, getattr(self, name) >= 1, getattr(self, name), "1 or more")
        _check("samples", self.samples is None or self.samples >= 1, self.samples, "1 or more, or null for all")
        for name in _NOT_NEGATIVE:
            _check(name, 0 <= getattr(self, name) < math.inf, getattr(self, name), "0 or more")
        for name in ("ema", "warm_up", "modality_dropout", "spoiled", "dropout", "smoothing"):
            _check(name, 0 <= getattr(self, name) < 1, getattr(self, name), "in [0, 1)")
        for name in ("learning_rate", "adversary_rate", "max_gradient"):
            _check(name, 0 < getattr(self, name) < math.inf, getattr(self, name), "a number above 0")
        _check("threads", self.threads <= _MOST_THREADS, self.threads, f"{_MOST_THREADS} or less")
        _check("seed", self.seed < 2**63, self.seed, "below 2**63")
        for name, known in _CHOICES.items():
            _check(name, getattr(self, name) in known, getattr(self, name), f"one of {', '.join(known)}")

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON and YAML."""
        values = dataclasses.asdict(self)
        for name in _NAMES:
            values[name] = None if values[name] is None else list(values[name])
        return values

    def as_yaml(self) -> str:
        """Text that :func:`read_config` reads."""
        yaml = require("yaml", distribution="pyyaml", extra="train")
        text: str = yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)
        return text


def make_config(values: dict[str, Any]) -> TrainConfig:
    """A config from names and values; names left out take their defaults.

    Raises:
        ValueError: for an unknown name, a missing ``data``, a value of another type or out of range.
    """
    fields = {one.name: one for one in dataclasses.fields(TrainConfig)}
    if unknown := sorted(map(str, set(values) - set(fields))):
        raise ValueError(f"unknown setting {', '.join(unknown)}; known are {', '.join(fields)}")
    if not values.get("data"):
        raise ValueError("data must name a data set or a manifest")
    return TrainConfig(**{name: _converted(name, fields[name], value) for name, value in values.items()})


def is_whole(values: dict[str, Any]) -> bool:
    """Whether settings name all that there are, as those that a run keeps do: nothing is left for a preset to say."""
    return all(field.name in values for field in dataclasses.fields(TrainConfig))


def merge(values: dict[str, Any], more: dict[str, Any], *, keep_none: bool = False) -> dict[str, Any]:
    """Settings with others over them; of a setting that is a mapping, each entry for itself.

    An entry that is None takes away the one below it.

    Args:
        values, more: settings, and those that go over them.
        keep_none: such entries stay, to go over others later.
    """
    merged = dict(values)
    for name, value in more.items():
        if name in _MAPPINGS and isinstance(value, dict):
            before = merged.get(name)
            entries = {**(before if isinstance(before, dict) else {}), **value}
            merged[name] = {key: entry for key, entry in entries.items() if keep_none or entry is not None}
        else:
            merged[name] = value
    return merged


def read_config(path: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        MissingExtraError: when pyyaml is not installed.
        OSError: when the file cannot be read.
        ValueError: when it is no YAML, or no list of names and values.
    """
    yaml = require("yaml", distribution="pyyaml", extra="train")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold names and values, got {type(values).__name__}")
    return values


def _check(name: str, good: bool, value: Any, wanted: str) -> None:
    if not good:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _encoder(modality: Any, value: Any) -> dict[str, Any]:
    if isinstance(value, str):  # one with its usual options
        return {"name": value}
    if not isinstance(value, dict):
        raise ValueError(f"encoders must hold a name or {{name: ..., option: ...}} for {modality}, got {value!r}")
    return value


def _converted(name: str, one: dataclasses.Field[Any], value: Any) -> Any:
    """YAML reads 1e-3 as text and 1 as int; neither is a mistake. Everything else of another type is."""
    kind = one.type.__name__ if isinstance(one.type, type) else str(one.type)
    if name == "encoders" and isinstance(value, dict):
        return {str(modality): _encoder(modality, encoder) for modality, encoder in value.items()}
    try:
        if name in _NAMES:
            if isinstance(value, str):  # as the flag has them
                value = [part.strip() for part in value.split(",")]
            return None if value is None else tuple(str(part) for part in value)
        if name == "positions" and isinstance(value, dict):
            return {str(modality): _number(factor) for modality, factor in value.items()}
        if kind == "float":
            return _number(value)
        wanted = {"int": int, "str": str, "bool": bool, "int | None": int | None, "str | None": str | None}
        expected = wanted.get(kind, dict)
        if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
            raise TypeError
        if name == "start" and isinstance(value, dict) and not all(isinstance(run, str) for run in value.values()):
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be {kind}, got {value!r}") from None
    return value
