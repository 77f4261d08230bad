"""The adapter folder: read, validated, written, identified."""
