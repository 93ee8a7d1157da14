"""Weight files on disk: safetensors, GGUF, int8, PEFT adapters, images."""
