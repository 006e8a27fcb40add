"""A run as a person reads it afterwards: its report, lists of runs, and two runs compared."""
