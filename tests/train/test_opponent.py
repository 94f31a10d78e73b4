"""An adversary with steps of its own: it learns, the towers unlearn, and neither does the other's work."""

import pytest
import torch
from torch import nn

from crossmodal.nn import ModalityDiscriminator
from crossmodal.train.opponent import Opponent, adversarial_loss
from crossmodal.train.retrieval import RetrievalLearner
from tests.models.test_two_tower import make, make_batch

OUTPUTS = {"discriminator": 2, "critic": 1}


def make_opponent(kind, steps=5, seed=0):
    torch.manual_seed(seed)
    adversary = ModalityDiscriminator(4, OUTPUTS[kind], hidden_dim=16, activation=nn.SiLU)
    return Opponent(adversary, steps=steps, rate=5e-3)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_it_takes_its_steps_at_once_and_the_embeddings_get_no_gradient(kind):
    opponent = make_opponent(kind)
    first, second = torch.randn(64, 4, requires_grad=True), torch.randn(64, 4) + 1
    before = adversarial_loss(opponent.adversary, first, second).item()
    for _ in range(20):
        opponent.learn(first, second)
    assert adversarial_loss(opponent.adversary, first, second).item() < before - 0.1
    assert first.grad is None
    assert all(p.grad is None and not p.requires_grad for p in opponent.adversary.parameters())


@pytest.mark.parametrize("kind", OUTPUTS)
def test_its_steps_are_those_of_adam(kind):
    """Written out by hand, in float64."""
    opponent = make_opponent(kind, steps=3)
    opponent.adversary.double()
    weights = [p.detach().clone().requires_grad_() for p in opponent.adversary.parameters()]
    copy = ModalityDiscriminator(4, OUTPUTS[kind], hidden_dim=16, activation=nn.SiLU).double()
    first, second = torch.randn(2, 32, 4, dtype=torch.float64)
    torch.manual_seed(1)
    opponent.learn(first, second)
    torch.manual_seed(1)
    means, squares = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for step in range(1, 4):
        copy.load_state_dict(dict(zip(dict(copy.named_parameters()), weights, strict=True)))
        slopes = torch.autograd.grad(adversarial_loss(copy, first, second), list(copy.parameters()))
        with torch.no_grad():
            for weight, slope, mean, square in zip(weights, slopes, means, squares, strict=True):
                mean.mul_(0.5).add_(0.5 * slope)
                square.mul_(0.9).add_(0.1 * slope * slope)
                weight -= 5e-3 * (mean / (1 - 0.5**step)) / ((square / (1 - 0.9**step)).sqrt() + 1e-8)
    for got, wanted in zip(opponent.adversary.parameters(), weights, strict=True):
        torch.testing.assert_close(got, wanted.detach().requires_grad_(False))


@pytest.mark.parametrize("kind", OUTPUTS)
def test_it_goes_on_from_its_state_bit_for_bit(kind):
    whole, torn = make_opponent(kind), make_opponent(kind)
    first, second = torch.randn(16, 4), torch.randn(16, 4)
    for opponent in (whole, torn):
        torch.manual_seed(5)
        opponent.learn(first, second)
    again = make_opponent(kind, seed=9)
    again.adversary.load_state_dict(torn.adversary.state_dict())
    again.load_state({name: {k: v.clone() for k, v in values.items()} for name, values in torn.state().items()})
    for opponent in (whole, again):
        torch.manual_seed(6)
        opponent.learn(first, second)
    for got, wanted in zip(again.adversary.parameters(), whole.adversary.parameters(), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("adversary", OUTPUTS)
@pytest.mark.parametrize("codes", [0, 4])
def test_towers_learn_against_it_and_their_optimizer_leaves_it_alone(adversary, codes):
    model = make(adversary=adversary, codes=codes, code_groups=4)
    learner = RetrievalLearner(("a", "b"), strength=0.1, adversary_steps=2)
    learner.prepare(model)
    theirs = [p for p in model.parameters() if p.requires_grad]
    assert not {id(p) for p in theirs} & {id(p) for p in model.adversary.parameters()}
    optimizer = torch.optim.Adam(theirs, lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        learner.step(model, make_batch()).loss.backward()
        assert all(p.grad is None for p in model.adversary.parameters())
        optimizer.step()
    measured = learner.measure(learner.answer(model.eval(), [make_batch()]))
    assert measured["accuracy"] > 0.95 and measured["accuracy_back"] > 0.95


@pytest.mark.parametrize("kind", OUTPUTS)
def test_it_brings_together_what_contrast_alone_leaves_apart(kind):
    """Two clouds, moved by nothing but the adversary."""
    torch.manual_seed(0)
    first, second = torch.randn(256, 4), torch.randn(256, 4)
    shift = torch.tensor([1.0, -0.5, 0.5, 0.0], requires_grad=True)
    opponent, optimizer = make_opponent(kind), torch.optim.Adam([shift], lr=0.02)
    for _ in range(150):
        moved = second + shift
        opponent.learn(first, moved)
        optimizer.zero_grad()
        adversarial_loss(opponent.adversary, first, moved, penalty=0.0).backward()
        optimizer.step()
    assert (first.mean(0) - (second + shift).mean(0)).norm().item() < 0.5  # 1.22 at first


def half(rank, folder):
    """One of two processes, with its half of the embeddings."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    opponent = make_opponent("discriminator", steps=4)
    opponent.learn(*(part.chunk(2)[rank] for part in torch.load(f"{folder}/embeddings.pt")))
    torch.save(opponent.adversary.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_one_adversary_which_learns_from_all(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    embeddings = torch.randn(24, 4), torch.randn(24, 4) + 1
    torch.save(embeddings, tmp_path / "embeddings.pt")
    torch.multiprocessing.spawn(half, (str(tmp_path),), nprocs=2)
    alone = make_opponent("discriminator", steps=4)
    alone.learn(*embeddings)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, wanted in alone.adversary.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], wanted, atol=1e-5, rtol=1e-4)
