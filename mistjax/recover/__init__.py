"""From an alarm to a repaired action."""
