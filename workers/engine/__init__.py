"""The engine: spec in, smaller model and report out."""

import logging

DISTRIBUTION = "espalier-llm"
"""Our name among installed packages, as pyproject.toml has it; `espalier` on PyPI is somebody else's."""

# transformers imports torchao wherever it is installed. It then names kernels that it could not load, of which we use
# none, and makes torch complain of its enumerations: four lines at the head of every log.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
