"""quantune: which quantization and which fine-tuning should I ship? The know-how, without the workflow around it."""

__version__ = "0.1.0"
