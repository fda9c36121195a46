"""The tables of `submit --dry-run`."""

from __future__ import annotations

from app.cli import output
from espalier.documents import Plan, PlannedLayer


def print_plan(plan: Plan, *, all_layers: bool) -> None:
    table = output.table("What this would do; nothing was created", "", "")
    table.show_header = False
    table.add_row("model", f"{plan.model_id} ({plan.architecture}, {_blocks(plan)})")
    table.add_row("commit", plan.model_commit)
    table.add_row("parameters", f"{output.number(plan.parameters)} → {output.found(plan.parameters_after)}")
    zeros = output.found(plan.zeros_after)
    table.add_row("zeros after", f"{zeros} of {output.number(plan.prunable_parameters)}")
    table.add_row("weight bytes", f"{output.number(plan.bytes_before)} → {output.found(plan.bytes_after)}")
    each = f" on each of {plan.devices} devices" if plan.devices > 1 else ""
    mapped = plan.mapped_memory_bytes / 2**20
    of_files = f", {mapped:,.0f} of them mapped weight files" if mapped else ""
    table.add_row("peak memory", f"about {plan.peak_memory_bytes / 2**20:,.0f} MiB{each}{of_files}")
    if plan.least_memory_bytes is not None:
        table.add_row("a worker needs", f"about {plan.least_memory_bytes / 2**20:,.0f} MiB{each}")
    table.add_row("run time", f"about {output.duration(plan.elapsed_s)} on two CPU cores")
    if plan.price is not None:
        table.add_row("price", f"about {plan.price.amount} {plan.price.currency}, by that run time")
    output.stdout.print(table)
    for runtime in plan.runtimes:
        output.stdout.print(f"{runtime.runtime}: {runtime.note}")
    for warning in plan.warnings:
        output.stdout.print(output.marked("[yellow]warning[/] {}", warning))
    layers = output.table("", "layer", "shape", "sparsity", right=("sparsity",))
    for name, shape, target in _alike(plan.layers, folded=not all_layers):
        sparsity = "to be measured" if target is None else f"{target:.2%}"
        layers.add_row(name, "x".join(map(str, shape)), sparsity)
    output.stdout.print(layers)


def _blocks(plan: Plan) -> str:
    """`8 blocks`, or `8 → 12 blocks` where their number changes."""
    after = plan.blocks_after
    return f"{plan.blocks} blocks" if after in (None, plan.blocks) else f"{plan.blocks} → {after} blocks"


def _alike(layers: list[PlannedLayer], *, folded: bool) -> list[tuple[str, tuple[int, int], float | None]]:
    """(name, shape, sparsity) of the layers. Folded, those that differ in the block alone are one: `{0-7}`."""
    if not folded:
        return [(layer.name, layer.shape, layer.target_sparsity) for layer in layers]
    groups: dict[tuple[str, tuple[object, ...]], list[PlannedLayer]] = {}
    for layer in layers:
        name = layer.name.replace(f".{layer.block}.", ".{}.", 1)
        groups.setdefault((name, (layer.shape, layer.target_sparsity)), []).append(layer)
    return [
        (
            name.replace("{}", _ranges([layer.block for layer in alike])),
            alike[0].shape,
            alike[0].target_sparsity,
        )
        for (name, _), alike in groups.items()
    ]


def _ranges(numbers: list[int]) -> str:
    """`{0-3,7}` of 0, 1, 2, 3, 7; one number as it is."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    if len(numbers) == 1:
        return str(numbers[0])
    return "{" + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) + "}"
