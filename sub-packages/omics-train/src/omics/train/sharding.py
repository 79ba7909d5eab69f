"""FSDP2: each process holds a share of the weights, gradients and moments (`trainer.strategy=fsdp`).

Rajbhandari et al. 2020, "ZeRO"; Zhao et al. 2023, "PyTorch FSDP". The work is done by torch's
`fully_shard`, through Lightning.

- Each block of the encoder is gathered before it computes and let go after it; embeddings and heads
  are one unit around them.
- Checkpoints and bundles hold whole tensors: nothing on disk knows how many processes there were.
- Processes must call the same blocks equally often. The loader gives all of them as many batches; one
  that has no cell left computes with a cell whose loss counts nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed.tensor import DTensor, distribute_tensor

from omics.data.errors import ConfigError, nearest
from omics.train.label_columns import label_columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh

    from omics.models import OmicsModel
    from omics.train.run_config import RunConfig

DDP, FSDP = "ddp", "fsdp"
STRATEGIES = (DDP, FSDP)
_PRECISIONS = ("32-true", "bf16-mixed")


def check_strategy(config: RunConfig) -> None:
    """Refuse a strategy that there is not, or that does not go with other settings.

    Args:
        config: of the run.

    Raises:
        ConfigError: naming the setting.
    """
    trainer = config.trainer
    if trainer.strategy not in STRATEGIES:
        raise ConfigError(
            f"trainer.strategy is {trainer.strategy!r}.{nearest(trainer.strategy, STRATEGIES)}"
        )
    if trainer.strategy != FSDP:
        return
    if trainer.devices * trainer.num_nodes == 1:
        raise ConfigError(
            "trainer.strategy=fsdp gives each process a share of the model, and there is one process: "
            "raise trainer.devices, or leave it out."
        )
    steps = [each for each in label_columns(config.label_columns) if each.reversal_head_steps > 1]
    frozen = [each.field_name for each in config.fields if each.freeze_vectors]
    reasons = {
        "reversal_head_steps (steps of a head alone, which are taken on whole weights)": bool(
            steps
        ),
        "trainer.lora.r (adapters are small: ddp suits them)": trainer.lora.r > 0,
        f"freeze_vectors of {frozen} (rows of a table are in several shares)": bool(frozen),
        f"trainer.precision={trainer.precision} (it works with {' and '.join(_PRECISIONS)})": (
            trainer.precision not in _PRECISIONS
        ),
    }
    for reason in (reason for reason, is_set in reasons.items() if is_set):
        raise ConfigError(
            f"trainer.strategy=fsdp does not go with {reason}: leave one of them out."
        )


def shard(model: OmicsModel, mesh: DeviceMesh) -> None:
    """Leave this process its share of a model, in place.

    Args:
        model: the same on every process.
        mesh: of all processes, in one dimension.
    """
    from torch.distributed.fsdp import fully_shard

    for block in model.encoder.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all of its shares; every process must ask.

    Args:
        tensor: in shares, or whole already.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors: Mapping[str, Tensor], *, keeps: bool = True) -> dict[str, Tensor]:
    """Return tensors with all of their shares; every process must ask, in the same order.

    Args:
        tensors: by name.
        keeps: whether this process wants them, on the CPU where they were in shares: only one of them
            is whole on the device at a time.
    """
    found = {}
    for name, tensor in tensors.items():
        is_shared = isinstance(tensor, DTensor)
        gathered = whole(tensor.detach())
        if keeps:
            found[name] = gathered.cpu() if is_shared else gathered
    return found


def like(tensor: Tensor, target: Tensor) -> Tensor:
    """Return this process's share of a whole tensor, where a target is in shares.

    Args:
        tensor: whole, the same on every process.
        target: of the same shape.
    """
    if not isinstance(target, DTensor) or tensor.shape != target.shape:
        return tensor
    device = target.to_local().device
    # Every process has read the same file: nothing needs to be sent.
    return distribute_tensor(
        tensor.to(device), target.device_mesh, target.placements, src_data_rank=None
    )
