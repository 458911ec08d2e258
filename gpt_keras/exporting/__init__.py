"""Trained models in the formats that other runtimes read."""
