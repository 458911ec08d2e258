"""Models behind HTTP: SavedModels by TF Serving's REST API."""
