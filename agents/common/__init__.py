"""Shared by the agents: flags, setting, training loop, reports. No algorithm in it."""
