"""What clients send and what they get, as types."""
