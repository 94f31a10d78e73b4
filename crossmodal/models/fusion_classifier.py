"""The pipeline of the field as one module: encoders, common space, association, fusion, task head."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from crossmodal._validate import check_counts
from crossmodal.blocks.operators import Implementation, Switchable
from crossmodal.data.sample import Question
from crossmodal.encoders.output import EncoderOutput
from crossmodal.models.experts import Expert, Quality, product_of_experts
from crossmodal.models.fusion import Form, build_fusion
from crossmodal.models.modalities import channels_by_modality, check_given
from crossmodal.models.questions import Questions

Experts = Literal["none", "auxiliary", "product"]

_ONE = math.log(math.e - 1)  # softplus of it is 1


class FusionOutput(NamedTuple):
    """What :class:`FusionClassifier` returns.

    Attributes:
        logits: ``(B, num_classes)``, or ``(sets, B, num_classes)`` when sets of modalities were given.
        mass: ``(B, num_heads, queries, modalities)``, the share of attention that each modality got; None unless asked
            for, and for forms of fusion without weights.
        experts: by modality, the logits ``(B, num_classes)`` of its expert; empty without experts.
        auxiliary: by modality, the logits ``(B, classes)`` of its auxiliary question, or ``(B, cells, classes)``; empty
            without any.
    """

    logits: Tensor
    mass: Tensor | None = None
    experts: Mapping[str, Tensor] = {}
    auxiliary: Mapping[str, Tensor] = {}


class FusionClassifier(Switchable):
    """Answers a question about samples from the modalities that are there.

    Each modality is encoded, ``I' = CNN(I)``, ``T' = RNN(T)``, ``A' = RNN(A)``, and projected into the common
    space, ``X = FC(I', T', A')``. By default learned queries then attend over the tokens of all modalities under one
    joint softmax, ``y_i = sum_j w_ij x_j`` (:func:`crossmodal.fuse`), and the y_i are classified; other forms of
    fusion: :data:`crossmodal.models.FUSIONS`.

    Args:
        encoders: by modality, modules that take ``(input, lengths)`` and return an ``EncoderOutput``.
        channels: of the encoders' features, or by modality.
        num_classes: of the task; of a regression or a multi-label task, the number of outputs.
        width: of the common space; a multiple of ``num_heads``.
        num_heads: attention heads.
        num_queries: learned queries, or bottleneck tokens.
        fusion: name of the form.
        layers: of the forms that attend more than once.
        likeness: of the form ``cross``, whose tokens ask; see :class:`crossmodal.blocks.CommonAttention`.
        quality: learn from each modality's tokens a bias on the scores of all of them: a modality that is noise gets
            less mass. Only for forms that weigh modalities.
        experts: ``"auxiliary"`` gives every modality a head of its own, to be trained beside the fusion; ``"product"``
            also adds their log-probabilities, each with a learned exponent, to the logits: the fusion then learns
            what they miss. Only for classification, one class of several.
        auxiliary: by modality, a question that this modality alone answers (:class:`crossmodal.models.Questions`).
        dropout: before the head.
        implementation: ``"fused"`` for :mod:`crossmodal`, ``"reference"`` for plain torch, in the encoders too; same
            weights, same answers.

    Raises:
        ValueError: when there is no encoder, ``width`` is not a multiple of ``num_heads`` or a number is too small, for
            an unknown ``fusion``, ``experts`` or ``implementation``, for ``quality`` with a form without weights, and
            for a product of experts of a single output.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        *,
        channels: int | Mapping[str, int],
        num_classes: int,
        width: int = 48,
        num_heads: int = 4,
        num_queries: int = 4,
        fusion: str = "queries",
        layers: int = 1,
        likeness: float = 0.0,
        quality: bool = False,
        experts: Experts = "none",
        auxiliary: Mapping[str, Question] | None = None,
        dropout: float = 0.0,
        implementation: Implementation = "fused",
    ) -> None:
        super().__init__()
        if experts not in get_args(Experts):
            raise ValueError(f"experts must be one of {', '.join(get_args(Experts))}, got {experts!r}")
        check_counts(num_classes=num_classes, width=width)
        if experts == "product" and num_classes == 1:
            raise ValueError("experts must be none or auxiliary for a single output, which is no class, got 'product'")
        self._experts: Experts = experts
        sizes = channels_by_modality(encoders, channels)
        self.encoders = nn.ModuleDict(encoders)
        self.to_common = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(sizes[name], width), nn.LayerNorm(width)) for name in encoders}
        )
        self.fusion = build_fusion(
            fusion,
            Form(
                len(encoders),
                width,
                num_heads,
                num_queries,
                layers,
                likeness=likeness,
                implementation=implementation,
            ),
        )
        if quality and not self.fusion.weighs:
            raise ValueError(f"quality must be False for the fusion {fusion!r}, which does not weigh modalities")
        self.head = nn.Sequential(
            nn.LayerNorm(self.fusion.out_features),
            nn.Linear(self.fusion.out_features, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, num_classes),
        )

        def expert(outputs: int) -> Expert:
            return Expert(width, outputs, num_heads=num_heads, num_queries=num_queries, implementation=implementation)

        def qualities() -> nn.ModuleDict:
            return nn.ModuleDict({name: Quality(width, num_heads, implementation) for name in encoders})

        self.quality = qualities() if quality else None
        self.experts = nn.ModuleDict({name: expert(num_classes) for name in encoders if experts != "none"})
        self.trust = qualities() if experts == "product" else None
        self.auxiliary = Questions(width, auxiliary, encoders)
        self.implementation = implementation  # of the encoders too

    @property
    def modalities(self) -> tuple[str, ...]:
        """In the order of the columns of ``mass``."""
        return tuple(self.encoders)

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        lengths: Mapping[str, Tensor],
        *,
        sets: Tensor | None = None,
        return_mass: bool = False,
    ) -> FusionOutput:
        """Classify a batch.

        Args:
            inputs, lengths: see :class:`crossmodal.data.Batch`; a modality left out of ``lengths`` is missing.
            sets: ``(sets, modalities)`` bool: answer once from each of these sets of modalities, encoding
                each modality only once (:func:`crossmodal.models.modality_sets`). Not with ``return_mass``.
            return_mass: also return the share of attention of each modality.

        Raises:
            ValueError: as :meth:`encode`, without any modality, and for ``sets`` of another shape or with
                ``return_mass``.
        """
        if sets is not None:
            _check_sets(sets, len(self.encoders), return_mass)
        tokens = self.encode(inputs, lengths)
        biases = self._biases(tokens)
        mass = None
        if sets is None:
            features, mass = self.fusion(tokens, biases, return_mass=return_mass)
        else:
            features = self.fusion.over_sets(tokens, biases, sets)
        logits = self.head(features)
        answers = {
            name: self.experts[name](one)
            for name, one in zip(self.modalities, tokens, strict=True)
            if one is not None and name in self.experts
        }
        if self.trust is not None:
            logits = logits + self._product(answers, tokens, sets)
        auxiliary = self.auxiliary.answers(dict(zip(self.modalities, tokens, strict=True)), self.encoders)
        return FusionOutput(logits, mass, answers, auxiliary)

    @torch.no_grad()
    def attention(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each query looked at: by modality ``(B, queries, tokens)``, mean over the heads.

        Of a sample and query, the weights over the tokens of all modalities together sum to 1. The queries are the
        learned ones; for the forms ``cross`` and ``source`` there is one per modality, the mean over its tokens, with
        weights of 0 where the modality is missing, and for ``cross`` where all others are.

        Raises:
            NotImplementedError: for a fusion that does not attend over tokens.
        """
        tokens = self.encode(inputs, lengths)
        weights = self.fusion.attention(tokens, self._biases(tokens))
        return dict(zip(self.modalities, weights, strict=True))

    def encode(self, inputs: Mapping[str, Tensor], lengths: Mapping[str, Tensor]) -> list[EncoderOutput | None]:
        """By modality, tokens ``(B, L, width)`` in the common space; None for a modality left out.

        Raises:
            ValueError: for an unknown modality where one is left out, and for lengths of an input that is not there.
        """
        check_given(inputs, lengths, self.modalities)
        tokens: list[EncoderOutput | None] = []
        for name in self.modalities:
            if name not in lengths:
                tokens.append(None)
                continue
            encoded: EncoderOutput = self.encoders[name](inputs[name], lengths[name])
            tokens.append(encoded._replace(features=self.to_common[name](encoded.features)))
        return tokens

    def _biases(self, tokens: Sequence[EncoderOutput | None]) -> list[Tensor | None]:
        if self.quality is None:
            return [None] * len(tokens)
        return [one and self.quality[name](one) for name, one in zip(self.modalities, tokens, strict=True)]

    def _product(
        self, answers: Mapping[str, Tensor], tokens: Sequence[EncoderOutput | None], sets: Tensor | None
    ) -> Tensor:
        assert self.trust is not None
        there = {name: one for name, one in zip(self.modalities, tokens, strict=True) if one is not None}
        trust = [softplus(_ONE + self.trust[name](one)) for name, one in there.items()]
        present = torch.stack([one.lengths > 0 for one in there.values()], 1)
        if sets is not None:
            present = present & sets[:, None, [name in there for name in self.modalities]]
        return product_of_experts([answers[name] for name in there], trust, present)


def _check_sets(sets: Tensor, modalities: int, return_mass: bool) -> None:
    if return_mass:
        raise ValueError("return_mass must be False with sets, got True")
    if sets.dtype != torch.bool or sets.dim() != 2 or not len(sets) or sets.shape[1] != modalities:
        raise ValueError(
            f"sets must be bool of shape (sets, modalities) = (1 or more, {modalities}), "
            f"got {sets.dtype} of shape {tuple(sets.shape)}"
        )
