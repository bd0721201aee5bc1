"""Live widgets for JupyterLab: the training dashboard, and what the explorers share."""
