"""Checks of the chapter "Long context": softmaxes in parts, attention to a window, packed documents that are
dealt out evenly, and Ulysses with fewer heads of keys than ranks.
"""

import itertools
import random
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch.nn import functional as F

from course_lib import measure
from course_lib.check import on_rank
from course_lib.check.judge import Judge, exercise
from course_lib.check.rubric import collectives, fact, sends, values
from course_lib.record import Job

__all__ = ["softmax_merge", "window_ring", "packed_documents", "ulysses_few_heads"]

LOUD = 1e5  # scores of which no exponential is a number
OWN, WIDE = 12, 64  # tokens of a rank, and numbers of a head
HEADS = 8
EVEN = 0.01  # of the mean, in pairs of query and key
DRAWN = 12  # packed sequences


@exercise(
    values=values(
        "the triple of both parts together",
        "the triple is not that of both parts together (relative error {error:.2g}).",
        "calm",
    ),
    loud=values(
        "and with scores from -1e5 to 1e5",
        "with scores from -1e5 to 1e5 it is not (relative error {error:.2g}).",
        "loud",
        advice=(
            "exp() of a large number is infinite, and of a small one 0. Take exp() of differences to the new"
            " `most` alone, which are never above 0."
        ),
        after=("values",),
    ),
    unseen=fact("a query without a key keeps finite numbers, in one part or in both", "unseen"),
    untouched=fact("the triples that it was given stay as they are", "untouched"),
)
def softmax_merge(judge: Judge, answer: Callable) -> None:
    """`answer(a, b)` merges two triples (most, total, acc) of softmaxes over parts of the keys."""

    def merge(answer, seed):
        on_rank.use_cpu()
        draw = torch.Generator().manual_seed(seed)

        def triple(scores, values):
            most = scores.max(-1, keepdim=True).values
            p = (scores - most.clamp_min(-1e300)).exp()
            return most, p.sum(-1, keepdim=True), p @ values

        def case(size, hidden=()):
            scores = [torch.randn(2, 6, keys, generator=draw, dtype=torch.float64) * size for keys in (5, 3)]
            for part, queries in hidden:
                scores[part][:, queries] = -torch.inf
            content = [torch.randn(2, keys, 4, generator=draw, dtype=torch.float64) for keys in (5, 3)]
            both = triple(torch.cat(scores, -1), torch.cat(content, -2))
            parts = [triple(*part) for part in zip(scores, content)]
            return parts, both

        told = {"calm": 0.0, "loud": 0.0, "unseen": "", "untouched": "", "looks": ""}
        hidden = [(0, slice(0, 2)), (1, slice(1, 4))]  # query 1 sees nothing at all
        for name, (parts, wanted) in {
            "calm": case(1.0),
            "loud": case(LOUD),
            "unseen": case(1.0, hidden),
        }.items():
            given = [[tensor.clone() for tensor in part] for part in parts]
            found = answer(*(tuple(part) for part in given))
            fits = isinstance(found, (tuple, list)) and len(found) == 3
            if not fits or any(
                not isinstance(one, torch.Tensor) or one.shape != two.shape for one, two in zip(found, wanted)
            ):
                return {
                    "problem": (
                        "`merge_parts` must return three tensors, [..., 1], [..., 1] and [..., dim], as those"
                        " that it was given"
                    )
                }
            if not all(torch.equal(*pair) for a, b in zip(given, parts) for pair in zip(a, b)):
                told["untouched"] = "it changes the tensors that it was given: others may still need them."
            errors = [on_rank.apart(one, two) for one, two in zip(found[1:], wanted[1:])]
            if not torch.equal(found[0], wanted[0]):
                errors.append(1.0)
            if name != "unseen":
                told[name] = max(errors)
            elif not all(torch.isfinite(one).all() for one in found[1:]):
                told["unseen"] = (
                    "where a query saw no key, `total` or `acc` is no number: -inf minus -inf is none."
                )
            elif max(errors) > 1e-9:
                told["unseen"] = "where a query saw no key in one of the parts, the triple is wrong."
            if name == "calm":
                added = on_rank.flat([parts[0][1] + parts[1][1], parts[0][2] + parts[1][2]])
                told["looks"] = on_rank.looks(
                    on_rank.flat(found[1:]),
                    {
                        "the sum of both, as they are: each counts from a `most` of its own, and must first"
                        " be scaled to the new one": added
                    },
                )
        return told

    judge.tried("", merge, answer, judge.seed, ranks=1)


def _one_window(job: Job) -> float:
    """Bytes of a rank's keys and values."""
    return 2 * 8 * 2 * OWN * WIDE


@exercise(
    values=values(
        "the output of one process, for a window of 1 to own + 1 tokens",
        "the output is not that of one process (relative error {error:.2g}).",
    ),
    late=values(
        "and where a rank comes late",
        f"the output is {on_rank.NOT_WAITED} (relative error {{error:.2g}}).",
        "late",
        advice=" ",
        after=("values",),
    ),
    bytes=sends(
        "a rank's own keys and values",
        _one_window,
        "rank {rank} sends {times:.2f} times its own keys and values. A window reaches into the tokens of one"
        " other rank, the one before: nobody else needs them.",
    ),
)
def window_ring(judge: Judge, answer: Callable) -> None:
    """`answer(q, k, v, window)` gives what each token gets from the last `window` tokens, itself included."""

    def attend(answer, seed):
        on_rank.use_cpu()
        rank, n = dist.get_rank(), dist.get_world_size()
        draw = torch.Generator().manual_seed(on_rank.private_seed())
        windows = [random.Random(seed).randint(2, OWN - 1), OWN + 1, 1, OWN]
        told = {"error": 0.0, "late": 0.0, "looks": ""}
        for number, window in enumerate(windows):
            given = [torch.randn(2, OWN, WIDE, generator=draw, dtype=torch.float64) for _ in range(3)]
            late = number == 3
            dist.barrier()
            if late and rank == seed % n:
                on_rank.come_late("window")
            with measure.step() if not late else torch.enable_grad():
                out = answer(*(tensor.clone() for tensor in given), window)
            problem = ""
            if not isinstance(out, torch.Tensor) or out.shape != given[0].shape:
                shown = list(out.shape) if isinstance(out, torch.Tensor) else on_rank.short(out)
                problem = (
                    f"`window_attention` must return a tensor of shape {list(given[0].shape)}, not {shown}"
                )
            kept = out.detach().clone() if not problem else None
            if late:
                on_rank.is_back("window")
            if problem := on_rank.first_problem(problem):
                return {"problem": problem}
            q, k, v = (torch.cat(on_rank.everyone(tensor), 1) for tensor in given)
            mine = slice(rank * OWN, (rank + 1) * OWN)

            def of(window, first=0, q=q, k=k, v=v, mine=mine):
                back = torch.arange(len(q[0]))[:, None] - torch.arange(len(q[0]))
                seen = (back >= 0) & (back < window) & (torch.arange(len(q[0])) >= first)
                return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)[:, mine]

            error = on_rank.apart(kept, of(window))
            told["late" if late else "error"] = max(told["late" if late else "error"], error)
            if error > 1e-9 and not told["looks"]:
                guesses = {
                    "that of a rank's own keys alone: its first tokens see those of the rank before": of(
                        window, rank * OWN
                    ),
                    "that of a window longer by one: a token counts itself": of(window + 1),
                    "that of a window shorter by one: a token counts itself": of(max(window - 1, 1)),
                    "that of all tokens before, without a window": of(n * OWN),
                }
                told["looks"] = on_rank.looks(kept, guesses, 1e-9)
        told["looks"] = next(filter(None, on_rank.everyone(told["looks"])), "")
        return told

    for ranks in (3, 2, 4):
        if not judge.tried(f"{ranks} ranks", attend, answer, judge.seed, ranks=ranks):
            return


def _packed(draw: random.Random) -> tuple[list[int], int]:
    ranks = draw.choice((2, 3, 4, 8))
    return [2 * ranks * draw.choice((1, 2, 5, 12, 40)) for _ in range(draw.randint(1, 6))], ranks


def _rows_of(positions: Sequence[int], edges: Sequence[tuple[int, int]]) -> int:
    """The most rows of neighbours that a rank has of one document."""
    rows = [0]
    for begin, end in edges:
        own = [position for position in positions if begin <= position < end]
        rows.append(sum(1 for a, b in zip([begin - 2, *own], own) if b != a + 1))
    return max(rows)


@exercise(
    once="each position is on one rank, in ascending order",
    tokens="all ranks have the same number of tokens",
    pairs=f"the pairs of query and key on a rank are within {EVEN:.0%} of the mean",
    rows="no rank has more than two rows of neighbours of a document",
)
def packed_documents(judge: Judge, answer: Callable) -> None:
    """`answer(documents, ranks)` deals out positions so that all ranks have the same work, if a token sees
    its own document alone.
    """
    draw = random.Random(judge.seed)
    cases = [([64], 4), ([8, 120], 4), ([48, 12, 6, 6], 3), *(_packed(draw) for _ in range(DRAWN))]
    for (documents, ranks), found in zip(cases, judge.call(answer, cases)):
        judge.case = f"documents of {on_rank.short(on_rank.listed(documents), 40)} tokens on {ranks} ranks"
        total = sum(documents)
        if not isinstance(found, (list, tuple)) or len(found) != ranks:
            judge.refuse("`deal_out` must return a list with the positions of each rank")
        found = on_rank.plain(list(found))
        if not all(isinstance(its, (list, range)) for its in found):
            judge.refuse(f"a rank's positions must be a list of whole numbers, not {on_rank.short(found[0])}")
        places = [[on_rank.whole(position) for position in its] for its in found]
        flat = list(itertools.chain(*places))
        if None in flat or sorted(flat) != list(range(total)):
            judge.demand("once", f"the positions are not 0 to {total - 1}, each on one rank")
            return
        edges = list(zip(itertools.accumulate(documents, initial=0), itertools.accumulate(documents)))
        seen = [position - begin + 1 for begin, end in edges for position in range(begin, end)]
        pairs = [sum(seen[position] for position in its) for its in places]
        mean, lengths = sum(pairs) / ranks, [len(its) for its in places]
        worst = max(pairs, key=lambda its: abs(its - mean))
        rows = max(_rows_of(sorted(its), edges) for its in places)
        met = {
            "once": ""
            if all(its == sorted(its) for its in places)
            else "a rank's positions are not in order",
            "tokens": "" if len(set(lengths)) == 1 else f"the ranks have {on_rank.listed(lengths)} tokens",
            "pairs": ""
            if abs(worst - mean) <= EVEN * mean
            else f"the ranks have {on_rank.listed(pairs)} pairs: some would wait for the others. A token late"
            " in its document has many keys, wherever the document stands in the sequence",
            "rows": ""
            if rows <= 2
            else f"a rank has {rows} rows of one document: kernels want few and long ones",
        }
        if any(met.values()):
            for key, missed in met.items():
                judge.demand(key, missed)
            return
    judge.case = ""
    for key in ("once", "tokens", "pairs", "rows"):
        judge.demand(key, "")


KEY_HEADS = {4: 2, 2: 1}  # by the number of ranks


def _few_heads_bytes(job: Job) -> float:
    """An all_to_all of queries and one of outputs; and one head of keys and of values to each other rank."""
    head = 8 * OWN * WIDE
    return (job.ranks - 1) / job.ranks * 2 * (HEADS + job.ranks) * head


@exercise(
    values=values(
        "the output of one process, under a causal mask",
        "the output is not that of one process (relative error {error:.2g}).",
    ),
    late=values(
        "and where a rank comes late",
        f"the output is {on_rank.NOT_WAITED} (relative error {{error:.2g}}).",
        "late",
        advice=" ",
        after=("values",),
    ),
    turns=collectives(
        "all ranks send at the same time: no broadcast, gather or scatter",
        lambda ops: not ops["broadcast"] + ops["gather"] + ops["scatter"] + ops["reduce"],
        "you used {used}. Where one rank is the root, the ranks take turns; an all_to_all has none.",
    ),
    bytes=sends(
        "(n-1)/n (2 Q/n + 2 n K1)",
        _few_heads_bytes,
        "rank {rank} sends {times:.2f} times (n-1)/n (2 Q/n + 2 n K1) = {limit:,.0f} bytes. Each other rank"
        " needs some heads of queries, one head of keys and one of values.",
        lambda job: (
            " An all_gather sends all heads to all."
            if (job.comm["op"] == "all_gather").any()
            else " Does a head of keys travel once for each head of queries?"
        ),
    ),
)
def ulysses_few_heads(judge: Judge, answer: Callable) -> None:
    """`answer(q, k, v)`: Ulysses where several ranks use the same head of keys."""

    def attend(answer, seed, key_heads):
        on_rank.use_cpu()
        rank, n = dist.get_rank(), dist.get_world_size()
        draw = torch.Generator().manual_seed(on_rank.private_seed())
        told = {"error": 0.0, "late": 0.0, "looks": ""}
        for number in range(4):
            given = [
                torch.randn(heads, OWN, WIDE, generator=draw, dtype=torch.float64)
                for heads in (HEADS, key_heads, key_heads)
            ]
            late = number == 3
            dist.barrier()
            if late and rank == seed % n:
                on_rank.come_late("heads")
            with measure.step() if not late else torch.enable_grad():
                out = answer(*(tensor.clone() for tensor in given))
            problem = ""
            if not isinstance(out, torch.Tensor) or out.shape != given[0].shape:
                shown = list(out.shape) if isinstance(out, torch.Tensor) else on_rank.short(out)
                problem = f"`few_key_heads` must return a tensor of shape {list(given[0].shape)}, not {shown}"
            kept = out.detach().clone() if not problem else None
            if late:
                on_rank.is_back("heads")
            if problem := on_rank.first_problem(problem):
                return {"problem": problem}
            q, k, v = (torch.cat(on_rank.everyone(tensor), 1) for tensor in given)
            mine = slice(rank * OWN, (rank + 1) * OWN)

            def of(k, v, causal=True, q=q, mine=mine):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal)[:, mine]

            each = HEADS // key_heads
            right = [x.repeat_interleave(each, 0) for x in (k, v)]
            error = on_rank.apart(kept, of(*right))
            told["late" if late else "error"] = max(told["late" if late else "error"], error)
            if error > 1e-9 and not told["looks"]:
                turns = [x.repeat(n // key_heads, 1, 1).repeat_interleave(HEADS // n, 0) for x in (k, v)]
                other = "that of other pairs: query heads i * heads / key heads and following use key head i"
                guesses = {
                    "that without a causal mask": of(*right, causal=False),
                    other: of(*turns),
                }
                told["looks"] = on_rank.looks(kept, guesses, 1e-9)
        told["looks"] = next(filter(None, on_rank.everyone(told["looks"])), "")
        return told

    for ranks, key_heads in KEY_HEADS.items():
        if not judge.tried(f"{ranks} ranks", attend, answer, judge.seed, key_heads, ranks=ranks):
            return
