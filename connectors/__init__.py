"""What talks to the world and decides nothing; each package is independent of the others.

A connector fulfils a port of `engine.ports`, translates foreign errors into those of
`engine.errors`, and knows neither detection nor action nor models.
"""
