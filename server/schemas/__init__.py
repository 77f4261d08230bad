"""Wire types of the OpenAI-compatible API."""
