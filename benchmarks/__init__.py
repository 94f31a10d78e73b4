"""How fast the operators are; see README.md here."""
