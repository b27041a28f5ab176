"""Teachers: the zoo that names them, their checkpoints, and the graph that every stage works on."""
