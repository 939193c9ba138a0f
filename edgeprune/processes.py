"""Several processes (torchrun, SLURM) as one: each takes its part of a batch through the network, the loss sees all.

Every process makes the whole batch, forwards its part, gathers features and logits with their gradients, and states
the same loss; means of the gradients then are the gradient of one process with the whole batch. Only live batch-norm
tells the difference: it normalises by the statistics of a part, and running statistics are the parts' mean. Dropout
draws other numbers too. With one process nothing here does anything.
"""

from __future__ import annotations

import atexit
import re
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import Tensor, nn

from edgeprune.errors import MissingHere, UsageError

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def environment() -> TorchElasticEnvironment | SLURMEnvironment | None:
    """Who started this process together with others; None when it is alone."""
    kinds: tuple[type[TorchElasticEnvironment | SLURMEnvironment], ...] = (
        TorchElasticEnvironment,
        SLURMEnvironment,
    )
    for kind in kinds:
        if kind.detect() and (found := kind()).world_size() > 1:
            return found
    return None


def size() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if size() > 1 else 0


def require(device: str, precision: Any) -> None:
    """UsageError for another word than "auto" (a CUDA GPU, else the CPU), "cpu", "cuda" or "cuda:N", and for float16
    without a GPU; MissingHere without such a GPU.
    """
    if not _DEVICE.fullmatch(device):
        raise UsageError(
            f"--device {device}: expected auto, cpu, cuda or cuda:N; Apple's MPS has no float64, which is needed here"
        )
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingHere(
            f"--device {device}: torch {torch.__version__} sees no CUDA device here; take --device cpu"
        )
    if precision == "16-mixed" and (device == "cpu" or not torch.cuda.is_available()):
        raise UsageError("--amp fp16 needs a GPU; on a CPU take --amp bf16")


def fabric(device: str, precision: Any) -> Fabric:
    """The device and precision to train with, joined with the other processes if there are any.

    Errors of `require`; UsageError for "cuda:N" in several processes, which take one GPU each.
    """
    require(device, precision)
    if device == "auto":  # lightning-fabric's own would take MPS
        device = "cuda" if torch.cuda.is_available() else "cpu"
    accelerator, _, index = device.partition(":")
    together = environment()
    if together is None:
        devices: Any = [int(index)] if index else 1
        return Fabric(accelerator=accelerator, devices=devices, precision=precision)
    if index:
        raise UsageError(
            f"--device {device}: {together.world_size()} processes take a GPU each; say --device cuda"
        )
    here = _local_size(together)
    nodes = together.world_size() // here
    made = Fabric(
        accelerator=accelerator,
        strategy="ddp",
        devices=here,
        num_nodes=nodes,
        precision=precision,
        plugins=[together],
    )
    if not dist.is_initialized():
        atexit.register(_leave)  # before the launch, whose own leaving of NCCL's group then comes first
    made.launch()
    return made


def _leave() -> None:
    """Gloo's threads must end before the interpreter does, which else aborts now and then."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _local_size(together: TorchElasticEnvironment | SLURMEnvironment) -> int:
    import os

    if isinstance(together, TorchElasticEnvironment):
        return int(os.environ["LOCAL_WORLD_SIZE"])
    return together.world_size() // int(os.environ.get("SLURM_NNODES", "1"))


def divided(batch: int) -> int:
    """The largest batch of at most `batch` images that all processes share evenly; UsageError when there is none."""
    if batch < size():
        raise UsageError(f"a batch of {batch} images in {size()} processes: expected one image each at least")
    return batch - batch % size()


def part(batch: Tensor) -> Tensor:
    """This process's rows of a batch (B, ...): (B / size, ...)."""
    each = len(batch) // size()
    return batch if size() == 1 else batch[rank() * each : (rank() + 1) * each]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        summed = grads[0].contiguous().clone()
        dist.all_reduce(summed)
        return part(summed)


def gathered(x: Tensor) -> Tensor:
    """The rows (B, ...) of all processes, from this one's (B / size, ...), in their order.

    The gradient is the sum of what all processes' losses say; `mean_gradients` makes a mean of it.
    """
    if size() == 1:
        return x
    out: Tensor = _Gather.apply(x)
    return out


def mean_gradients(network: nn.Module, objective: nn.Module) -> None:
    """Make each parameter's gradient, and each floating-point buffer of the network, the mean over the processes.

    In place. An objective's buffers follow from features and logits of all processes, so they are alike already; they
    may be banks as large as the target.
    """
    if size() == 1:
        return
    tensors = [p.grad for m in (network, objective) for p in m.parameters() if p.grad is not None]
    tensors += [b for b in network.buffers() if b.is_floating_point()]
    flat = torch.cat([t.detach().float().flatten() for t in tensors])
    dist.all_reduce(flat)
    flat /= size()
    place = 0
    for tensor in tensors:
        tensor.copy_(flat[place : place + tensor.numel()].view_as(tensor))
        place += tensor.numel()


def alike(*modules: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if size() > 1:
        for module in modules:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)
