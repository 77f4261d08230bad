"""The OpenAI API: a module for each group of paths, and the way from a body to its answer."""
