"""The tables of the pages, a module for each thing that they are about."""
