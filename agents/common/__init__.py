"""What the agents share: flags, setting, training loop, reports. No algorithm in it."""
