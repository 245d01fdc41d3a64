"""Nonsense for every public function, and what may be said about it. No pytest here: ranks import this."""

import traceback
from functools import partial

import torch
import torch.distributed as dist
from torch import nn

from course_lib.arguments import at_least_0, takes, whole

JUNK = [
    None,
    -1,
    0,
    1,
    3,
    1.5,
    float("nan"),
    float("inf"),
    -2.0,
    "",
    "x",
    "all_reduce",
    b"x",
    (),
    [],
    [None],
    [1, -1],
    {},
    {"a": None},
    object(),
    True,
    10**30,
    lambda: 1,
    torch.ones(2),
    int,
    "/no/such/file",
]


def judge(error: BaseException, call: str) -> str | None:
    """What is wrong with an error, or None: it must be a ValueError or TypeError, in one sentence, raised on
    purpose by this library.
    """
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1].filename
    if not isinstance(error, (ValueError, TypeError)):
        return f"{call}: {type(error).__name__}: {error}"
    if "\n" in str(error) or not str(error):
        return f"{call}: not one sentence: {error!r}"
    if "course_lib" not in last and "tests" not in last:
        return f"{call}: raised inside {last.split('/')[-1]}: {error}"
    if str(error).startswith(("<lambda>() ", "good_calls.<locals>.<lambda>() ", "int() takes")):
        return None  # the junk itself was called, and says so
    own_words = frames[-1].line and "raise" in frames[-1].line or "course_lib" not in last
    lines = "".join(frame.line or "" for frame in frames[-1:])
    return (
        None
        if own_words or lines.startswith(("raise", 'f"', '"'))
        else f"{call}: not checked, stumbled at `{frames[-1].line}`: {error}"
    )


def good_calls() -> dict:
    """For each public function of course_lib.mini that needs ranks, a call that works: the function, and a
    maker of its arguments.
    """
    from course_lib.mini import (
        compression,
        context,
        data_parallel,
        ddp,
        experts,
        hybrid,
        local_sgd,
        parameter_server,
        pipeline,
        reading,
        ring,
        tensor_parallel,
        zero,
    )
    from course_lib.models import Attention

    n, ones, everyone = dist.get_world_size(), lambda *shape: torch.ones(*shape), dist.group.WORLD
    net = lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))  # noqa: E731
    mse, schedule = nn.functional.mse_loss, pipeline.gpipe(n, 2)
    region = tensor_parallel.Region()

    # only one rank of a pipeline sees its inputs: the others would wait
    alone = [dist.new_group([rank]) for rank in range(n)][dist.get_rank()]

    chosen, routing = torch.zeros(3, 1, dtype=torch.int64), experts.Router(4, n)(ones(3, 4))
    sent = experts.dispatch(ones(3, 4), chosen, n)

    def attention():
        return dict(
            q=ones(1, 2 * n, 3, 4),
            k=ones(1, n, 3, 4),
            v=ones(1, n, 3, 4),
            causal=True,
            order="zigzag",
            time=3 * n,
            process_group=everyone,
        )

    def pipeline_step(inputs, targets):
        pipeline.Pipeline(nn.PReLU(), pipeline.gpipe(1, 2), lambda output, targets: output.sum(), alone).step(
            inputs, targets
        )

    def in_ddp(state):
        model = nn.parallel.DistributedDataParallel(net())
        model.register_comm_hook(compression.ErrorFeedback(state), compression.ddp_hook)
        model(ones(2, 4)).sum().backward()

    def gradient(**options):
        return dict(gradient=ones(4, 6), memory={}, group=everyone, **options)

    def clip(max_norm):
        model, optimizer = zero.shard(net(), 1, torch.optim.SGD, lr=0.1)
        model(ones(2, 4)).sum().backward()
        optimizer.clip_grad_norm_(max_norm)

    as_the_server = takes(updates=partial(whole, least=0), optimizer=torch.optim.Optimizer, bound=at_least_0)(
        lambda updates, optimizer, bound: None
    )

    def serve_or_work(params, updates, optimizer, bound, group):
        """Rank 0 serves and the others work; they refuse what it refuses, and nobody waits."""
        if dist.get_rank() == 0:
            return parameter_server.serve(params, updates, optimizer, bound, group)
        as_the_server(updates, optimizer, bound)
        return parameter_server.work(params, torch.ones_like, group)

    def served():
        return dict(
            params=ones(3),
            updates=3,
            optimizer=torch.optim.SGD([ones(3)]),
            bound=1.0,
            group=everyone,
        )

    return {
        "ring.all_reduce": (ring.all_reduce, lambda: dict(tensor=ones(5), group=everyone)),
        "ring.reduce_scatter": (
            ring.reduce_scatter,
            lambda: dict(output=ones(3), input=ones(3 * n), group=everyone),
        ),
        "ring.all_gather": (ring.all_gather, lambda: dict(output=ones(3 * n), input=ones(3), group=everyone)),
        "data_parallel.DataParallel": (
            data_parallel.DataParallel,
            lambda: dict(module=net(), num_replicas=2),
        ),
        "data_parallel.scatter": (data_parallel.scatter, lambda: dict(inputs=(ones(4, 2),), num_replicas=2)),
        "data_parallel.replicate": (data_parallel.replicate, lambda: dict(module=net(), num_replicas=2)),
        "data_parallel.parallel_apply": (
            data_parallel.parallel_apply,
            lambda: dict(replicas=[net()], inputs=[(ones(2, 4),)]),
        ),
        "data_parallel.gather": (data_parallel.gather, lambda: dict(outputs=[ones(2), ones(2)])),
        "data_parallel.star_reduce": (
            data_parallel.star_reduce,
            lambda: dict(tensor=ones(3), root=0, group=everyone),
        ),
        "data_parallel.star_broadcast": (
            data_parallel.star_broadcast,
            lambda: dict(tensor=ones(3), root=0, group=everyone),
        ),
        "data_parallel.star_all_reduce": (
            data_parallel.star_all_reduce,
            lambda: dict(tensor=ones(3), root=0, group=everyone),
        ),
        "ddp.DistributedDataParallel": (
            ddp.DistributedDataParallel,
            lambda: dict(module=net(), bucket_cap_mb=1.0, process_group=everyone, all_reduce=ring.all_reduce),
        ),
        "ddp.make_buckets": (
            ddp.make_buckets,
            lambda: dict(parameters=list(net().parameters()), cap_bytes=100.0),
        ),
        "zero.shard": (
            zero.shard,
            lambda: dict(
                model=net(),
                stage=2,
                optimizer_class=torch.optim.SGD,
                params=None,
                units=None,
                process_group=everyone,
            ),
        ),
        "zero.ZeroOptimizer.clip_grad_norm_": (clip, lambda: dict(max_norm=1.0)),
        "pipeline.split": (pipeline.split, lambda: dict(model=net(), num_stages=2, sizes=[1, 2])),
        "pipeline.Pipeline": (
            pipeline.Pipeline,
            lambda: dict(stages=nn.Linear(4, 4), schedule=schedule, loss_fn=mse, process_group=everyone),
        ),
        "pipeline.Pipeline.step": (pipeline_step, lambda: dict(inputs=ones(4, 4), targets=ones(4, 4))),
        "tensor_parallel.parallelize": (
            tensor_parallel.parallelize,
            lambda: dict(model=net(), group=everyone, reduce_scatter=None),
        ),
        "tensor_parallel.gather_full": (
            tensor_parallel.gather_full,
            lambda: dict(model=tensor_parallel.parallelize(net()), group=everyone),
        ),
        "tensor_parallel.copy_to_group": (
            tensor_parallel.copy_to_group,
            lambda: dict(x=ones(3), group=everyone),
        ),
        "tensor_parallel.reduce_from_group": (
            tensor_parallel.reduce_from_group,
            lambda: dict(x=ones(3), group=everyone),
        ),
        "tensor_parallel.gather_from_group": (
            tensor_parallel.gather_from_group,
            lambda: dict(x=ones(2, 3, 4), group=everyone, reduce_scatter=None),
        ),
        "tensor_parallel.reduce_scatter_to_group": (
            tensor_parallel.reduce_scatter_to_group,
            lambda: dict(x=ones(2, 2 * n, 4), group=everyone, reduce_scatter=None),
        ),
        "tensor_parallel.ColumnParallelLinear": (
            tensor_parallel.ColumnParallelLinear,
            lambda: dict(linear=nn.Linear(3, 2 * n), region=region),
        ),
        "tensor_parallel.RowParallelLinear": (
            tensor_parallel.RowParallelLinear,
            lambda: dict(linear=nn.Linear(2 * n, 3), region=region),
        ),
        "tensor_parallel.VocabParallelEmbedding": (
            tensor_parallel.VocabParallelEmbedding,
            lambda: dict(embedding=nn.Embedding(4 * n, 3), region=region),
        ),
        "tensor_parallel.vocab_parallel_cross_entropy": (
            tensor_parallel.vocab_parallel_cross_entropy,
            lambda: dict(logits=ones(2, 3), targets=torch.zeros(2, dtype=torch.int64), group=everyone),
        ),
        "tensor_parallel.ShardedDropout": (
            tensor_parallel.ShardedDropout,
            lambda: dict(p=0.5, group=everyone, seed=0),
        ),
        "tensor_parallel.Region": (
            tensor_parallel.Region,
            lambda: dict(group=everyone, sequence_parallel=False, reduce_scatter=None),
        ),
        "context.ring_attention": (context.ring_attention, attention),
        "context.ulysses_attention": (context.ulysses_attention, attention),
        "context.positions": (
            context.positions,
            lambda: dict(time=3 * n, order="zigzag", process_group=everyone),
        ),
        "context.attach": (
            context.attach,
            lambda: dict(model=Attention(4, 2), attention=context.ring_attention),
        ),
        "context.mean_of_all": (
            context.mean_of_all,
            lambda: dict(losses=ones(3), process_group=everyone),
        ),
        "experts.Router": (experts.Router, lambda: dict(dim=4, num_experts=2 * n, top_k=2)),
        "experts.Experts": (
            experts.Experts,
            lambda: dict(
                router=experts.Router(4, 2 * n),
                experts=[nn.Linear(4, 4) for _ in range(2 * n)],
                process_group=everyone,
                capacity_factor=1.0,
            ),
        ),
        "experts.dispatch": (
            experts.dispatch,
            lambda: dict(x=ones(3, 4), chosen=chosen, num_experts=n, group=everyone),
        ),
        "experts.combine": (
            experts.combine,
            lambda: dict(outputs=sent[0], weights=ones(3, 1), plan=sent[1], group=everyone),
        ),
        "experts.load_of": (experts.load_of, lambda: dict(routing=routing, group=everyone)),
        "experts.balance_loss": (experts.balance_loss, lambda: dict(routing=routing, group=everyone)),
        "experts.average_gradients": (
            experts.average_gradients,
            lambda: dict(model=net(), group=everyone, same_experts=alone),
        ),
        "compression.ErrorFeedback": (
            compression.ErrorFeedback,
            lambda: dict(method=compression.one_bit, group=everyone, feedback=True),
        ),
        "compression.ErrorFeedback.average": (
            compression.ErrorFeedback(compression.one_bit).average,
            lambda: dict(key="it", gradient=ones(4, 6)),
        ),
        "compression.rounded": (compression.rounded, lambda: gradient(dtype=torch.bfloat16)),
        "compression.top_k": (compression.top_k, lambda: gradient(share=0.1)),
        "compression.one_bit": (compression.one_bit, gradient),
        "compression.low_rank": (compression.low_rank, lambda: gradient(rank=1)),
        "compression.ddp_hook": (in_ddp, lambda: dict(state=compression.one_bit)),
        "parameter_server.serve": (serve_or_work, served),
        "parameter_server.work": (serve_or_work, served),
        "local_sgd.LocalSGD": (
            local_sgd.LocalSGD,
            lambda: dict(
                params=[ones(3)], local_steps=2, outer_lr=0.7, outer_momentum=0.9, process_group=everyone
            ),
        ),
        "local_sgd.weighted_average": (
            local_sgd.weighted_average,
            lambda: dict(params=[ones(3)], num_samples=2, group=everyone),
        ),
        "reading.Steps": (
            reading.Steps,
            lambda: dict(samples=9, batch_size=4, seed=0, rank=0, ranks=n),
        ),
        "reading.Shards": (
            reading.Shards,
            lambda: dict(sizes=[2, 3], read=lambda shard, start, stop: [], rank=0, ranks=n),
        ),
        "reading.mean_over_ranks": (
            reading.mean_over_ranks,
            lambda: dict(losses=ones(3), weights=ones(3), group=everyone),
        ),
        "reading.sample_at": (reading.sample_at, lambda: dict(place=2, samples=9, seed=0, epoch=0)),
        "hybrid.make_groups": (hybrid.make_groups, lambda: dict(sizes={"dp": n})),
    }


def call_mini(names: list[str] | None = None) -> list[str]:
    """Every good call, then with each argument in turn replaced by each piece of junk; what is wrong with
    what is said. All ranks do the same.
    """
    wrong = {}
    for name, (function, arguments) in good_calls().items():
        if names and name not in names:
            continue
        function(**arguments())
        for argument in arguments():
            for junk in JUNK:
                try:
                    function(**arguments() | {argument: junk})
                except Exception as error:
                    if told := judge(error, f"{name}({argument}={junk!r})"):
                        wrong.setdefault((name, argument, told.split(": ", 1)[1][:40]), told)
    return list(wrong.values())


def names() -> list[str]:
    return list(good_calls())
