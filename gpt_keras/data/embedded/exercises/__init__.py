"""Small functions to write and to mend; `gpt_keras.data.embedded.functions` reads them as text."""
