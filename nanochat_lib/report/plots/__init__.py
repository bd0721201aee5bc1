"""Figures: rows of numbers in, plotly figures out, and the one palette they share."""
