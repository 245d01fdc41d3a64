"""Answers to the exercises of "DDP in practice", right and wrong. They stand here, and not in a test file, so
that a rank need not import pytest.
"""

import io
import os
import time
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, Subset


def stub(*arguments):
    raise NotImplementedError


# evaluate(model, data, batch_size)


@torch.no_grad()
def counts(model, loader):
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    found = torch.zeros(2, dtype=torch.int64)
    for images, labels in loader:
        found += torch.tensor([(model(images).argmax(dim=1) == labels).sum(), len(labels)])
    for module, training in modes:
        module.training = training
    return found


def own_part(data):
    return Subset(data, range(dist.get_rank(), len(data), dist.get_world_size()))


def evaluate(model, data, batch_size):
    found = counts(model, DataLoader(own_part(data), batch_size))
    dist.all_reduce(found)
    return (found[0] / found[1]).item()


def evaluate_by_objects(model, data, batch_size):
    """Right as well: contiguous parts, floats, and objects in the place of tensors."""
    n, rank = dist.get_world_size(), dist.get_rank()
    part = range(len(data) * rank // n, len(data) * (rank + 1) // n)
    right, counted = counts(model, DataLoader(Subset(data, part), batch_size)).tolist()
    print("right", right, "of", counted)
    everyone = [None] * n
    dist.all_gather_object(everyone, (right, counted))
    return sum(right for right, _ in everyone) / sum(counted for _, counted in everyone)


def evaluate_padded(model, data, batch_size):
    found = counts(model, DataLoader(data, batch_size, sampler=DistributedSampler(data, shuffle=False)))
    dist.all_reduce(found)
    return (found[0] / found[1]).item()


def evaluate_dropping(model, data, batch_size):
    sampler = DistributedSampler(data, shuffle=False, drop_last=True)
    found = counts(model, DataLoader(data, batch_size, sampler=sampler)).double()
    dist.all_reduce(found)
    return (found[0] / found[1].clamp(min=1)).item()


def evaluate_mean_of_means(model, data, batch_size):
    right, counted = counts(model, DataLoader(own_part(data), batch_size))
    mean = right / counted.clamp(min=1)
    dist.all_reduce(mean)
    return mean.item() / dist.get_world_size()


def evaluate_everything(model, data, batch_size):
    right, counted = counts(model, DataLoader(data, batch_size))
    return (right / counted).item()


def evaluate_on_rank_0(model, data, batch_size):
    found = torch.zeros(2, dtype=torch.int64)
    if dist.get_rank() == 0:
        found = counts(model, DataLoader(data, batch_size))
    dist.broadcast(found, src=0)
    return (found[0] / found[1]).item()


def evaluate_while_training(model, data, batch_size):
    found = torch.zeros(2, dtype=torch.int64)
    for images, labels in DataLoader(own_part(data), batch_size):
        found += torch.tensor([(model(images).argmax(dim=1) == labels).sum(), len(labels)])
    dist.all_reduce(found)
    return (found[0] / found[1]).item()


def evaluate_with_a_graph(model, data, batch_size):
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    answer = evaluate_while_training(model, data, batch_size)
    for module, training in modes:
        module.training = training
    return answer


def evaluate_and_train_all(model, data, batch_size):
    answer = evaluate(model, data, batch_size)
    model.train()
    return answer


def evaluate_at_once(model, data, batch_size):
    return evaluate(model, data, len(data))


def evaluate_by_scores(model, data, batch_size):
    """The scores of all ranks travel to all ranks."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        own = [(model(images), labels) for images, labels in DataLoader(own_part(data), batch_size)]
    for module, training in modes:
        module.training = training
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    pairs = [pair for own in everyone for pair in own]
    return sum((s.argmax(1) == y).sum().item() for s, y in pairs) / sum(len(y) for _, y in pairs)


def evaluate_own_part(model, data, batch_size):
    right, counted = counts(model, DataLoader(own_part(data), batch_size))
    return (right / counted.clamp(min=1)).item()


def evaluate_does_not_wait(model, data, batch_size):
    found = counts(model, DataLoader(own_part(data), batch_size))
    dist.all_reduce(found, async_op=True)
    return (found[0] / found[1].clamp(min=1)).item()


def evaluate_prints(model, data, batch_size):
    print("accuracy", evaluate(model, data, batch_size))


# update(ddp, optimizer, micro_batches)


def token_count(micro_batches):
    return sum((targets != -100).sum() for _, targets in micro_batches)


def token_loss(ddp, tokens, targets, reduction="sum"):
    return F.cross_entropy(ddp(tokens).flatten(0, 1), targets.flatten(), reduction=reduction)


def update_with(ddp, optimizer, micro_batches, divisor):
    optimizer.zero_grad()
    for number, (tokens, targets) in enumerate(micro_batches):
        with nullcontext() if number == len(micro_batches) - 1 else ddp.no_sync():
            (token_loss(ddp, tokens, targets) / divisor).backward()
    optimizer.step()


def update(ddp, optimizer, micro_batches):
    total = token_count(micro_batches)
    dist.all_reduce(total)
    update_with(ddp, optimizer, micro_batches, total / dist.get_world_size())


def update_scales_gradients(ddp, optimizer, micro_batches):
    """Right as well: sums, and the count comes at the end."""
    total = token_count(micro_batches).double()
    ddp.zero_grad()
    *first, (tokens, targets) = micro_batches
    with ddp.no_sync():
        for pair in first:
            token_loss(ddp, *pair).backward()
    work = dist.all_reduce(total, async_op=True)
    token_loss(ddp, tokens, targets).backward()
    work.wait()
    for p in ddp.parameters():
        p.grad *= dist.get_world_size() / total
    optimizer.step()


def update_own_tokens(ddp, optimizer, micro_batches):
    update_with(ddp, optimizer, micro_batches, token_count(micro_batches))


def update_divides_twice(ddp, optimizer, micro_batches):
    total = token_count(micro_batches)
    dist.all_reduce(total)
    update_with(ddp, optimizer, micro_batches, total)


def update_plain_mean(ddp, optimizer, micro_batches):
    optimizer.zero_grad()
    for number, (tokens, targets) in enumerate(micro_batches):
        with nullcontext() if number == len(micro_batches) - 1 else ddp.no_sync():
            (token_loss(ddp, tokens, targets, "mean") / len(micro_batches)).backward()
    optimizer.step()


def update_mean_of_means(ddp, optimizer, micro_batches):
    optimizer.zero_grad()
    for number, (tokens, targets) in enumerate(micro_batches):
        with nullcontext() if number == len(micro_batches) - 1 else ddp.no_sync():
            loss = token_loss(ddp, tokens, targets) / (targets != -100).sum().clamp(min=1)
            (loss / len(micro_batches)).backward()
    optimizer.step()


def update_every_time(ddp, optimizer, micro_batches):
    total = token_count(micro_batches)
    dist.all_reduce(total)
    optimizer.zero_grad()
    for tokens, targets in micro_batches:
        (token_loss(ddp, tokens, targets) * dist.get_world_size() / total).backward()
    optimizer.step()


def update_joined(ddp, optimizer, micro_batches):
    tokens, targets = (torch.cat(part) for part in zip(*micro_batches))
    update(ddp, optimizer, [(tokens, targets)])


def update_count_does_not_wait(ddp, optimizer, micro_batches):
    total = token_count(micro_batches)
    dist.all_reduce(total, async_op=True)
    update_with(ddp, optimizer, micro_batches, total.clone() / dist.get_world_size())


# save(path, ddp, optimizer, step) and load(path, ddp, optimizer)


def save(path, ddp, optimizer, step):
    if dist.get_rank() == 0:
        torch.save(
            {"model": ddp.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path
        )
    dist.barrier()


def load(path, ddp, optimizer):
    content = torch.load(path, map_location="cpu", weights_only=True)
    ddp.module.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return content["step"]


def content_of(ddp, optimizer, step):
    return {"model": ddp.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}


def save_by_a_buffer(path, ddp, optimizer, step):
    """Right as well: into memory first, and a sum over all ranks is waited for."""
    if dist.get_rank() == 0:
        buffer = io.BytesIO()
        torch.save(content_of(ddp, optimizer, step), buffer)
        with open(path, "wb") as file:
            file.write(buffer.getvalue())
    dist.all_reduce(torch.zeros(1))


def save_beside_and_rename(path, ddp, optimizer, step):
    """Right as well: a file that is killed half way harms nobody; and the others get a word."""
    if dist.get_rank() == 0:
        torch.save(content_of(ddp, optimizer, step), f"{path}.new")
        os.replace(f"{path}.new", path)
    dist.broadcast_object_list(["done" if dist.get_rank() == 0 else None], src=0)


def save_others_sleep(path, ddp, optimizer, step):
    if dist.get_rank() == 0:
        torch.save(content_of(ddp, optimizer, step), path)
    else:
        time.sleep(1.0)


def save_others_look_for_the_file(path, ddp, optimizer, step):
    """The file comes into being complete; but there may be an old one."""
    if dist.get_rank() == 0:
        torch.save(content_of(ddp, optimizer, step), f"{path}.new")
        os.replace(f"{path}.new", path)
    while not os.path.exists(path):
        pass


def save_renames_after_the_barrier(path, ddp, optimizer, step):
    if dist.get_rank() == 0:
        torch.save(content_of(ddp, optimizer, step), f"{path}.new")
    dist.barrier()
    if dist.get_rank() == 0:
        os.replace(f"{path}.new", path)


def save_writes_after_the_barrier(path, ddp, optimizer, step):
    buffer = io.BytesIO()
    if dist.get_rank() == 0:
        torch.save(content_of(ddp, optimizer, step), buffer)
    dist.barrier()
    if dist.get_rank() == 0:
        with open(path, "wb") as file:
            file.write(buffer.getvalue())


def save_and_forget(path, ddp, optimizer, step):
    """Frees the moments, which are in the file."""
    save(path, ddp, optimizer, step)
    for state in optimizer.state.values():
        state["exp_avg"].zero_()


def save_without_buffers(path, ddp, optimizer, step):
    if dist.get_rank() == 0:
        torch.save(
            {"model": dict(ddp.module.named_parameters()), "optimizer": optimizer.state_dict(), "step": step},
            path,
        )
    dist.barrier()


def save_in_bfloat16(path, ddp, optimizer, step):
    """Half the bytes, and the last digits are gone."""
    if dist.get_rank() == 0:
        small = {name: tensor.bfloat16() for name, tensor in ddp.module.state_dict().items()}
        torch.save({"model": small, "optimizer": optimizer.state_dict(), "step": step}, path)
    dist.barrier()


def load_of_bytes(path, ddp, optimizer):
    """Right as well: one rank reads, all get the bytes; and the step is a tensor."""
    data = [open(path, "rb").read() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(data, src=0)
    content = torch.load(io.BytesIO(data[0]), "cpu", weights_only=True)
    ddp.module.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return torch.tensor(content["step"])


def load_moments_only(path, ddp, optimizer):
    """The rate is not restored."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    ddp.module.load_state_dict(content["model"])
    optimizer.load_state_dict(
        {"state": content["optimizer"]["state"], "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return content["step"]


def load_says_three(path, ddp, optimizer):
    load(path, ddp, optimizer)
    return 3


def save_on_every_rank(path, ddp, optimizer, step):
    own = f"{path}.{dist.get_rank()}"  # so that it succeeds, by luck, in the test
    torch.save({"model": ddp.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, own)
    os.replace(own, path)
    dist.barrier()


def save_without_barrier(path, ddp, optimizer, step):
    if dist.get_rank() == 0:
        torch.save(
            {"model": ddp.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path
        )


def save_and_close_late(path, ddp, optimizer, step):
    """Without a barrier, and the file is there before anything is in it."""
    if dist.get_rank() == 0:
        with open(path, "wb") as file:
            torch.save(
                {"model": ddp.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, file
            )
    else:
        while not os.path.exists(path):
            pass


def save_barrier_first(path, ddp, optimizer, step):
    dist.barrier()
    save_without_barrier(path, ddp, optimizer, step)


def save_wrapped(path, ddp, optimizer, step):
    if dist.get_rank() == 0:
        torch.save({"model": ddp.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path)
    dist.barrier()


def save_the_model_itself(path, ddp, optimizer, step):
    if dist.get_rank() == 0:
        torch.save({"model": ddp.module, "optimizer": optimizer.state_dict(), "step": step}, path)
    dist.barrier()


def save_other_keys(path, ddp, optimizer, step):
    if dist.get_rank() == 0:
        torch.save({"weights": ddp.module.state_dict(), "step": step}, path)
    dist.barrier()


def load_and_broadcast(path, ddp, optimizer):
    """Right as well: rank 0 reads, and sends to the others."""
    content = [torch.load(path, map_location="cpu", weights_only=True) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(content, src=0)
    ddp.module.load_state_dict(content[0]["model"])
    optimizer.load_state_dict(content[0]["optimizer"])
    return content[0]["step"]


def load_without_return(path, ddp, optimizer):
    load(path, ddp, optimizer)


def load_with_code(path, ddp, optimizer):
    content = torch.load(path, map_location="cpu", weights_only=False)
    ddp.module.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return content["step"]


def load_without_map_location(path, ddp, optimizer):
    content = torch.load(path, weights_only=True)
    ddp.module.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return content["step"]


def load_model_only(path, ddp, optimizer):
    content = torch.load(path, map_location="cpu", weights_only=True)
    ddp.module.load_state_dict(content["model"])
    return content["step"]


def load_on_rank_0(path, ddp, optimizer):
    content = torch.load(path, map_location="cpu", weights_only=True)
    if dist.get_rank() == 0:
        ddp.module.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    return content["step"]
