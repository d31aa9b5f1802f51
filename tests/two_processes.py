"""Trains every module and network in two processes: what one of them runs."""

import json
import os
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from inserted import INSERTED
from uses import MODULE_COLUMNS, NETWORK_COLUMNS, OLD_TORCH


@contextmanager
def two_processes(rank, folder):
    """What one of two processes does as a member of their group. Nothing runs after it."""
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    yield
    dist.barrier()  # who leaves early cuts the other's connection
    dist.destroy_process_group()
    os._exit(0)  # an interpreter that ends in the usual way meets gloo's threads, now and then


def run(rank, folder):
    """Writes to the folder what went wrong, for each way and each module."""
    found = {"DDP": {}, "FSDP2": {}}
    with two_processes(rank, folder):
        for subject in MODULE_COLUMNS + NETWORK_COLUMNS + [*INSERTED]:
            by_ddp, found["DDP"][subject.name] = attempt(trained_by_ddp, subject, rank)
            by_fsdp, found["FSDP2"][subject.name] = attempt(trained_by_fsdp, subject, rank)
            # FSDP2 of torch 2.8 adds up the gradients where gloo's processes should average them.
            if by_ddp and by_fsdp and not OLD_TORCH:
                close = torch.testing.assert_close
                _, found["FSDP2"][subject.name] = attempt(close, by_fsdp, by_ddp)
        (folder / f"{rank}.json").write_text(json.dumps(found))


def attempt(function, *arguments):
    """The result and no error, or no result and the error."""
    try:
        return function(*arguments), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def two_steps(model, subject, rank):
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for step in range(2):
        x = subject.example(b=4)[2 * rank : 2 * rank + 2] + step
        model.train()(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def trained_by_ddp(subject, rank):
    module = subject.build()
    before = [p.detach().clone() for p in module.parameters()]
    two_steps(DistributedDataParallel(module, broadcast_buffers=False), subject, rank)
    state = {name: p.detach() for name, p in module.named_parameters()}
    assert any(not torch.equal(p, q) for p, q in zip(before, module.parameters(), strict=True))
    for parameter in state.values():
        others = parameter.clone()
        dist.broadcast(others, 0)
        torch.testing.assert_close(parameter, others, rtol=0, atol=0)
    return state


def trained_by_fsdp(subject, rank):
    module = subject.build()
    mesh = init_device_mesh("cpu", (2,))
    for part in [*parts(module), module]:
        fully_shard(part, mesh=mesh)
    two_steps(module, subject, rank)
    return {name: p.full_tensor().detach() for name, p in module.named_parameters()}


def parts(module):
    """The sub-modules that have parameters; a list of modules stands for what it holds."""
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            yield from parts(child)
        elif list(child.parameters()):
            yield child


def reports(folder):
    """What both processes found: the first error of each."""
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    return {
        way: {name: error or second[way][name] for name, error in first[way].items()}
        for way in first
    }
