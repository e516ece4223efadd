"""The server: jobs that are never lost, workers that hold the models, the page and the dialects that programs speak."""
