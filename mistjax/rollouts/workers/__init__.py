"""Environments here, in worker processes or in Ray actors, behind one pool."""
