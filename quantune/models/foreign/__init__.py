"""Formats of other programs: pickled weights, GPTQ, AWQ, GGUF. Each is checked, read, and written as safetensors."""
