"""Other tools' formats of recorded episodes."""
