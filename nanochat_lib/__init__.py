"""Backing library of the workbench: data, verification, model, training, evaluation, reports."""
