"""The command `flatline`: what a person types, checked and handed to the wiring."""
