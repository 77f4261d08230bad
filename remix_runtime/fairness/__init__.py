"""Fairness between tenants: whose turn it is (`queue`, `turns`, `worker`), and how many of a few
places each may have (`shares`)."""
