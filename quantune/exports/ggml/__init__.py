"""The parts of a GGUF file: settings, vocabulary, tensors."""
