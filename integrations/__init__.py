"""Integrations with inference engines; each module knows one engine and hands what it sees to the core."""
