"""The soak: very many requests of mixed kinds, then the proof that nothing grew and nothing was lost."""
