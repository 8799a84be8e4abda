"""Programs that serve: Karta, and what it is compared with. Each prints `READY address` and ends with SIGTERM."""
