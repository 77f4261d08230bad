"""One module per measured system; each runs in a process of its own (see `child`)."""
