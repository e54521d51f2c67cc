"""Hypothesis, set up before its first test."""

from support import profiles

profiles.load()
