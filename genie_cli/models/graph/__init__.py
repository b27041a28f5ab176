"""One captured graph a network: export, batch norms, folding, cut points, subgraphs."""
