"""How the shipped policies were trained."""
