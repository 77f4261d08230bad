"""What every HTTP request meets first: its state, its key, its body, and errors for the wire."""
