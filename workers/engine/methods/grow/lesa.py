"""LESA: predicts new blocks from their neighbours, by networks learnt on the model's own blocks.

Yang et al. 2025 (arXiv:2502.13794). The weights of one layer in all L blocks have shared singular vectors,
W_i = U S V_i. A small network per layer learns row by row to give V_i of [V_(i-1) | V_(i+1)], and then gives a new
block's rows of the two it will stand between. As in the released notebooks: all directions are kept, the loss has a
term for the norm of a batch without which predictions shrink towards zero, and norms and biases are block 0's
(`vectors`). O, I = outputs, inputs, R = directions, N = rows of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.growing import BetweenParams, Fit, Grown
from workers.engine.removals.new_blocks import block_grower

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import ClassVar

    import torch
    from torch import Tensor, nn

    from workers.engine.contracts.growing import Rows, Stack
    from workers.engine.maths.shared_basis import SharedBasis

_ROWS_AT_ONCE = 2048


class LesaParams(BetweenParams):
    """Learn what a block is between its neighbours."""

    method: Literal["lesa"] = Field("lesa", description="Predict new blocks by networks learnt on the model's blocks.")
    vectors: Literal["first", "left", "mean"] = Field(
        "first",
        description="Norms and biases, which are not predicted: those of block 0, as the authors' code has them, those "
        "of the block before, or the mean of both neighbours'.",
    )
    width: int = Field(256, ge=1, le=65_536, description="Hidden units of each of the networks' two hidden layers.")
    epochs: int = Field(10, ge=1, le=10_000, description="Passes over all rows of all blocks but the outer two.")
    batch: int = Field(64, ge=1, le=65_536, description="Rows per step.")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="AdamW's, constant.")
    weight_decay: float = Field(0.01, ge=0, le=1, description="AdamW's.")
    norm_weight: float = Field(
        5e-4,
        ge=0,
        lt=1,
        description="Share in the loss of the squared difference between the norms of a batch's prediction and target; "
        "the mean squared error has the rest.",
    )
    rescale: bool = Field(
        False,
        description="Multiply rows by the root of L I, so that their numbers are about 1; without, as the authors do, "
        "they are about 1/1000 and the term of the norm rules the loss.",
    )

    least_blocks: ClassVar[int] = 3

    def held_bytes(self, shape: tuple[int, int]) -> int:
        outputs, inputs = shape
        # In float64: the Gram matrix, its eigenvectors and their workspace; a weight, its coefficients and a product.
        return 8 * (4 * outputs**2 + 3 * outputs * inputs) + 20 * self._network(inputs)

    def operations(self, shape: tuple[int, int], blocks: int) -> float:
        outputs, inputs = shape
        decomposed = 10 * outputs**3 + 8 * outputs**2 * inputs * blocks
        return decomposed + 6.0 * self.epochs * (blocks - 2) * outputs * self._network(inputs)

    def _network(self, inputs: int) -> int:
        """Parameters of a network."""
        return self.width * (3 * inputs + self.width)


@block_grower(LesaParams, paper="arXiv:2502.13794")
def grow(stack: Stack, params: LesaParams) -> Grown:
    """Predicted weights of linear layers; of norms and biases what `vectors` says. Raises NumericalFailure."""
    if not stack.is_matrix:
        return Grown(_vectors(stack, params))
    from workers.engine.maths.shared_basis import shared_basis

    basis = shared_basis(stack.read(block) for block in range(stack.blocks))
    inputs = stack.read(0).shape[1]
    rows = stack.rows(inputs)
    for block in range(stack.blocks):
        rows.put(block, basis.coefficients(stack.read(block)))
    scale = (stack.blocks * inputs) ** 0.5 if params.rescale else 1.0
    network = _trained(stack, params, basis, rows, scale)
    return Grown(
        (basis.weight(_predicted(network, rows, block, basis, scale)) for block in stack.like),
        _fit(network, rows, stack.blocks, basis, scale),
    )


def _vectors(stack: Stack, params: LesaParams) -> Iterator[Tensor]:
    for block in stack.like:
        if params.vectors == "mean":
            yield (stack.read(block).float() + stack.read(block + 1).float()) / 2
        else:
            yield stack.read(0 if params.vectors == "first" else block)


def _trained(stack: Stack, params: LesaParams, basis: SharedBasis, rows: Rows, scale: float) -> nn.Module:
    """The network from [V_(i-1) | V_(i+1)] to V_i, row by row."""
    import torch
    from torch import nn
    from torch.nn.functional import mse_loss

    directions, inputs, device = len(basis.values_R), stack.read(0).shape[1], basis.values_R.device
    drawn = torch.Generator().manual_seed(stack.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stack.seed)
        network = nn.Sequential(
            nn.Linear(2 * inputs, params.width), nn.ReLU(),
            nn.Linear(params.width, params.width), nn.ReLU(),
            nn.Linear(params.width, inputs),
        ).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay)
    for _ in range(params.epochs):
        order = torch.randperm((stack.blocks - 2) * directions, generator=drawn)
        for part_N in torch.split(order, params.batch):
            around_NI, target_NI = _triples(rows, part_N % directions, part_N // directions, scale, device)
            found_NI = network(around_NI)
            apart = found_NI.norm() - target_NI.norm()
            loss = (1 - params.norm_weight) * mse_loss(found_NI, target_NI) + params.norm_weight * apart**2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.requires_grad_(False)


def _triples(rows: Rows, rows_N: Tensor, blocks_N: Tensor, scale: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """(both neighbours [N, 2 I], the row between them [N, I]), of the blocks after these."""
    triple_N3I = rows.take(rows_N, blocks_N, 3).to(device).mul_(scale)
    return triple_N3I[:, ::2].flatten(1), triple_N3I[:, 1]


def _predicted(network: nn.Module, rows: Rows, block: int, basis: SharedBasis, scale: float) -> Tensor:
    """Coefficients [R, I] of a block between `block` and the next one."""
    import torch

    found = []
    for rows_N in torch.split(torch.arange(len(basis.values_R)), _ROWS_AT_ONCE):
        pair_N2I = rows.take(rows_N, torch.full_like(rows_N, block), 2).to(basis.values_R.device).mul_(scale)
        found.append(network(pair_N2I.flatten(1)) / scale)
    return torch.cat(found)


def _fit(network: nn.Module, rows: Rows, blocks: int, basis: SharedBasis, scale: float) -> Fit:
    """Errors of the weights of the blocks that the network was trained on."""
    import torch

    device = basis.values_R.device
    sums_3 = torch.zeros(3, dtype=torch.float64, device=device)
    for block in range(blocks - 2):
        for rows_N in torch.split(torch.arange(len(basis.values_R)), _ROWS_AT_ONCE):
            around_NI, target_NI = _triples(rows, rows_N, torch.full_like(rows_N, block), scale, device)
            mean_NI = around_NI.view(len(rows_N), 2, target_NI.shape[1]).mean(dim=1)
            apart_3N = [d.square().sum(1) for d in (network(around_NI) - target_NI, mean_NI - target_NI, target_NI)]
            sums_3 += torch.stack(apart_3N).double() @ basis.values_R[rows_N.to(device)].square()
    error, of_mean, norm = sums_3.sqrt().tolist()
    return Fit(error / norm, of_mean / norm) if norm else Fit(0.0, 0.0)
