"""Runs a problem through the operator, the reference in two orders of summation, and the exact formulas."""

import math
from types import ModuleType

import torch
from torch import Tensor

import crossmodal
from crossmodal import Source, reference
from tests.exact import ExactFusion, ExactWeightedSum, wider_than
from tests.problems import Fusion, FusionTensors, WeightedSum, lay_out
from tests.tolerance import assert_as_accurate, eps_of

Results = dict[str, Tensor]


def check_fusion(problem: Fusion) -> None:
    """Outputs and every gradient that the problem asks for obey the two-reference rule."""
    tensors = problem.build()
    got = _run(crossmodal, problem, tensors)
    references = [_run(reference, problem, tensors), _flip(_run(reference, problem, _flipped(tensors)))]

    scale = problem.scale
    if scale is None:
        scale = 1 / math.sqrt(problem.head_dim) if problem.head_dim else 1.0
    exact = ExactFusion(
        tensors.query,
        tensors.sources,
        scale=scale,
        is_causal=problem.is_causal,
        precision=wider_than(problem.dtype),
    )
    gradients = exact.backward(tensors.dout, tensors.dlse, tensors.dmass)
    for name, result in got.items():
        if name in ("out", "lse", "mass"):
            wanted, eps, magnitude = getattr(exact, name), eps_of(result.dtype), exact.magnitudes[name]
        elif name == "query":
            wanted, eps, magnitude = gradients.query, eps_of(problem.dtype), gradients.query_magnitude
        else:
            index, field = int(name[len("sources[") : name.index("]")]), name.rpartition(".")[2]
            wanted, eps = gradients.sources[index][field], eps_of(problem.dtype, result.dtype)
            magnitude = gradients.magnitudes[index][field]
        assert_as_accurate(name, result, [r[name] for r in references], wanted, eps, magnitude)


def check_weighted_sum(problem: WeightedSum) -> None:
    """The same for a weighted sum."""
    generator = torch.Generator().manual_seed(problem.seed)
    rows = (problem.batch, problem.heads, problem.seqlen_q)
    weights = lay_out((*rows, problem.seqlen_k), problem.weights_layout, problem.dtype, generator).detach()
    shape = (problem.batch, problem.heads, problem.seqlen_k, problem.head_dim)
    values = lay_out(shape, problem.values_layout, problem.dtype, generator).detach()
    dout = lay_out((*rows, problem.head_dim), problem.dout_layout, problem.dtype, generator)
    lengths = mask = None
    if problem.lengths is not None:
        lengths = torch.randint(0, problem.seqlen_k + 1, (problem.batch,), generator=generator).to(problem.lengths)
    if problem.mask is not None:
        mask = problem.mask.build((*rows, problem.seqlen_k), generator)

    def run(namespace: ModuleType, flip: bool) -> Results:
        turn = (lambda t: t.flip(-1)) if flip else (lambda t: t)
        leaves = {"weights": weights, "values": turn(values)}
        leaves = {n: t.detach().requires_grad_(n in problem.differentiated) for n, t in leaves.items()}
        out = namespace.weighted_sum(*leaves.values(), lengths=lengths, mask=mask)
        wanted = {n: t for n, t in leaves.items() if t.requires_grad}
        found = torch.autograd.grad(out, list(wanted.values()), turn(dout)) if wanted else []
        results = {"out": out, **dict(zip(wanted, found, strict=True))}
        return {n: turn(t) if n in ("out", "values") else t for n, t in results.items()}

    got, references = run(crossmodal, False), [run(reference, False), run(reference, True)]
    exact = ExactWeightedSum(weights, values, lengths, mask, precision=wider_than(problem.dtype))
    wanted = {"out": exact.out, **exact.backward(dout)}
    for name, result in got.items():
        assert_as_accurate(name, result, [r[name] for r in references], wanted[name], eps_of(problem.dtype))


def _run(namespace: ModuleType, problem: Fusion, tensors: FusionTensors) -> Results:
    if problem.as_attention:
        source = tensors.sources[0]
        assert source is not None and source.bias is None
        out, lse = namespace.attention(
            tensors.query,
            source.key,
            source.value,
            source.mask,
            is_causal=problem.is_causal,
            scale=problem.scale,
            key_lengths=source.lengths,
            return_lse=True,
        )
        outputs = {"out": out, "lse": lse}
    else:
        result = namespace.fuse(tensors.query, tensors.sources, scale=problem.scale, return_lse=True, return_mass=True)
        outputs = result._asdict()
    cotangents = {"out": tensors.dout, "lse": tensors.dlse, "mass": tensors.dmass}
    flowing = [(o, cotangents[n]) for n, o in outputs.items() if cotangents[n] is not None and o.requires_grad]
    found = {name: torch.zeros_like(leaf) for name, leaf in tensors.leaves().items()}
    if flowing and found:  # what does not depend on a leaf has gradient zero
        gradients = torch.autograd.grad(
            [o for o, _ in flowing], list(tensors.leaves().values()), [c for _, c in flowing], allow_unused=True
        )
        found.update({name: g for name, g in zip(found, gradients, strict=True) if g is not None})
    return {**{n: o.detach() for n, o in outputs.items()}, **found}


def _flipped(tensors: FusionTensors) -> FusionTensors:
    """The same problem with features in reverse order: equal results, another order of summation."""

    def turn(tensor: Tensor) -> Tensor:
        return tensor.detach().flip(-1).requires_grad_(tensor.requires_grad)

    sources = [
        None if s is None else Source(turn(s.key), turn(s.value), s.lengths, s.mask, s.bias) for s in tensors.sources
    ]
    dout = None if tensors.dout is None else tensors.dout.flip(-1)
    return FusionTensors(turn(tensors.query), sources, dout, tensors.dlse, tensors.dmass)


def _flip(results: Results) -> Results:
    features = ("out", "query", "key", "value")
    return {n: t.flip(-1) if n.rpartition(".")[2] in features else t for n, t in results.items()}
