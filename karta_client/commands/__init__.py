"""The commands of kartactl, one module a noun; loaded when they are used."""
