"""Calls of tools: how a model is told of them, held to them, and read."""
