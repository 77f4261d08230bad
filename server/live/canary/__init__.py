"""Canaries: a share of a name's requests goes to another adapter, which is then promoted or rolled
back.

figures      what was seen of both arms, in counts that add up over servers and restarts
verdict      what follows from them: go on, promote, roll back
running      the canaries of this server: which requests are whose, and what came of them
series       Prometheus series of the canaries that run

What loads, judges and ends them is `server/live/canary_keeper.py`.
"""
