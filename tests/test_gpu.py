"""The engine on a CUDA device: the CPU's verdicts, an exact ledger with overrun, memory, recurrent targets."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unfooled as uf
from tests.nets import Recurrent
from unfooled import Status, attacks
from unfooled.testing import Linear, Spy, linear_distance

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("recipe", ["pgd(steps=30)", "apgd(steps=50)", "square(queries=300)"])
def test_linear_targets_fall_above_the_exact_distance_and_never_below(recipe: str, norm: str) -> None:
    target = Linear.random((3, 6, 7), 2, seed=0)
    x = torch.rand(200, 3, 6, 7, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    y = target(x).argmax(1)
    exact = linear_distance(target, x, y, norm)
    ball = uf.Ball(uf.norms.NORMS[norm], float(np.median(exact)))
    attack = attacks.parse(recipe)
    if attack.unfit(x, ball, 2):
        with pytest.raises(uf.InputError):
            uf.run(attack, target.cuda(), x, y, ball)
        return
    spy = Spy(target.cuda())
    for given in (x, x.cuda()):
        spy.forward_rows = spy.backward_rows = 0
        out = uf.run(attack, spy, given, y, ball, batch_size=64)
        assert isinstance(out.x_adv, Tensor)
        forward, backward = out.padding + out.overrun
        assert out.forward.sum() + forward == spy.forward_rows
        assert out.backward.sum() + backward == spy.backward_rows
        broken = out.success.cpu().numpy()
        assert not broken[exact > ball.eps].any()
        if "square" not in recipe:
            assert broken[exact < ball.eps / 1.05].all()
        assert out.overrun[0] > 0 and bool(ball.contains(out.x_adv.cpu(), x).all())


def test_verdicts_agree_with_those_of_the_cpu_but_for_margins_within_rounding() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    x = torch.rand(100, 1, 8, 8)
    with torch.no_grad():
        y = net(x).argmax(1)
    here = uf.run("pgd(steps=20)", net, x, y, uf.linf(0.05))
    there = uf.run("pgd(steps=20)", net.cuda(), x, y, uf.linf(0.05))
    differ = [i for i, (a, b) in enumerate(zip(here.status, there.status, strict=True)) if a != b]
    assert len(differ) <= 2 and {Status.BROKEN, Status.SURVIVED} <= set(there.status)
    assert here.ids.tolist() == there.ids.tolist()


def test_recurrent_targets_in_eval_mode() -> None:
    torch.manual_seed(0)
    net = Recurrent().cuda()
    x = torch.rand(20, 6, 3)
    with torch.no_grad():
        y = net(x.cuda()).argmax(1).cpu()
    out = uf.run("apgd(steps=20)", net, x, y, uf.linf(0.3))
    assert out.success.any() and net.training


def test_real_out_of_memory_halves_the_slots() -> None:
    free, _ = torch.cuda.mem_get_info()
    rows = 16
    values = int(free / 4 / (rows // 2) * 0.7)  # eight rows fit, sixteen do not

    def hungry(x: Tensor) -> Tensor:
        held = torch.ones(len(x), values, device=x.device)
        return torch.stack([x.sum(1) * 0 + 1, x.sum(1) * held[:, 0]], 1)

    target = nn.Linear(2, 2).cuda()
    target.forward = hungry  # type: ignore[method-assign]
    x, y = torch.full((rows, 2), 0.3), torch.zeros(rows, dtype=torch.int64)
    out = uf.run("square(queries=20)", target, x, y, uf.linf(0.4), batch_size=rows)
    assert any("Out of memory" in note for note in out.notes) and out.success.all()
