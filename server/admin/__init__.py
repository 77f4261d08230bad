"""The admin API: tenants, keys, quotas, sets and adapters, for whoever runs the server."""
