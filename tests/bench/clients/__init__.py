"""Programs that load a server. clients/__main__.py runs a scenario as the runner tells it."""
