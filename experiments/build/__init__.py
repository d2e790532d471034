"""What is made once: shipped monitors, recorded runs, the page of results."""
