"""`remix tenant`, `remix adapter` and `remix set`: the admin API from a shell."""
