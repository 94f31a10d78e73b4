"""How the compiled parts are built; nothing here is installed."""
