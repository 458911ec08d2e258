"""The model as LiteRT, the runtime of phones, runs it: made, and run, without its weights ever passing a compiler."""
