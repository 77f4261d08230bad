"""From a trained adapter to a live one: `remix publish`, and `remix train --publish`.

gate         whether the adapter is better, and by how much (pure functions)
losses       what the gate compares: each held-out row's loss, as the serving engine has it
place        the name that is published to, on a server
publication  the steps one after the other, and how they may end
options      the options that both commands share
commands     `remix publish`
"""
