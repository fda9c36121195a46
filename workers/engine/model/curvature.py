"""Curvature: the trace of the loss's Hessian over each layer's weights. Holds the model and its gradients in memory."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from workers.engine.errors import NumericalFailure
from workers.engine.model.loaded import load_model
from workers.engine.model.loss import next_token_loss
from workers.engine.model.views import held

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from workers.engine.model.calibration import Calibration
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.model.views import Held
    from workers.engine.store.run import Run

AGREEMENT = 0.95
"""Rank correlation (Spearman) between the layers' orders by either half of the probes at which probing ends."""
MOST_PROBES = 256
_LOOK_EVERY = 8
_LEAST_PROBES = 16
PROBE_TOKENS = 512
"""Tokens read of a window: the graph of a second derivative keeps every activation several times."""


def curvature(model: LoadedModel, calibration: Calibration, run: Run, *, seed: int) -> dict[str, float]:
    """Layer name -> trace of the Hessian of the mean loss over the layer's weights (Hutchinson 1990, eq. 5 of
    arXiv:2310.09499): the mean of zᵀHz over random signs z, by differentiating the gradient's product with z.

    The standard deviation of a single zᵀHz is about its mean, so probes are taken, on one window after the
    other, until the layers' ranks by trace per weight agree between the probes of odd and of even number to a Spearman
    correlation of `AGREEMENT`, and at most `MOST_PROBES`. The log gives both numbers. Each layer's signs are a
    random stream of its own. Absolute values of the traces are returned, as in PyHessian. Float32.
    The probes are resume points. Raises NumericalFailure where a trace is not finite.
    """
    layers = model.architecture.layers
    sizes_L = np.array([layer.parameters for layer in layers], dtype=float)
    found: list[list[float]] = run.checkpoint.load_json("curvature") or []
    whole: nn.Module | None = None
    agreement = _agreement(found, sizes_L)
    while agreement < AGREEMENT and len(found) < MOST_PROBES:
        if whole is None:
            whole = load_model(model.path, model.device, torch.float32).requires_grad_(False)
            places = held(whole, model.architecture)
            weights = {layer.name: places[layer.weight] for layer in layers}
            used = {place.parameter: whole.get_parameter(place.parameter) for place in weights.values()}
            for parameter in used.values():
                parameter.requires_grad_()
        windows_NT = calibration.windows_NT[:, :PROBE_TOKENS]
        ids_T = windows_NT[len(found) % len(windows_NT)].to(model.device)
        signs = {
            name: _signs(name, place.read(used[place.parameter].detach()), seed=seed, probe=len(found))
            for name, place in weights.items()
        }
        found.append(_along(whole, weights, used, signs, ids_T))
        if not np.isfinite(found[-1]).all():
            raise NumericalFailure("the loss's curvature is infinite or NaN", "check the dense model")
        run.events.progress(len(found), MOST_PROBES, "probe")
        if len(found) % _LOOK_EVERY == 0:
            agreement = _agreement(found, sizes_L)
            run.checkpoint.save_json("curvature", found)
    run.events.log(
        f"curvature: {len(found)} probes, of which each half ranks the layers alike to {agreement:.3f}",
        "info" if agreement >= AGREEMENT else "warning",
    )
    traces_L = np.abs(np.mean(found, axis=0))
    return {layer.name: float(trace) for layer, trace in zip(layers, traces_L, strict=True)}


def _agreement(found: list[list[float]], sizes_L: np.ndarray) -> float:
    """Spearman's correlation between the halves' sensitivities, in [-1, 1]; -1 while there are too few."""
    if len(found) < _LEAST_PROBES:
        return -1.0
    if len(sizes_L) < 2:  # nothing to rank
        return 1.0
    from scipy.stats import spearmanr  # a second of imports, which the other methods do without

    halves = [np.abs(np.mean(found[start::2], axis=0)) / sizes_L for start in (0, 1)]
    return float(spearmanr(*halves).statistic)


def _signs(name: str, weight_OI: Tensor, *, seed: int, probe: int) -> Tensor:
    """Random signs, float32 [O, I], which depend on these arguments alone."""
    stream = np.random.default_rng([seed, probe, zlib.crc32(name.encode())])
    packed = np.frombuffer(bytearray(stream.bytes(-(-weight_OI.numel() // 8))), np.uint8)
    if weight_OI.is_cpu:
        bits_N = torch.from_numpy(np.unpackbits(packed, count=weight_OI.numel()))
    else:
        bits_N = _unpacked(torch.from_numpy(packed).to(weight_OI.device), weight_OI.numel())
    return bits_N.view(weight_OI.shape).float().mul_(2).sub_(1)


def _unpacked(packed_P: Tensor, count: int) -> Tensor:
    """`numpy.unpackbits` on the device: an eighth of the bytes cross the bus."""
    shifts_8 = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed_P.device)
    return ((packed_P[:, None] >> shifts_8) & 1).flatten()[:count]


def _along(
    whole: nn.Module,
    layers: Mapping[str, Held],
    parameters: Mapping[str, Tensor],
    signs: Mapping[str, Tensor],
    ids_T: Tensor,
) -> list[float]:
    """zᵀHz of every layer with the loss on one window."""
    # The fused attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        logits_TV = whole(input_ids=ids_T[None], use_cache=False).logits[0, :-1]
        loss = next_token_loss(logits_TV, ids_T[1:])
        gradients = dict(
            zip(parameters, torch.autograd.grad(loss, list(parameters.values()), create_graph=True), strict=True)
        )
        parts = [(layer.read(gradients[layer.parameter]) * signs[name]).sum() for name, layer in layers.items()]
        products = torch.autograd.grad(torch.stack(parts).sum(), list(parameters.values()))
    of = dict(zip(parameters, products, strict=True))
    traces_L = [
        (layer.read(of[layer.parameter]) * signs[name]).sum(dtype=torch.float64) for name, layer in layers.items()
    ]
    found: list[float] = torch.stack(traces_L).tolist()
    return found
