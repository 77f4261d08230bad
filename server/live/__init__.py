"""What is served now: live sets in memory, pinned adapters, the swap, and what follows the
directory."""
