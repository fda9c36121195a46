"""Curvature: how sharply the loss bends along each layer's weights. Holds the model and its gradients in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from workers.engine.stages.load import load_model

if TYPE_CHECKING:
    from workers.engine.stages.calibrate import Calibration
    from workers.engine.stages.load import LoadedModel

PROBES = 4
"""Random directions, one on each of as many calibration windows."""
PROBE_TOKENS = 512
"""Of a window are read: the graph of a second derivative keeps every activation several times."""


def curvature(model: LoadedModel, calibration: Calibration, *, seed: int) -> dict[str, float]:
    """Layer name -> trace of the Hessian of the mean loss over the layer's weights (Hutchinson 1990, eq. 5 of
    arXiv:2310.09499): the mean of zᵀHz over random signs z, by differentiating the gradient's product with z.

    The sign of a trace says nothing here, as in PyHessian: its absolute value is returned. Float32.
    """
    whole = load_model(model.path, model.device, torch.float32).requires_grad_(False)
    names = [layer.name for layer in model.architecture.layers]
    weights = [whole.get_submodule(name).weight.requires_grad_() for name in names]
    generator = torch.Generator().manual_seed(seed)
    traces = [0.0] * len(names)
    probes = min(PROBES, len(calibration.windows_NT))
    for ids_T in calibration.windows_NT[:probes, :PROBE_TOKENS]:
        ids_BT = ids_T[None].to(model.device)
        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            logits_TV = whole(input_ids=ids_BT, use_cache=False).logits[0, :-1]
            gradients = torch.autograd.grad(cross_entropy(logits_TV, ids_BT[0, 1:]), weights, create_graph=True)
            signs = [
                (torch.randint(2, weight.shape, generator=generator) * 2 - 1).to(model.device, torch.float32)
                for weight in weights
            ]
            along = torch.stack([(g * sign).sum() for g, sign in zip(gradients, signs, strict=True)]).sum()
            products = torch.autograd.grad(along, weights)
        for index, (product, sign) in enumerate(zip(products, signs, strict=True)):
            traces[index] += (product * sign).sum(dtype=torch.float64).item() / probes
    return {name: abs(trace) for name, trace in zip(names, traces, strict=True)}
