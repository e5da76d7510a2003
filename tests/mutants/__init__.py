"""Mutants: the code with one guard taken out, each of which some test has to notice."""
