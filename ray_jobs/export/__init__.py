"""From a base model and an adapter to a GGUF file: resolve, merge, write, quantise, prove."""
