"""Text to token batches and back. Knows nothing of models: imports neither keras nor the rest of gpt_keras."""
