"""Asks a served server anything, and judges what it does. Every request can be made again: it is a
pure function of a seed and a number, but for keys and digests."""
