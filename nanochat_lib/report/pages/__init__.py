"""HTML pages: of a run, of all runs, of a corpus, of executed notebooks."""
