"""Granite's layout of a mixture with windowed attention: its files hold what transformers' modules do."""

from dataclasses import replace

from workers.engine.architectures.layouts.granite_moe import LAYOUT as _GRANITE

LAYOUT = replace(_GRANITE, name="Granite-MoE-SWA", stored=_GRANITE.in_modules, renamed=())
