"""Tools to profile, cache and watch a FastAPI application from a notebook."""
