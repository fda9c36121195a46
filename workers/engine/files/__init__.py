"""Files: a model's folder, the safetensors format as bytes, atomic writes, the manifest. Import-light."""
