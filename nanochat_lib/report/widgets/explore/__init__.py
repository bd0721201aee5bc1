"""The explorers: one module for each `notebooks/explore_*.ipynb`."""
