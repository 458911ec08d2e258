"""Training a GPT with `model.fit`: optimizer, schedule, loss, precision, callbacks, checkpoints."""
