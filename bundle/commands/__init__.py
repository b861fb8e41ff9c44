"""Commands for people: thin, and importing late, so that help and mistakes are answered at once."""
