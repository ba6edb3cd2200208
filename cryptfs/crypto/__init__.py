"""Keys, sealing and opening: pure functions, and the only home of `cryptography` and `blake3`."""
