"""Files: a model's folder and the safetensors format as bytes, atomic writes, the manifest. Import-light."""
