"""What is remembered of tenants: keys, quotas, adapters by digest, set revisions, audit rows."""

from server.tenancy.directory import Directory

__all__ = ["Directory"]
