"""Watch an application: metrics, middleware, health checks, logs, a first panel and a basic alert."""
