"""A monitored policy server that openpi's stock clients use: `mistjax serve`, `mistjax certify`."""
