"""Functions that the tests of course_lib.mini.experts run on ranks."""

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn

from course_lib import measure
from course_lib.mini import experts as mini
from course_lib.mini import hybrid

DIM, HIDDEN, EXPERTS = 8, 12, 12  # 2, 3 and 4 ranks divide the experts
ROUTINGS = {  # what is added to the scores where experts are chosen
    "as it comes": {},
    "an expert gets no token": {4: -10.0},
    "a rank gets no token": dict.fromkeys(range(6), -10.0),
    "an expert gets all of them": {7: 10.0},
}


def expert(dim: int = DIM, hidden: int = HIDDEN) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


def make(top_k: int, routing: str = "as it comes", seed: int = 0) -> tuple[mini.Router, nn.ModuleList]:
    torch.manual_seed(seed)
    router, experts = mini.Router(DIM, EXPERTS, top_k), nn.ModuleList(expert() for _ in range(EXPERTS))
    for number, bias in ROUTINGS[routing].items():
        router.bias[number] = bias
    return router.double(), experts.double()


def tokens_of(rank: int, seed: int = 1) -> Tensor:
    """Other numbers of tokens on each rank; rank 1 has none."""
    generator = torch.Generator().manual_seed(seed + rank)
    return torch.randn((5, 0, 9, 2)[rank], DIM, generator=generator, dtype=torch.float64)


def one_process(router: mini.Router, experts: nn.ModuleList, x: Tensor) -> Tensor:
    """Token by token, as it stands in the papers."""
    said, rows = router(x), []
    for number in range(len(x)):
        chosen, weights = said.chosen[number].tolist(), said.weights[number]
        rows.append(sum(weight * experts[e](x[number]) for e, weight in zip(chosen, weights)))
    return torch.stack(rows)


def apart(own: Tensor, other: Tensor) -> float:
    return float((own - other).norm() / other.norm().clamp_min(1e-12)) if other.numel() else float(len(own))


def against_one_process() -> dict[str, dict[str, float]]:
    """How far outputs and gradients are from one process, by case."""
    n = dist.get_world_size()
    return {f"{name}, k={k}": _values(name, k, None, None, n) for name in ROUTINGS for k in (1, 3)}


def experts_x_data() -> dict[str, float]:
    """The same on a mesh of 2 x 2: each expert is on two of the four ranks."""
    mesh = hybrid.make_groups({"dp": 2, "ep": 2})
    return _values("as it comes", 2, mesh["ep"], mesh["dp"], 4)


def _values(name: str, k: int, group, same_experts, n: int) -> dict[str, float]:
    router, experts = make(k, name)
    alone, rank = copy.deepcopy((router, experts)), dist.get_rank()
    # all start from what the first rank of the group has
    layer = mini.Experts(*(make(k, name) if dist.get_rank(group) == 0 else make(k, name, seed=5)), group)
    layer.router.bias.copy_(router.bias)
    xs = [tokens_of(r).requires_grad_() for r in range(n)]
    whole, count = one_process(*alone, torch.cat(xs)), sum(map(len, xs))
    (whole.square().sum() / count).backward()
    x = tokens_of(rank).requires_grad_()
    y = layer(x.view(1, *x.shape))[0]  # any dims in front
    (y.square().sum() / count * n).backward()
    mini.average_gradients(layer, None, same_experts)
    first = dist.get_rank(group) * len(layer.own)
    mine = alone[1][first : first + len(layer.own)]
    return {
        "output": apart(y.detach(), whole.detach().split([*map(len, xs)])[rank]),
        "x": apart(x.grad / n, xs[rank].grad),
        "router": apart(layer.router.linear.weight.grad, alone[0].linear.weight.grad),
        "experts": max(
            apart(p.grad, torch.zeros_like(q) if q.grad is None else q.grad)
            for p, q in zip(layer.own.parameters(), mine.parameters())
        ),
        "dropped": layer.dropped,
    }


class Even(mini.Router):
    """Sends as many tokens to each expert."""

    def forward(self, x: Tensor) -> mini.Routing:
        said, experts = super().forward(x), self.linear.out_features
        numbers = torch.arange(len(x) * self.top_k, device=x.device).view(len(x), self.top_k) % experts
        return mini.Routing(numbers, said.scores.gather(-1, numbers), said.scores)


def steps(tokens: int, dim: int, top_k: int, even: bool) -> dict[str, int]:
    """Train; returns the rows that this rank sent forward in one step, by the router's own choices."""
    torch.manual_seed(0)
    experts = [expert(dim, 2 * dim) for _ in range(EXPERTS)]
    layer = mini.Experts((Even if even else mini.Router)(dim, EXPERTS, top_k), experts)
    optimizer = torch.optim.Adam(layer.parameters())
    n, rank = dist.get_world_size(), dist.get_rank()
    x = torch.randn(tokens, dim, generator=torch.Generator().manual_seed(rank)).requires_grad_()
    for step in range(3):
        with measure.step(layer, optimizer):
            layer(x).square().mean().backward()
            if step == 1:
                there = layer.routing.chosen * n // EXPERTS
                out = torch.stack([(there == r).sum() for r in range(n)])
            optimizer.step()
            optimizer.zero_grad()
    of_all = [torch.empty_like(out) for _ in range(n)]
    dist.all_gather(of_all, out)
    elsewhere = torch.stack(of_all).fill_diagonal_(0)  # rows from each rank to each other one
    return {"there": int(elsewhere[rank].sum()), "back": int(elsewhere[:, rank].sum())}


def with_capacity(factor: float | None) -> dict:
    """What finds no room, against a count by hand; and what becomes of a token all of whose choices did."""
    router, experts = make(2, "an expert gets all of them")
    layer = mini.Experts(router, list(experts), capacity_factor=factor)
    x = torch.randn(20, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(dist.get_rank()))
    y, said = layer(x), layer.routing
    room = 10**9 if factor is None else -(-factor * 20 * 2 // EXPERTS)
    taken, expected = [0] * EXPERTS, torch.zeros_like(x)
    kept = 0
    for choice in range(2):
        for token in range(20):
            number = int(said.chosen[token, choice])
            if taken[number] < room:
                kept += 1
                expected[token] += said.weights[token, choice] * experts[number](x[token])
            taken[number] += taken[number] < room
    return {"dropped": layer.dropped, "by hand": 40 - kept, "error": apart(y.detach(), expected.detach())}


def balanced() -> dict[str, float]:
    """The loss over ranks against one process, value and gradient as the mean over the ranks; the bias."""
    rank, n = dist.get_rank(), dist.get_world_size()
    router, _ = make(2)
    alone = copy.deepcopy(router)
    xs = [torch.randn(6, DIM, generator=torch.Generator().manual_seed(r)).double() for r in range(n)]
    whole = alone(torch.cat(xs))
    counts = whole.chosen.flatten().bincount(minlength=EXPERTS).double()
    f = counts / counts.sum()
    wanted = EXPERTS * (f * whole.scores.mean(0)).sum()
    wanted.backward()
    said = router(xs[rank])
    loss = mini.balance_loss(said)
    loss.backward()
    mini.average_gradients(router)
    dist.all_reduce(mean := loss.detach().clone())
    load = mini.load_of(said)
    router.rebalance(load, 0.25)
    return {
        "loss": apart(mean / n, wanted.detach()),
        "gradient": apart(router.linear.weight.grad, alone.linear.weight.grad),
        "load": float((load != counts).sum()),
        "bias": apart(router.bias, 0.25 * (counts.mean() - counts).sign()),
    }


def refusals() -> list[str]:
    """The error of each wrong call, in words."""
    router, shared = mini.Router(DIM, 4, 2), expert()
    calls = (
        lambda: mini.Experts(mini.Router(DIM, 5), [expert() for _ in range(5)]),
        lambda: mini.Experts(router, [expert() for _ in range(6)]),
        lambda: mini.Experts(router, [shared] * 4),
        lambda: mini.Experts(router, [expert() for _ in range(4)], capacity_factor=0),
        lambda: mini.Router(DIM, 4, 5),
        lambda: mini.dispatch(torch.ones(3, DIM), torch.ones(3, 2), 4),
        lambda: mini.Experts(router, torch.ones(4)),
    )
    told = []
    for call in calls:
        try:
            call()
            told.append("nothing")
        except (TypeError, ValueError) as error:
            told.append(f"{type(error).__name__}: {error}")
    return told
