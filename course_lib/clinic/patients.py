"""Five programs with a fault each. They are exercises: nothing here says what is wrong.

Each is called on every rank as `patient(model, optimizer, batches)`, and trains `model` in place.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

__all__ = ["PATIENTS", "LARGEST"]

LARGEST = 0.2  # of a gradient's norm, where it is clipped


def ada(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for p in model.parameters():
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
        optimizer.step()


def ben(model, optimizer, batches):
    for x, y in batches:
        loss = F.cross_entropy(model(x), y)
        if not torch.isfinite(loss):
            continue
        optimizer.zero_grad()
        loss.backward()
        for p in model.parameters():
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
        optimizer.step()


def cleo(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST)
        for p in model.parameters():
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
        optimizer.step()


def dora(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
        for p, part in zip(model.parameters(), gradient.split([p.numel() for p in model.parameters()])):
            p.grad = part.view_as(p)
        optimizer.step()


def emil(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for module in model.modules():
            for p in module.parameters(recurse=False):
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
        optimizer.step()


PATIENTS = {patient.__name__: patient for patient in (ada, ben, cleo, dora, emil)}
