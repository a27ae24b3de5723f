"""The command `flatline`: validates a person's input and passes it to the wiring."""
