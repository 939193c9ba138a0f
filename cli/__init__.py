"""The command line: words -> one library call -> a printed report. Nothing here knows torch."""
