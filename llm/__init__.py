"""Talking to chat models: one client with a budget, a journal and rate limits, for any
OpenAI-compatible server."""
