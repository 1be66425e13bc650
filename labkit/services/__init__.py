"""Servers of our own on loopback that end with us: Redis (Valkey) and PostgreSQL from their wheels."""
