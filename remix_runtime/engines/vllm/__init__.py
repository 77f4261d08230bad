"""ReMix on vLLM: a plugin that teaches vLLM the adapters, and the engine that serves with it.

Nothing here is imported without vLLM but `plugin`, which is light.
"""
