"""Adversaries: gradients turned round, penalties differentiated twice, also through fused attention."""

import pytest
import torch
from torch import nn

from crossmodal.blocks import CommonPool
from crossmodal.models import critic_loss, discriminator_loss, gradient_penalty
from crossmodal.nn import ModalityDiscriminator


def smooth_critic(width, hidden):
    return ModalityDiscriminator(width, 1, hidden_dim=hidden, activation=nn.SiLU).classify


def test_discriminator_learns_and_embeddings_unlearn():
    judge = ModalityDiscriminator(6, 2).classify
    embeddings, kinds = torch.randn(8, 6, requires_grad=True), torch.arange(8) % 2
    plain = nn.functional.cross_entropy(judge(embeddings), kinds)
    wanted, *of_judge = torch.autograd.grad(plain, [embeddings, *judge.parameters()])
    turned = discriminator_loss(judge, embeddings, kinds, strength=0.5)
    got, *still_of_judge = torch.autograd.grad(turned, [embeddings, *judge.parameters()])
    torch.testing.assert_close(got, -0.5 * wanted)
    torch.testing.assert_close(still_of_judge, of_judge)


def test_penalty_is_the_squared_distance_of_the_slope_from_one():
    critic = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        critic.weight.copy_(torch.tensor([[3.0, 0.0, 4.0]]))
    penalty = gradient_penalty(critic, torch.randn(4, 3), torch.randn(4, 3))
    torch.testing.assert_close(penalty, torch.tensor(16.0))  # (5 - 1)^2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_penalty_is_told_where_nothing_is_learnt(mode):
    critic = smooth_critic(3, hidden=4)

    def losses():
        torch.manual_seed(0)
        first, second = torch.randn(2, 4, 3)
        return torch.stack([gradient_penalty(critic, first, second), critic_loss(critic, first, second)])

    wanted = losses()
    with mode():
        found = losses()
    assert not found.requires_grad and torch.equal(found, wanted)


def test_flat_critic_has_a_finite_gradient():
    critic = nn.Linear(3, 1)
    nn.init.zeros_(critic.weight)
    gradient_penalty(critic, torch.randn(4, 3), torch.randn(4, 3)).backward()
    assert critic.weight.grad.isfinite().all()


def test_penalty_through_fused_attention_has_the_gradient_of_finite_differences():
    torch.manual_seed(0)
    pool, judge = CommonPool(4, 2).double(), smooth_critic(4, hidden=5).double()
    lengths = torch.tensor([3, 2])

    def critic(tokens):
        return judge(pool(tokens, lengths))

    first, second = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)

    def penalty():
        torch.manual_seed(1)  # the same points between the two
        return gradient_penalty(critic, first, second)

    for weight in (pool.to_key.weight, pool.queries, judge[0].weight):
        (exact,) = torch.autograd.grad(penalty(), weight)
        for at in ((0, 0), (0, 3)):
            with torch.no_grad():
                weight[at] += 1e-6
                above = penalty().item()
                weight[at] -= 2e-6
                below = penalty().item()
                weight[at] += 1e-6
            assert abs((above - below) / 2e-6 - exact[at].item()) < 1e-5


def test_critic_under_penalty_estimates_a_distance():
    """Two points, 2 apart: no function of slope 1 tells them apart by more."""
    torch.manual_seed(0)
    critic = smooth_critic(2, hidden=32)
    first, second = torch.zeros(64, 2), torch.tensor([2.0, 0.0]).expand(64, 2)
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3)
    for _ in range(300):
        optimizer.zero_grad()
        critic_loss(critic, first, second).backward()
        optimizer.step()
    distance = (critic(first).mean() - critic(second).mean()).item()
    assert 1.7 < distance < 2.3


def test_losses_of_no_embeddings_are_zero_and_move_nothing():
    critic, judge = ModalityDiscriminator(4, 1), ModalityDiscriminator(4, 2)
    first, second = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    none = [one[torch.zeros(3, dtype=torch.bool)] for one in (first, second)]
    for adversary, loss in (
        (critic, critic_loss(critic.classify, *none)),
        (critic, critic_loss(critic.classify, *none, penalty=0.0)),
        (judge, discriminator_loss(judge.classify, torch.cat(none), torch.zeros(0, dtype=torch.int64))),
    ):
        slopes = torch.autograd.grad(
            loss, [first, second, *adversary.parameters()], retain_graph=True, allow_unused=True
        )
        assert loss == 0 and all(slope is None or not slope.any() for slope in slopes)
        assert slopes[0] is not None and slopes[1] is not None
