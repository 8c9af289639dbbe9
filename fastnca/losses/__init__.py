"""Losses between states and targets."""
