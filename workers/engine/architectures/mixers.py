"""Mixers beside plain attention: latent attention, and those that keep a state over time. Import-light."""

from __future__ import annotations

from workers.engine.architectures.architecture import Part, Projection

LATENT = "latent head"
"""Kind of the units inside latent attention: heads whose keys and values come from one latent."""
STATE = "state"
"""Kind of the units inside a recurrence or a convolution over time."""

NOTHING = Part("", ())
"""Stands for the mixer or the MLP of blocks that have only the other."""


def latent_attention(*, query_latent: bool) -> Part:
    """DeepSeek's attention: keys and values are made of a latent, and queries too with `query_latent`."""
    if query_latent:
        queries = [("q_a_proj", "attention_input", "hidden"), ("q_b_proj", "query_latent", LATENT)]
    else:
        queries = [("q_proj", "attention_input", "hidden")]
    return Part(
        "self_attn",
        (
            *(Projection(f"self_attn.{name}", stream, reads, LATENT) for name, stream, reads in queries),
            Projection("self_attn.kv_a_proj_with_mqa", "attention_input", "hidden", LATENT, cached=True),
            Projection("self_attn.kv_b_proj", "key_latent", LATENT, LATENT),
            Projection("self_attn.o_proj", "attention_output", LATENT, "hidden"),
        ),
    )


def recurrent(
    module: str,
    inputs: tuple[str, ...],
    output: str,
    *,
    inner: tuple[tuple[str, str], ...] = (),
    kept: tuple[str, ...] = (),
) -> Part:
    """A recurrence or convolution over time between linear layers, by their names below the module.

    `inner`: (layer that reads what another inside the mixer puts out, its stream). `kept`: convolutions and parameters
    of the state.
    """
    return Part(
        module,
        (
            *(Projection(f"{module}.{name}", "state_input", "hidden", STATE) for name in inputs),
            *(Projection(f"{module}.{name}", stream, STATE, STATE) for name, stream in inner),
            Projection(f"{module}.{output}", "state_output", STATE, "hidden"),
        ),
        kept=tuple(f"{module}.{name}" for name in kept),
    )


def selective(module: str) -> Part:
    """Mamba's mixer. The layer that makes time steps of their latent is part of the recurrence, and stays."""
    inner = (("x_proj", "state_inner"),)
    return recurrent(module, ("in_proj",), "out_proj", inner=inner, kept=("conv1d", "dt_proj", "A_log"))


def dual(module: str) -> Part:
    """Mamba 2's mixer."""
    return recurrent(module, ("in_proj",), "out_proj", kept=("conv1d",))


def both(one: Part, other: Part) -> Part:
    """Two mixers of one block, side by side. The module is the first's."""
    return Part(one.module, (*other.layers, *one.layers), kept=(*one.kept, *other.kept))
