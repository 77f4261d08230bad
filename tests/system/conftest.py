"""`make test` collects what stands here and runs none of it: it need not have what this needs."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("playwright") else ["dashboard"]
