"""Figures and offline HTML pages, read from run folders."""
