"""A cache in Redis for any function and any FastAPI endpoint, that says what it does and never fails a request."""
