"""The one next-token loss: transformers' own, token by token, whatever the shape it is asked for in."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from workers.engine.model.loss import next_token_loss, nll

ROOT = Path(__file__).parents[3]


def test_is_the_negative_log_likelihood_of_each_token() -> None:
    torch.manual_seed(0)
    logits_BTV, ids_BT = torch.randn(2, 5, 11).bfloat16(), torch.randint(11, (2, 5))
    each_BT = next_token_loss(logits_BTV, ids_BT, "none")
    expected_BT = -logits_BTV.double().log_softmax(dim=2).gather(2, ids_BT[:, :, None])[:, :, 0]
    torch.testing.assert_close(each_BT.double(), expected_BT)
    assert each_BT.dtype == torch.float32
    torch.testing.assert_close(next_token_loss(logits_BTV, ids_BT), each_BT.mean())
    # One window at a time, to the same bytes: so whole and streamed losses are one.
    assert torch.equal(each_BT[1], next_token_loss(logits_BTV[1], ids_BT[1], "none"))


def test_of_windows_is_transformers_own(tiny: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    ids_BT = torch.randint(4096, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = [model(ids_T[None], labels=ids_T[None]).loss for ids_T in ids_BT]
        found = nll(model, ids_BT)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), torch.stack(expected))


def test_there_is_no_other() -> None:
    files = (ROOT / "workers").rglob("*.py")
    assert [file.name for file in files if re.search(r"\bcross_entropy\(", file.read_text())] == ["loss.py"]
